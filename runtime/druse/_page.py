"""A report as HTML: candidates, cards, a table, and the template. What comes from files goes in as text, escaped."""

import base64
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from druse._dependencies import require
from druse._manifest import in_one_line
from druse._population import SYSTEMS, Population, measured, number
from druse._reported import Stage, formula_of_crystal
from druse.candidates import Entries
from druse.crystals import Crystals
from druse.elements import SYMBOLS
from druse.io import cif_text, named, poscar_text, to_ase
from druse.lattice import parameters_from_cells, volumes

LARGEST_TABLE = 5000
"""Rows of the table of candidates."""

_LARGEST_ATOMS = 60_000
"""Atoms of structures that the page holds for its viewer; the top candidates come first."""

_LARGEST_CELL = 400
"""Atoms of one structure in the viewer."""

_COLUMNS = 24
UNITS = {
    "energy": "eV",
    "energy_per_atom": "eV/atom",
    "fmax": "eV/Å",
    "rmsd_angstrom": "Å",
    "formation_energy_per_atom_dft": "eV/atom",
    "band_gap_dft": "eV",
    "target_formation_energy_per_atom": "eV/atom",
    "target_band_gap": "eV",
    **dict.fromkeys(("delta_a", "delta_b", "delta_c"), "Å"),
    **dict.fromkeys(("delta_alpha", "delta_beta", "delta_gamma"), "°"),
}
"""Of columns that the other commands write."""

_HIDDEN = ("file", "failure", "latent", "rule", "reason", "value", "formula", "n_atoms", "crystal_system", "spacegroup")


class Candidates(NamedTuple):
    """What goes into the cards and the table, best first.

    Attributes:
        entries: crystals.
        columns: ``[entries]`` each.
        order: how they were put in order, in words.
        total: how many there were.
    """

    entries: Entries
    columns: Mapping[str, np.ndarray]
    order: str
    total: int


def candidates(stages: Sequence[Stage], population: Population, windows: Mapping[str, float]) -> Candidates:
    """The crystals of the last folder, and of those of its kind just before it; at most `LARGEST_TABLE`."""
    shown = [stage for stage in stages if stage.crystals.crystals.n_atoms.any()] or list(stages)
    backwards = itertools.takewhile(lambda stage: stage.kind == shown[-1].kind, reversed(shown))
    chosen = list(backwards)[::-1]
    parts: list[tuple[Entries, dict[str, np.ndarray]]] = []
    order = ""
    for stage in chosen:
        entries = stage.crystals
        aligned = len(entries) == len(stage.survived) and stage.kind != "screen"
        columns = dict(stage.rows) if aligned else dict(entries.columns)
        good = np.flatnonzero(_sound(entries))
        if stage.kind == "run":
            distance = _distance(columns, population, windows, len(entries))
            order = "by their cost, the distance of their latent from what was asked"
            if np.isfinite(distance).any():
                good = good[np.argsort(np.nan_to_num(distance[good], nan=np.inf), kind="stable")]
                order = "by their distance from the targets, in windows"
        else:
            order = "as their folder has them, best first" if stage.kind == "screen" else "as their folder has them"
        taken = good[:LARGEST_TABLE]
        parts.append((entries.take(taken), {name: column[taken] for name, column in columns.items()}))
    total = sum(int(_sound(stage.crystals).sum()) for stage in chosen)
    entries = Entries.concatenate(
        Entries(0, e.files, e.ids, e.failures, e.crystals, {k: v for k, v in c.items() if k not in ("id", "failure")})
        for e, c in parts
    )
    if len(parts) > 1:
        order += "; the best of each folder in turn"
        starts = np.cumsum([0, *(len(e) for e, _ in parts)])
        turns = itertools.chain.from_iterable(
            itertools.zip_longest(*(range(a, b) for a, b in itertools.pairwise(starts)))
        )
        entries = entries.take(np.array([k for k in turns if k is not None], np.int64))
    entries = entries.take(np.arange(min(len(entries), LARGEST_TABLE)))
    return Candidates(entries, entries.columns, order, total)


def _sound(entries: Entries) -> np.ndarray:
    """``[entries]`` which are crystals that can be drawn: with atoms, finite, in a cell that is not flat."""
    crystals = entries.crystals
    finite = np.isfinite(crystals.cells).all(axis=(1, 2))
    owner = np.repeat(np.arange(len(crystals)), crystals.n_atoms)
    finite[owner[~np.isfinite(crystals.frac).all(axis=1)]] = False
    with np.errstate(invalid="ignore"):
        return np.asarray(entries.ok & finite & (crystals.n_atoms > 0) & (np.abs(volumes(crystals.cells)) > 1e-3))


def _distance(
    columns: Mapping[str, np.ndarray], population: Population, windows: Mapping[str, float], n: int
) -> np.ndarray:
    """``[n]`` root mean square of the distances from each target, in windows; NaN without one."""
    parts = []
    for spec in population.properties:
        target = columns.get(f"target_{spec.key}")
        _, value = _property(columns, spec.key)
        if target is not None and value is not None and target.dtype.kind == "f":
            parts.append(((value - target) / windows.get(spec.key, spec.window)) ** 2)
    return np.sqrt(np.mean(parts, axis=0)) if parts else np.full(n, np.nan)


class Table(NamedTuple):
    """The table of candidates for the page's script: names, titles, kinds, and rows."""

    columns: list[dict[str, str]]
    rows: list[list[Any]]


def table(found: Candidates, population: Population) -> Table:
    """Rank, id, folder, formula, atoms, symmetry, and up to two dozen columns."""
    entries, n = found.entries, len(found.entries)
    formulas = [formula_of_crystal(one) for one in entries.crystals]
    fixed: list[tuple[str, str, str, list[Any]]] = [
        ("rank", "#", "", list(range(1, n + 1))),
        ("id", "Id", "", [in_one_line(text) for text in entries.ids]),
        ("formula", "Formula", "", formulas),
        ("n_atoms", "Atoms", "", entries.crystals.n_atoms.tolist()),
    ]
    folders = [in_one_line(file.rstrip("/").rpartition("/")[2]) for file in entries.files]
    if len(set(folders)) > 1:
        fixed.insert(2, ("folder", "From", "", folders))
    groups = _numbers(found.columns.get("spacegroup"))
    if groups is not None:
        fixed.append(("spacegroup", "Space group", "", [_space_group(v) for v in groups]))
    systems = found.columns.get("crystal_system")
    if systems is not None and systems.dtype.kind == "U":
        fixed.append(("crystal_system", "Crystal system", "", [in_one_line(text) for text in systems]))
    numbers: dict[str, tuple[str, str, np.ndarray | None]] = {}
    for spec in population.properties:
        key, column = _property(found.columns, spec.key)
        numbers[key] = (spec.label if key == spec.key else f"{spec.label}, Predictor", spec.unit, column)
    known = {spec.key for spec in population.properties}
    for name in dict.fromkeys(["score", *found.columns]):
        hidden = name in _HIDDEN or name in known or name.startswith(("condition_", "changed_")) or "|" in name
        if not hidden and name.removeprefix("predicted_") not in known:
            title = in_one_line(name).replace("_", " ")
            numbers[name] = (title[:1].upper() + title[1:], UNITS.get(name, ""), found.columns.get(name))
    for name, (title, unit, column) in numbers.items():
        if column is None or len(fixed) >= _COLUMNS:
            continue
        if column.dtype.kind == "U":
            if any(column.tolist()):
                fixed.append((name, title, unit, [in_one_line(text) for text in column]))
        elif (values := _numbers(column)) is not None and np.isfinite(values).any():
            fixed.append((name, title, unit, [_short(v) for v in values]))
    columns = [{"key": in_one_line(key), "title": title, "unit": unit} for key, title, unit, _ in fixed]
    return Table(columns, [list(row) for row in zip(*(values for *_, values in fixed), strict=True)])


def _property(columns: Mapping[str, np.ndarray], key: str) -> tuple[str, np.ndarray | None]:
    """The column of a property: by a model, else by the Predictor."""
    own = _numbers(columns.get(key))
    if own is not None and np.isfinite(own).any():
        return key, own
    return f"predicted_{key}", _numbers(columns.get(f"predicted_{key}"))


def _numbers(column: np.ndarray | None) -> np.ndarray | None:
    return None if column is None or column.dtype.kind not in "fiub" else column.astype(np.float64)


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def _space_group(value: float) -> str:
    """Symbol and number, ``Fm-3m (225)``; empty where there is none."""
    if not (math.isfinite(value) and 1 <= value <= 230):
        return ""
    from ase.spacegroup import Spacegroup

    return f"{Spacegroup(int(value)).symbol.replace(' ', '')} ({int(value)})"


def structures(entries: Entries) -> tuple[list[dict[str, Any] | None], dict[str, list[Any]]]:
    """Structures for the viewer, None where one is too large or there are too many, and the elements in them.

    Colours are Jmol's (jmol.sourceforge.net/jscolors), radii the covalent ones of Cordero et al., Dalton Trans. 2832
    (2008), both as ASE has them.
    """
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    found: list[dict[str, Any] | None] = []
    used: set[int] = set()
    room = _LARGEST_ATOMS
    for one in entries.crystals:
        n = len(one.species)
        if n > min(room, _LARGEST_CELL):
            found.append(None)
            continue
        room -= n
        used |= set(one.species.tolist())
        found.append(
            {
                "species": one.species.tolist(),
                "cell": np.round(one.cells[0], 4).ravel().tolist(),
                "frac": (np.round(one.frac % 1.0, 4) % 1.0).ravel().tolist(),
            }
        )
    colours = {
        str(z): [
            SYMBOLS[z - 1] if z else "X",
            "#" + "".join(f"{round(255 * part):02x}" for part in jmol_colors[min(z, len(jmol_colors) - 1)]),
            round(float(covalent_radii[min(z, len(covalent_radii) - 1)]), 2),
        ]
        for z in sorted(used)
    }
    return found, colours


def cards(found: Candidates, population: Population, top: int) -> list[dict[str, Any]]:
    """The first candidates, each with what is known of it and files to download."""
    shown = []
    some = found.entries.take(np.arange(min(top, len(found.entries))))
    groups = _numbers(found.columns.get("spacegroup"))
    values = {spec.key: _property(found.columns, spec.key)[1] for spec in population.properties}
    for k, one in enumerate(some.crystals):
        facts: list[tuple[str, str, str]] = []
        for spec in population.properties:
            value = _at(values[spec.key], k)
            if value is not None:
                target = _at(found.columns.get(f"target_{spec.key}"), k)
                std = _at(found.columns.get(f"{spec.key}_std"), k)
                text = measured(value) + (f" ± {number(std, 2)}" if std is not None else "")
                facts.append((spec.label, f"{text} {spec.unit}", "" if target is None else f"asked {number(target)}"))
        if groups is not None:
            facts.append(("Space group", _space_group(groups[k]) or "none found", ""))
        for name, label in (("rmsd_angstrom", "RMSD in Å"), ("fmax", "Largest force in eV/Å"), ("score", "Score")):
            value = _at(found.columns.get(name), k)
            if value is not None:
                facts.append((label, number(value), ""))
        n, volume = len(one.species), float(volumes(one.cells)[0])
        facts.append(("Cell", f"{n} atoms, {number(volume / n)} Å³ each", ""))
        name = in_one_line(some.ids[k])
        lengths, angles = (values[0] for values in parameters_from_cells(one.cells))
        shown.append(
            {
                "formula": formula_of_crystal(one),
                "id": name,
                "folder": in_one_line(some.files[k].rstrip("/").rpartition("/")[2]),
                "facts": facts,
                "cell": "a, b, c: {} Å; α, β, γ: {}°".format(*(", ".join(map(number, v)) for v in (lengths, angles))),
                "downloads": _downloads(one, name) if one.species.all() else [],
            }
        )
    return shown


def _at(values: np.ndarray | None, k: int) -> float | None:
    column = _numbers(values)
    return None if column is None or not math.isfinite(column[k]) else float(column[k])


def _downloads(crystal: Crystals, name: str) -> list[tuple[str, str, str]]:
    """Title, file name and ``data:`` address of each format."""
    from ase.io.extxyz import write_xyz

    (one,) = named(crystal, [{"id": name}])
    stem = f"{formula_of_crystal(crystal)}_{one.name}"[:80]
    (atoms,) = to_ase(crystal, [{"id": name}])
    xyz = io.StringIO()
    write_xyz(xyz, atoms, columns=["symbols", "positions"])
    return [
        ("CIF", f"{stem}.cif", _address("chemical/x-cif", cif_text(crystal, one.name))),
        ("POSCAR", f"{stem}.vasp", _address("text/plain", poscar_text(crystal, stem))),
        ("extxyz", f"{stem}.extxyz", _address("text/plain", xyz.getvalue())),
    ]


def _address(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def render(context: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        context: what the template shows; text in it is escaped.
        data: what its script draws.

    Raises:
        MissingDependencyError: Jinja is not installed.
    """
    require("jinja2", purpose="making a report", extra="screen")
    import jinja2
    from markupsafe import Markup, escape

    def formula(text: str) -> Any:
        """Numbers of a formula as subscripts."""
        parts = re.split(r"(\d+)", text)
        return Markup().join(Markup("<sub>{}</sub>").format(p) if p.isdigit() else escape(p) for p in parts)

    folder = resources.files("druse").joinpath("data", "report")
    files = {name: folder.joinpath(name).read_text("utf-8") for name in ("page.html", "style.css", *_SCRIPTS)}
    script = "\n" + "\n".join(files[name] for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.DictLoader(files),
    )  # fmt: skip
    environment.filters |= {"num": number, "measured": measured, "seconds": seconds, "percent": percent}
    environment.filters["formula"] = formula
    return environment.get_template("page.html").render(
        **context,
        systems=SYSTEMS,
        data=Markup(_json_in_html(data)),  # noqa: S704  # no "<" is left in it
        script=Markup(script),  # noqa: S704  # our own file
        style=Markup(files["style.css"]),  # noqa: S704  # our own file
        script_digest=digest,
    )


_SCRIPTS = ("charts.js", "viewer.js", "table.js")


def seconds(value: float | None) -> str:
    """A time for people."""
    if value is None:
        return "–"
    return "< 0.01" if 0 < value < 0.01 else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 for people."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def _json_in_html(data: Mapping[str, Any]) -> str:
    """JSON without any character by which it could end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
