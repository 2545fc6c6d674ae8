"""Folders as screenings, relaxations and DFT leave them, with numbers that are made up but look alike."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from druse import Crystals
from druse._columns import write_columns
from druse.candidates import Entries, write_entries
from druse.conditions import crystal_system
from druse.elements import formula_of

ENERGY, GAP = "formation_energy_per_atom", "band_gap"
LONG = f"{ENERGY}|cgcnn-mp20|1|eV/atom"
TARGETS = ((-2.0, 3.0), (-2.0, 0.0), (0.0, 3.0), (0.0, 0.0))
"""The paper's figure 4: formation energy in eV/atom, band gap in eV."""

RULES = ("read", "geometry", "composition", "property", "unique")
GROUPS = (1, 2, 14, 62, 139, 166, 194, 225)
FAILURE = "not converged in 500 steps"


def random_crystals(n: int, seed: int = 0) -> Crystals:
    """Ordered oxides and the like in slightly skewed cells of 2 to 12 atoms."""
    draw = np.random.default_rng(seed)
    n_atoms = draw.integers(2, 13, n)
    offsets = np.concatenate([[0], np.cumsum(n_atoms)])
    cells = (np.eye(3) + draw.normal(0, 0.08, (n, 3, 3))) * np.cbrt(14.0 * n_atoms)[:, None, None]
    kinds = draw.choice([3, 8, 8, 8, 12, 16, 20, 22, 26, 29, 38, 56], offsets[-1])
    return Crystals(draw.random((offsets[-1], 3)), cells, offsets, kinds.astype(np.int32))


def entries_of(crystals: Crystals, ids: Sequence[str], columns: dict[str, np.ndarray], file: str) -> Entries:
    n = len(crystals)
    return Entries(0, (file,) * n, tuple(ids), ("",) * n, crystals, columns)


def write_screening(
    folder: Path,
    n: int = 300,
    *,
    seed: int = 0,
    targets: Sequence[tuple[float, float]] = TARGETS,
    crystals: Crystals | None = None,
    hostile: str = "",
) -> dict[str, np.ndarray]:
    """A screening of ``n`` entries, whose columns come back; ``hostile`` stands in every text that there is."""
    draw = np.random.default_rng(seed + 1)
    crystals = random_crystals(n, seed) if crystals is None else crystals
    n = len(crystals)
    asked = np.array(targets)[np.arange(n) % len(targets)]
    rule = draw.choice(
        ["read", "geometry", "composition", "property", "unique", ""], n, p=[0.02, 0.1, 0.2, 0.2, 0.08, 0.4]
    )
    energy = asked[:, 0] + draw.normal(0, 0.35, n)
    gap = np.maximum(0.0, asked[:, 1] + draw.normal(0, 0.9, n))
    known = ~np.isin(rule, ["read", "geometry", "composition"])
    groups = draw.choice(GROUPS, n, p=[0.5, 0.1, 0.1, 0.08, 0.07, 0.05, 0.05, 0.05]).astype(np.float64)
    numbers: dict[str, np.ndarray] = {
        f"target_{ENERGY}": asked[:, 0].copy(),
        f"target_{GAP}": asked[:, 1].copy(),
        LONG: energy,
        ENERGY: energy,
        f"{ENERGY}_std": np.abs(draw.normal(0, 0.05, n)),
        GAP: gap,
        "band_gap_class": (gap > 0.2).astype(np.float64) * 0.9 + 0.05,
        "spacegroup": groups,
    }
    for name in (LONG, ENERGY, f"{ENERGY}_std", GAP, "band_gap_class", "spacegroup"):
        numbers[name] = np.where(known, numbers[name], np.nan)
    systems = np.array([crystal_system(int(g)) if k else "" for g, k in zip(groups, known, strict=True)], str)
    ids = [f"{hostile}{k}" for k in range(n)]
    reasons = {
        "read": "no such element", "geometry": "two atoms 0.41 Å apart", "composition": "no oxidation states balance",
        "property": "band_gap beyond its window", "unique": "the same as another", "": "",
    }  # fmt: skip
    verdicts = {
        "number": np.arange(n),
        "id": np.array(ids, str),
        "file": np.full(n, "runs/made"),
        "formula": np.array([formula_of(one.species) for one in crystals], str),
        "n_atoms": crystals.n_atoms,
        "rule": rule,
        "reason": np.array([reasons[str(r)] + (hostile if r else "") for r in rule], str),
        "value": np.full(n, np.nan),
        **numbers,
        "crystal_system": systems,
    }
    if hostile:
        verdicts[f"note{hostile}"] = np.full(n, hostile)
    folder.mkdir(parents=True, exist_ok=True)
    write_columns(folder / "verdicts.parquet", verdicts, {})
    left = np.flatnonzero(rule == "")
    off = np.sqrt(((energy - asked[:, 0]) / 0.3) ** 2 + ((gap - asked[:, 1]) / 0.5) ** 2)
    left = left[np.argsort(off[left], kind="stable")]
    kept = {name: column[left] for name, column in verdicts.items() if name in numbers or name[:4] in ("crys", "note")}
    kept["score"] = -off[left]
    write_entries(
        folder / "survivors.parquet", entries_of(crystals.take(left), [ids[k] for k in left], kept, "runs/made")
    )
    rules, entered = [], n
    for name in RULES:
        refused = int((rule == name).sum())
        half = refused // 3
        said = {reasons[name] + hostile: refused - half, f"another reason{hostile}": half}
        rules.append({
            "name": name + hostile, "kind": name, "entered": entered, "refused": refused, "passed": entered - refused,
            "reasons": {reason: count for reason, count in said.items() if count},
        })  # fmt: skip
        entered -= refused
    _json(folder / "funnel.json", {"entries": n, "rules": rules, "survivors": entered})
    _json(folder / "seconds.json", {rule["name"]: 0.1 * (k + 1) ** 2 for k, rule in enumerate(rules)})
    _json(folder / "screen.json", {
        "schema": 1, "sources": [{"path": f"runs/made{hostile}"}], "models": [LONG], "entries": n,
        "rules": {"rules": [{"kind": "geometry", "min_distance": 0.5}, {"kind": "composition", "neutral": True}]},
        "versions": {"druse": "0.1.0"}, "created": "2026-11-26T09:00:00+00:00",
    })  # fmt: skip
    return verdicts


def write_relaxation(
    folder: Path, n: int = 60, *, seed: int = 0, crystals: Crystals | None = None
) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed + 2)
    crystals = random_crystals(n, seed) if crystals is None else crystals
    n = len(crystals)
    failed = draw.random(n) < 0.1
    columns = {
        name: np.where(failed, np.nan, draw.gamma(2.0, scale / 2, n))
        for name, scale in (
            ("delta_a", 0.3), ("delta_b", 0.3), ("delta_c", 0.5), ("delta_alpha", 4.0), ("delta_beta", 4.0),
            ("delta_gamma", 3.5), ("rmsd_angstrom", 0.3), ("rmsd", 0.12), ("fmax", 0.03), ("seconds", 4.0),
        )
    }  # fmt: skip
    columns["volume_change"] = np.where(failed, np.nan, draw.normal(-0.03, 0.05, n))
    columns["energy_per_atom"] = np.where(failed, np.nan, draw.normal(-5, 1, n))
    columns["steps"] = np.where(failed, np.nan, draw.integers(20, 400, n).astype(np.float64))
    columns["converged"] = np.where(failed, np.nan, 1.0)
    entries = entries_of(crystals, [str(k) for k in range(n)], columns, "runs/made")
    entries = Entries(0, entries.files, entries.ids, tuple(FAILURE if f else "" for f in failed), crystals, columns)
    folder.mkdir(parents=True, exist_ok=True)
    write_entries(folder / "relaxed.parquet", entries)
    _json(folder / "relax.json", {"schema": 1, "calculator": "chgnet", "fmax": 0.05, "steps": 500})
    return {**columns, "failed": failed}


def write_dft(folder: Path, n: int = 45, *, seed: int = 0, crystals: Crystals | None = None) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed + 3)
    crystals = random_crystals(n, seed) if crystals is None else crystals
    n = len(crystals)
    target = np.array([0.0, -2.0, -4.0])[np.arange(n) % 3]
    predicted = target + draw.normal(0, 0.3, n)
    status = draw.choice(["finished", "failed", "waiting"], n, p=[0.8, 0.1, 0.1])
    status[:2] = ["finished", "failed"]
    done = status == "finished"
    columns = {
        f"target_{ENERGY}": target,
        ENERGY: predicted,
        "status": status,
        f"{ENERGY}_dft": np.where(done, predicted + draw.normal(0.05, 0.25, n), np.nan),
        "energy_per_atom": np.where(done, draw.normal(-5, 1, n), np.nan),
        "rmsd_angstrom": np.where(done, draw.gamma(2.0, 0.15, n), np.nan),
        "delta_a": np.where(done, draw.gamma(2.0, 0.19, n), np.nan),
    }
    reasons = tuple("" if s == "finished" else f"{s}: see OUTCAR" for s in status)
    entries = Entries(0, ("runs/made",) * n, tuple(str(k) for k in range(n)), reasons, crystals, columns)
    folder.mkdir(parents=True, exist_ok=True)
    write_entries(folder / "dft.parquet", entries)
    _json(folder / "dft.json", {"schema": 1, "functional": "PBE", "kspacing": 0.03})
    return columns


def _json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
