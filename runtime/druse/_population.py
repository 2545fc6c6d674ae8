"""Which crystals a report tells properties of, in groups by what was asked of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from druse._manifest import in_one_line
from druse._reported import Stage, sources_of
from druse.conditions import CRYSTAL_SYSTEMS

SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
"""In the order of the paper's table B1."""

LARGEST_GROUPS = 8
"""As many as there are colours that can be told apart; smaller groups go together."""

_OTHERS = "all others"


class Property(msgspec.Struct, frozen=True):
    """A property to draw: ``window`` is the distance from a target within which it counts as met."""

    key: str
    label: str
    unit: str
    window: float


KNOWN = {
    known.key: known
    for known in (
        Property("formation_energy_per_atom", "Formation energy", "eV/atom", 0.3),
        Property("band_gap", "Band gap", "eV", 0.5),
        Property("e_above_hull", "Energy above hull", "eV/atom", 0.1),
        Property("energy_above_hull", "Energy above hull", "eV/atom", 0.1),
    )
}
CLASSES = {
    "band_gap_class": "band gap above 0 eV",
    "formation_energy_class": "formation energy above −0.9 eV/atom",
}
"""What class 1 of the classifiers of the paper's section 2.3 means."""


class Group(msgspec.Struct, frozen=True):
    """Crystals of which the same was asked."""

    label: str
    targets: dict[str, float | str]


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """The entries that properties are told of.

    Attributes:
        groups: at least one.
        group: ``[rows]`` the place of each row's group.
        survived: ``[rows]``.
        columns: ``[rows]`` each, float64 or text.
        ids: ``[rows]``.
        properties: those with numbers, formation energy and band gap first.
        stages: names of the folders.
        screened: whether rows may have been refused.
    """

    groups: tuple[Group, ...]
    group: np.ndarray
    survived: np.ndarray
    columns: Mapping[str, np.ndarray]
    ids: np.ndarray
    properties: tuple[Property, ...]
    stages: tuple[str, ...]
    screened: bool

    def of(self, key: str) -> np.ndarray:
        """``[rows]`` numbers of a column; NaN without one."""
        column = self.columns.get(key)
        missing = np.full(len(self.group), np.nan)
        return missing if column is None or column.dtype.kind not in "fiub" else column.astype(np.float64)


def populate(stages: Sequence[Stage]) -> Population:
    """The rows to tell of: screenings, and runs that none of these began with; else relaxations, else DFT.

    Of screenings of the same sources the first counts, so that no crystal counts twice.
    """
    chosen: list[Stage] = []
    known: set[Any] = set()
    for stage in (stage for stage in stages if stage.kind == "screen"):
        sources = sources_of(stage)
        if not sources & known:
            chosen.append(stage)
        known |= sources
    chosen += [s for s in stages if s.kind == "run" and not any(_ends_with(s, source) for source in known)]
    chosen = chosen or [s for s in stages if s.kind == "relax"] or list(stages)
    return _joined(chosen)


def _ends_with(stage: Stage, source: Any) -> bool:
    own = stage.path.resolve()
    return bool(own == source or (own / "run.json") == source)


def _joined(stages: Sequence[Stage]) -> Population:
    lengths = [len(stage.survived) for stage in stages]
    names = list(dict.fromkeys(name for stage in stages for name in stage.rows))
    properties = _properties(stages)
    columns: dict[str, np.ndarray] = {}
    for name in names:
        parts = [stage.rows.get(name) for stage in stages]
        if any(part is not None and part.dtype.kind == "U" for part in parts):
            texts = [texts_of(part, n) for part, n in zip(parts, lengths, strict=True)]
            columns[name] = np.concatenate(texts)
        else:
            columns[name] = np.concatenate([numbers_of(part, n) for part, n in zip(parts, lengths, strict=True)])
    for spec in properties:
        columns[spec.key] = np.concatenate([value_of(stage, spec.key) for stage in stages])
    groups, group = groups_of(stages)
    return Population(
        groups,
        group,
        np.concatenate([stage.survived for stage in stages]),
        columns,
        np.concatenate([texts_of(stage.rows["id"], n) for stage, n in zip(stages, lengths, strict=True)]),
        properties,
        tuple(stage.name for stage in stages),
        any(stage.kind == "screen" for stage in stages),
    )


def _properties(stages: Sequence[Stage]) -> tuple[Property, ...]:
    names: dict[str, str] = {}
    for stage in stages:
        for name in stage.rows:
            key = name.partition("|")[0].removeprefix("target_").removeprefix("predicted_")
            if "|" in name or name.startswith(("target_", "predicted_")) or name in KNOWN:
                unit = name.split("|")[3] if name.count("|") == 3 else ""
                names[key] = names.get(key) or unit
    found = []
    for key, unit in names.items():
        values = np.concatenate([value_of(stage, key) for stage in stages])
        finite = values[np.isfinite(values)]
        if len(finite) and not key.endswith(("_class", "_std")) and key != "crystal_system":
            known = KNOWN.get(key)
            spread = float(np.subtract(*np.percentile(finite, [95, 5])))
            found.append(known or Property(in_one_line(key), words(key), in_one_line(unit), _rounded(spread / 10)))
    order = list(KNOWN)
    return tuple(sorted(found, key=lambda p: order.index(p.key) if p.key in order else len(order)))


def value_of(stage: Stage, key: str) -> np.ndarray:
    """What a model says of the crystals; where none was asked, what the Predictor said of their latents."""
    n = len(stage.survived)
    own = numbers_of(stage.rows.get(key), n)
    return own if np.isfinite(own).any() else numbers_of(stage.rows.get(f"predicted_{key}"), n)


def numbers_of(column: np.ndarray | None, n: int) -> np.ndarray:
    return np.full(n, np.nan) if column is None or column.dtype.kind not in "fiub" else column.astype(np.float64)


def texts_of(column: np.ndarray | None, n: int) -> np.ndarray:
    if column is None:
        return np.full(n, "", str)
    return column if column.dtype.kind == "U" else np.array([str(value) for value in column], str)


def groups_of(stages: Sequence[Stage]) -> tuple[tuple[Group, ...], np.ndarray]:
    """Groups by targets; by folder too where two folders share targets or one has none."""
    found: dict[tuple[Any, ...], int] = {}
    members: list[list[tuple[tuple[str, Any], ...]]] = []
    place = []
    for k, stage in enumerate(stages):
        keys, inverse = _keys(stage)
        members.append(keys)
        place.append((k, keys, inverse))
    shared = [key for k, keys in enumerate(members) for key in keys]
    apart = len(stages) > 1 and (len(set(shared)) < len(shared) or () in shared)
    parts = []
    for k, keys, inverse in place:
        codes = [found.setdefault((key, k if apart else 0), len(found)) for key in keys]
        parts.append(np.array(codes, np.int64)[inverse])
    group = np.concatenate(parts)
    groups = []
    for key, k in found:
        targets = dict(key)
        said = ", ".join(_target_words(name, value) for name, value in targets.items()) or "no target"
        if apart and (not targets or shared.count(key) > 1):
            said = f"{said} ({stages[k].name})" if targets else stages[k].name
        groups.append(Group(said[:1].upper() + said[1:] if targets else said, targets))
    # a stable order: by targets, so that colours do not depend on the order of rows
    order = sorted(range(len(groups)), key=lambda g: _sort_key(groups[g]))
    if len(order) > LARGEST_GROUPS:
        sizes = np.bincount(group, minlength=len(groups))
        kept = set(sorted(order, key=lambda g: -sizes[g])[: LARGEST_GROUPS - 1])
        order = [g for g in order if g in kept]
    rank = np.full(len(groups), len(order), np.int64)
    rank[order] = np.arange(len(order))
    ordered = [groups[g] for g in order] + ([Group(_OTHERS, {})] if len(order) < len(groups) else [])
    return tuple(ordered), rank[group]


def _keys(stage: Stage) -> tuple[list[tuple[tuple[str, Any], ...]], np.ndarray]:
    """Different combinations of targets, and which each row has."""
    n = len(stage.survived)
    names = [name for name in stage.rows if name.startswith("target_")]
    code = np.zeros(n, np.int64)
    for name in names:
        unique, inverse = np.unique(stage.rows[name], return_inverse=True)
        code = np.unique(code * len(unique) + inverse, return_inverse=True)[1]
    found, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    keys = []
    for row in first[: len(found)]:
        entry = []
        for name in names:
            value = stage.rows[name][row].item()
            if value != "" and not (isinstance(value, float) and math.isnan(value)):
                entry.append((name.removeprefix("target_"), value if isinstance(value, str) else float(value)))
        keys.append(tuple(entry))
    return keys, inverse


def _sort_key(group: Group) -> tuple[Any, ...]:
    """By target, numbers before text."""
    values = [(name, (1, 0.0, v) if isinstance(v, str) else (0, v, "")) for name, v in group.targets.items()]
    return tuple(values), group.label


def _target_words(name: str, value: float | str) -> str:
    if name == "crystal_system":
        place = system_of_target(value)
        return f"crystal system {SYSTEMS[place] if place is not None else number(value)}"
    if name in KNOWN:
        known = KNOWN[name]
        return f"{known.label.lower()} {number(value)}\N{NO-BREAK SPACE}{known.unit}"
    if name in CLASSES and value in (0.0, 1.0):
        return CLASSES[name] if value else f"not {CLASSES[name]}"
    return f"{words(name).lower()} {number(value)}"


def words(key: str) -> str:
    text = in_one_line(key).replace("_", " ").strip() or "(no name)"
    return text[:1].upper() + text[1:]


def number(value: Any, digits: int = 3) -> str:
    """A number for people: few digits, and a minus that is one."""
    if isinstance(value, str):
        return in_one_line(value)
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}".replace("-", "−") if abs(value) < 1e6 else f"{value:,.0f}".replace("-", "−")


def measured(value: Any, digits: int = 3) -> str:
    """A number that was measured: as `number`, with its last zeros."""
    text = number(value, digits)
    if isinstance(value, str) or not any(c.isdigit() for c in text) or "e" in text or abs(value) >= 1000:
        return text
    return f"{value:#.{digits}g}".replace("-", "−").rstrip(".") if value else "0"


def _rounded(value: float) -> float:
    return float(f"{value:.1g}") if value > 0 else 1e-3


def system_of_target(value: float | str | None) -> int | None:
    """The place in `SYSTEMS` of a label, or of Con-CDVAE's number."""
    if isinstance(value, float) and value.is_integer() and 0 <= value < len(CRYSTAL_SYSTEMS):
        value = CRYSTAL_SYSTEMS[int(value)]
    return SYSTEMS.index(value) if value in SYSTEMS else None
