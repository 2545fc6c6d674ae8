"""The numbers behind a report's charts and tables: groups of crystals by what was asked, and what became of it."""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from druse._manifest import in_one_line
from druse._population import (
    CLASSES,
    SYSTEMS,
    Group,
    Population,
    Property,
    number,
    system_of_target,
    words,
)
from druse.conditions import crystal_system
from druse.evaluate import Share

_POINTS = 3000
_BINS = (20, 60)
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Series(msgspec.Struct, frozen=True):
    """A group in a histogram; numbers beyond the axis are counted apart."""

    group: int
    counts: list[int]
    survivors: list[int] | None
    target: float | None
    n: int
    below: int
    above: int
    mean: float
    std: float
    median: float


class Histogram(msgspec.Struct, frozen=True):
    """Counts of a property by group, in bins that all share."""

    key: str
    label: str
    unit: str
    edges: list[float]
    series: list[Series]
    reference: list[int] | None = None


class Hit(msgspec.Struct, frozen=True):
    """How many of a group have what was asked."""

    group: int
    what: str
    target: str
    window: str
    count: int
    total: int
    low: float
    high: float
    mean: float | None = None
    deviation: float | None = None

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.count / self.total if self.total else math.nan


class Systems(msgspec.Struct, frozen=True):
    """Crystal systems of a group: counts in the order of `SYSTEMS`; ``target`` is the place of the one asked for."""

    group: int
    counts: list[int]
    total: int
    target: int | None


class Points(msgspec.Struct, frozen=True):
    """Points of a scatter plot: a sample of ``total`` rows."""

    axes: list[Property]
    values: dict[str, list[float | None]]
    group: list[int]
    ids: list[str]
    total: int


def _axis(values: np.ndarray, targets: Sequence[float]) -> np.ndarray:
    """Edges of equal bins with a round width, around nearly all values and every target."""
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min(float(low), *targets, math.inf), max(float(high), *targets, -math.inf)
    if high - low < 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / min(max(3 * math.sqrt(len(values)), _BINS[0]), _BINS[1])
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(step for step in _STEPS if step * power >= raw * 0.999) * power
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    if last * width <= high:
        last += 1
    return np.round(np.arange(first, last + 1) * width, 12)


def histogram(
    spec: Property,
    values: np.ndarray,
    group: np.ndarray,
    groups: Sequence[Group],
    *,
    survived: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> Histogram | None:
    """Counts in bins; None where there are no numbers.

    Args:
        spec: what it is of.
        values: ``[rows]``; those that are not finite count nowhere.
        group: ``[rows]``.
        groups: that ``group`` points to.
        survived: ``[rows]`` to count those apart too.
        reference: values of other crystals.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    targets = [t for g in groups if isinstance(t := g.targets.get(spec.key), float)]
    edges = _axis(values[finite], targets)
    series = []
    for g, one in enumerate(groups):
        own = values[finite & (group == g)]
        if not len(own):
            continue
        target = one.targets.get(spec.key)
        series.append(
            Series(
                g,
                np.histogram(own, edges)[0].tolist(),
                None if survived is None else np.histogram(values[finite & (group == g) & survived], edges)[0].tolist(),
                target if isinstance(target, float) else None,
                len(own),
                int((own < edges[0]).sum()),
                int((own > edges[-1]).sum()),
                float(own.mean()),
                float(own.std()),
                float(np.median(own)),
            )
        )
    other = None
    if reference is not None and np.isfinite(reference).any():
        other = np.histogram(reference[np.isfinite(reference)], edges)[0].tolist()
    return Histogram(spec.key, spec.label, spec.unit, edges.tolist(), series, other)


def hits(population: Population, windows: Mapping[str, float]) -> list[Hit]:
    """For each group and target, the share that has it; and all targets at once where there are several."""
    found = []
    by_key = {spec.key: spec for spec in population.properties}
    for g, group in enumerate(population.groups):
        member, met = population.group == g, []
        for name, target in group.targets.items():
            if name in by_key and isinstance(target, float):
                spec, values = by_key[name], population.of(name)
                window = windows.get(name, spec.window)
                known, off = member & np.isfinite(values), np.abs(values - target)
                inside = known & (off <= window * (1 + 1e-12))
                met.append((known, inside))
                text = f"± {number(window)} {spec.unit}".strip()
                asked = f"{number(target)} {spec.unit}".strip()
                if known.any():
                    found.append(
                        _hit(g, spec.label, asked, text, known, inside, values[known].mean(), off[known].mean())
                    )
            elif name.endswith("_class") and isinstance(target, float):
                values = population.of(name)
                known = member & np.isfinite(values)
                inside = known & ((values > 0.5) == (target > 0.5))
                met.append((known, inside))
                if known.any():
                    asked = CLASSES.get(name, "class 1")
                    asked = asked if target > 0.5 else f"not {asked}"
                    found.append(_hit(g, words(name), asked, "P > 0.5", known, inside))
        if len(met) > 1:
            known, inside = (np.logical_and.reduce([pair[k] for pair in met]) for k in (0, 1))
            if known.any():
                found.append(_hit(g, "all of these", "", "", known, inside))
    return found


def _hit(
    g: int,
    what: str,
    target: str,
    window: str,
    known: np.ndarray,
    inside: np.ndarray,
    mean: float | None = None,
    off: float | None = None,
) -> Hit:
    share = Share(int(inside.sum()), int(known.sum()))
    low, high = share.interval()
    deviation = None if off is None else float(off)
    return Hit(
        g, what, target, window, share.count, share.total, low, high, None if mean is None else float(mean), deviation
    )


def classes(population: Population) -> dict[str, list[tuple[int, Share]]]:
    """For each classifier, the share of class 1 in each group."""
    found: dict[str, list[tuple[int, Share]]] = {}
    for name in population.columns:
        if name.endswith("_class") and not name.startswith(("target_", "predicted_", "condition_")):
            values = population.of(name)
            for g in range(len(population.groups)):
                known = np.isfinite(values) & (population.group == g)
                if known.any():
                    share = Share(int((values[known] > 0.5).sum()), int(known.sum()))
                    found.setdefault(name, []).append((g, share))
    return found


def systems(population: Population) -> list[Systems]:
    """Crystal systems by group, as far as they are known."""
    column = population.columns.get("crystal_system")
    if column is None or column.dtype.kind != "U":
        numbers = population.of("spacegroup")
        known = {n: _system_of(int(n)) for n in np.unique(numbers[np.isfinite(numbers)])}
        column = np.array([known.get(n, "") for n in numbers.tolist()], str)
    found = []
    for g, group in enumerate(population.groups):
        own = column[population.group == g]
        counts = [int((own == system).sum()) for system in SYSTEMS]
        if sum(counts):
            target = system_of_target(group.targets.get("crystal_system"))
            found.append(Systems(g, counts, sum(counts), target))
    return found


def _system_of(space_group: int) -> str:
    return crystal_system(space_group) if 1 <= space_group <= 230 else ""


def points(population: Population) -> Points | None:
    """A scatter plot of every pair of properties; None where there are not two axes to have."""
    axes = list(population.properties)
    for key, label in (("n_atoms", "Atoms in the cell"), ("score", "Score"), ("cost", "Cost of the latent")):
        values = population.of(key)
        if np.isfinite(values).any():
            axes.append(Property(key, label, "", 0.0))
    if len(axes) < 2 or not population.properties:
        return None
    first = population.of(axes[0].key)
    usable = np.flatnonzero(np.isfinite(first))
    chosen = sample(usable)
    return Points(
        axes,
        {axis.key: [short(v) for v in population.of(axis.key)[chosen]] for axis in axes},
        population.group[chosen].tolist(),
        [in_one_line(name) for name in population.ids[chosen]],
        len(usable),
    )


def sample(rows: np.ndarray) -> np.ndarray:
    """At most 3,000 of them, evenly taken."""
    return rows if len(rows) <= _POINTS else rows[np.linspace(0, len(rows) - 1, _POINTS).astype(np.int64)]


def short(value: float) -> float | None:
    """In the digits that a chart can show; None for what is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
