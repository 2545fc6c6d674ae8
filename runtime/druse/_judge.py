"""What the rules that look at one crystal at a time say of entries."""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from druse._entries import numbers_of
from druse.candidates import Entries
from druse.conditions import crystal_system
from druse.crystals import Crystals
from druse.elements import SYMBOLS, formula_of
from druse.graphs import COINCIDENT, radius_graph
from druse.lattice import parameters_from_cells, plane_spacings, volumes
from druse.properties import PropertyModels
from druse.rules import LONGEST, MODELS, READ, CompositionRule, GeometryRule, PropertyRule, RuleSet, SymmetryRule
from druse.symmetry import space_groups
from druse.validity import compositional_faults

_SECONDS = 10.0  # for the symmetry of one crystal, of milliseconds
COMPUTED = ("formula", "n_atoms", "volume_per_atom", "nearest_distance")
_OURS = ("number", "rule", "reason", "value", "score")
MISSING = "nothing is known of its {}"


def in_results(name: str) -> str:
    """What a column of a source is called where results have columns of their own."""
    return f"source_{name}" if name in _OURS else name


class Verdict(NamedTuple):
    """Why a crystal is refused, in words, and the number that decided; an empty reason refuses nothing."""

    reason: str
    value: float


PASSED = Verdict("", math.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Entries and what was found.

    Attributes:
        entries: with all columns; a refused one keeps no atoms.
        rules: for each entry the name of the rule that refused it; empty where it is still in.
        verdicts: of that rule.
        seconds: by the name of a rule.
    """

    entries: Entries
    rules: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    seconds: Mapping[str, float]

    @classmethod
    def concatenate(cls, parts: Sequence["Judged"]) -> "Judged":
        """One of several, in order."""
        seconds: collections.Counter[str] = collections.Counter()
        for part in parts:
            seconds.update(part.seconds)
        return cls(
            Entries.concatenate(part.entries for part in parts),
            tuple(rule for part in parts for rule in part.rules),
            tuple(verdict for part in parts for verdict in part.verdicts),
            dict(seconds),
        )

    @property
    def alive(self) -> np.ndarray:
        """Places of entries that no rule has refused."""
        return np.flatnonzero([not rule for rule in self.rules])


class Judge:
    """The rules of a set that judge crystals one by one, ready to run."""

    def __init__(self, rules: RuleSet, *, n_threads: int = 1) -> None:
        self._rules = rules
        self._models = open_models(rules, n_threads=n_threads)
        self._predicted = frozenset(column_names(self._models))

    def __call__(self, entries: Entries, *, isolated: bool = False) -> Judged:
        """Judge entries.

        Args:
            entries: any.
            isolated: whether this is a process that may be interrupted by time limits.
        """
        work = _Work(self._rules, self._models, entries, isolated)
        for rule in self._rules.single:
            if isinstance(rule, PropertyRule) and self._predicted & {rule.column, rule.target}:
                work.predict()
            with work.timed(rule.name):
                work.refuse(rule.name, _JUDGES[type(rule)](rule, work))
        work.predict()
        return work.judged()


@functools.lru_cache(maxsize=1)
def judge_of(rules: RuleSet, models: Hashable) -> Judge:  # noqa: ARG001
    """The judge of this process, which stays from one piece to the next while the content of models is the same."""
    return Judge(rules)


def open_models(rules: RuleSet, *, n_threads: int = 1) -> PropertyModels | None:
    """The property models of a set of rules; None if it has none.

    Raises:
        InputError: a model cannot be opened.
    """
    if not (rules.embedded or rules.models):
        return None
    return PropertyModels.open(rules.models, embedded=rules.embedded, n_threads=n_threads)


def column_names(models: PropertyModels | None) -> tuple[str, ...]:
    """The columns that property models give."""
    return () if models is None else tuple(models.columns(Crystals.concatenate([])))


class _Work:
    """Entries on their way through the rules."""

    def __init__(self, rules: RuleSet, models: PropertyModels | None, entries: Entries, isolated: bool) -> None:
        self._models, self._entries = models, entries
        self.isolated = isolated
        n = len(entries)
        self._refused = [READ if failure else "" for failure in entries.failures]
        self._verdicts = [Verdict(failure, math.nan) for failure in entries.failures]
        self.seconds = {READ: entries.seconds, MODELS: 0.0} | {rule.name: 0.0 for rule in rules.single}
        self._columns: dict[str, np.ndarray] = {}
        self._ours: dict[str, None] = {}
        for name, column in entries.columns.items():
            if name not in COMPUTED:
                self._columns[in_results(name)] = column
        self._predicted = models is None
        self.alive = np.flatnonzero(entries.ok)
        crystals = entries.crystals
        n_atoms = crystals.n_atoms
        with np.errstate(divide="ignore", invalid="ignore"):
            self.set("volume_per_atom", np.where(n_atoms > 0, volumes(crystals.cells) / n_atoms, math.nan), range(n))
        self.set("n_atoms", n_atoms.astype(np.float64), range(n))
        bounds = zip(crystals.offsets[:-1], crystals.offsets[1:], strict=True)
        formulas = [formula_of(crystals.species[a:b]) if b > a else "" for a, b in bounds]
        self.set("formula", np.array(formulas, str), range(n))

    @property
    def crystals(self) -> Crystals:
        """Those that are still in."""
        return self._entries.crystals.take(self.alive)

    def number(self, name: str) -> np.ndarray:
        """A column of those that are still in; NaN where nothing is known, or it is no number."""
        column = self._columns.get(name)
        if column is None:  # what the source says, before something that is computed takes its name
            column = self._entries.columns.get(name.removeprefix("source_"))
        return np.full(len(self.alive), math.nan) if column is None else numbers_of(column[self.alive])

    def set(self, name: str, values: Any, places: Any = None) -> None:
        """A column, for those that are still in unless ``places`` says otherwise."""
        values = np.asarray(values)
        text = values.dtype.kind == "U"
        column = np.full(len(self._entries), "" if text else math.nan, object if text else np.float64)
        column[self.alive if places is None else np.asarray(places, np.int64)] = values
        self._columns[name] = column.astype(str) if text else column
        self._ours[name] = None

    def replace(self, name: str, values: Any) -> None:
        """A column that is computed here; what the source says under this name is kept under another."""
        if name in self._entries.columns:
            self._columns.setdefault(f"source_{name}", self._entries.columns[name])
        self.set(name, values)

    def predict(self) -> None:
        """Property models, once, of those that are still in."""
        if self._predicted or self._models is None:
            return
        with self.timed(MODELS):
            self._columns = self._models.kept(self._columns)
            for name, values in self._models.columns(self.crystals).items():
                self.set(name, values)
        self._predicted = True

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Counts the block's seconds."""
        clock = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - clock

    def refuse(self, rule: str, verdicts: Sequence[Verdict]) -> None:
        """Take out those of the crystals that are still in for which there is a reason."""
        stay = np.array([not verdict.reason for verdict in verdicts], bool)
        for place, verdict in zip(self.alive, verdicts, strict=True):
            if verdict.reason:
                self._refused[place], self._verdicts[place] = rule, verdict
        self.alive = self.alive[stay]

    def judged(self) -> Judged:
        """The end."""
        entries = self._entries
        keep = np.zeros(len(entries), bool)
        keep[self.alive] = True
        atoms = np.repeat(keep, entries.crystals.n_atoms)
        n_atoms = np.where(keep, entries.crystals.n_atoms, 0)
        crystals = Crystals(
            entries.crystals.frac[atoms],
            entries.crystals.cells,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(n_atoms)]),
            entries.crystals.species[atoms],
        )
        columns = {name: self._columns[name] for name in self._ours} | self._columns
        return Judged(
            dataclasses.replace(entries, crystals=crystals, columns=columns),
            tuple(self._refused),
            tuple(self._verdicts),
            self.seconds,
        )


def _geometry(rule: GeometryRule, work: _Work) -> list[Verdict]:
    crystals = work.crystals
    nearest = _nearest_distances(crystals)
    owner = np.repeat(np.arange(len(crystals)), crystals.n_atoms)
    least, most = np.full(len(crystals), math.inf), np.zeros(len(crystals))
    np.minimum.at(least, owner, nearest)
    np.maximum.at(most, owner, nearest)
    work.set("nearest_distance", np.where(np.isfinite(least), least, math.nan))
    lengths, angles = parameters_from_cells(crystals.cells)
    volume = volumes(crystals.cells) / np.maximum(crystals.n_atoms, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = lengths.max(axis=1, initial=0) / lengths.min(axis=1, initial=math.inf)
    tests = [
        (rule.min_distance, least, np.less, "atoms closer than {} Å"),
        (rule.max_isolation, most, np.greater, "an atom without a neighbour within {} Å"),
        (rule.min_volume, volume, np.less, "less than {} Å³ for each atom"),
        (rule.max_volume, volume, np.greater, "more than {} Å³ for each atom"),
        (rule.min_height, plane_spacings(crystals.cells).min(axis=1, initial=math.inf), np.less, "a cell below {} Å"),
        (rule.min_angle, angles.min(axis=1, initial=180), np.less, "an angle of the cell below {}°"),
        (rule.max_angle, angles.max(axis=1, initial=0), np.greater, "an angle of the cell above {}°"),
        (rule.max_aspect, aspect, np.greater, "one edge of the cell more than {} times another"),
    ]
    found = [PASSED] * len(crystals)
    for limit, values, outside, text in reversed(tests):
        if limit is not None:
            reason = text.format(f"{limit:g}")
            for b in np.flatnonzero(outside(values, limit)):
                found[b] = Verdict(reason, float(values[b]))
    return found


def _nearest_distances(crystals: Crystals) -> np.ndarray:
    """``[atoms]``: the distance of each atom's nearest neighbour; infinite where it is beyond `LONGEST`."""
    nearest = np.full(len(crystals.species), math.inf)
    cutoff, left = 4.0, np.arange(len(crystals))
    while len(left):
        some = crystals.take(left)
        graph = radius_graph(
            some.frac, some.cells, some.offsets, cutoff=cutoff, max_neighbors=1, shell_tolerance=None, incidence=False
        )
        distance = np.full(len(some.species), math.inf)
        distance[graph.dst] = graph.distance
        owner = np.repeat(np.arange(len(some)), some.n_atoms)
        distance[((graph.status & COINCIDENT) > 0)[owner]] = 0.0
        places = np.repeat(crystals.offsets[:-1][left] - some.offsets[:-1], some.n_atoms) + np.arange(len(owner))
        nearest[places] = distance
        if cutoff >= LONGEST:
            break
        left, cutoff = left[np.unique(owner[~np.isfinite(distance)])], LONGEST
    return nearest


def _composition(rule: CompositionRule, work: _Work) -> list[Verdict]:
    crystals = work.crystals
    faults = compositional_faults(crystals) if rule.neutral else ("",) * len(crystals)
    allowed, required, excluded = (frozenset(symbols) for symbols in (rule.allowed, rule.required, rule.excluded))
    found = []
    for b, fault in enumerate(faults):
        species = crystals.species[crystals.offsets[b] : crystals.offsets[b + 1]]
        symbols = frozenset(SYMBOLS[z - 1] for z in species.tolist())
        found.append(_composition_verdict(rule, symbols, len(species), allowed, required, excluded, fault))
    return found


def _composition_verdict(
    rule: CompositionRule, symbols: frozenset[str], n_atoms: int, allowed: frozenset[str], required: frozenset[str],
    excluded: frozenset[str], fault: str,
) -> Verdict:  # fmt: skip
    for odd, text in (
        (symbols - allowed if allowed else frozenset(), "{} is not allowed"),
        (symbols & excluded, "{} is excluded"),
        (required - symbols, "without {}"),
    ):
        if odd:
            return Verdict(text.format(min(odd)), float(len(odd)))
    for count, low, high, what in (
        (len(symbols), rule.min_elements, rule.max_elements, "elements"),
        (n_atoms, rule.min_atoms, rule.max_atoms, "atoms"),
    ):
        if low is not None and count < low:
            return Verdict(f"fewer than {low} {what}", float(count))
        if high is not None and count > high:
            return Verdict(f"more than {high} {what}", float(count))
    return Verdict(fault, math.nan)


def _property(rule: PropertyRule, work: _Work) -> list[Verdict]:
    values = work.number(rule.column)
    aim = work.number(rule.target) if isinstance(rule.target, str) else np.full(len(values), rule.target or 0.0)
    spread = work.number(f"{rule.column}_std")
    found = []
    for value, target, std in zip(values.tolist(), aim.tolist(), spread.tolist(), strict=True):
        if math.isnan(value):
            found.append(Verdict(MISSING.format(rule.column), math.nan))
        elif rule.min is not None and value < rule.min:
            found.append(Verdict(f"{rule.column} below {rule.min:g}", value))
        elif rule.max is not None and value > rule.max:
            found.append(Verdict(f"{rule.column} above {rule.max:g}", value))
        elif rule.tolerance is not None and math.isnan(target):
            found.append(Verdict(MISSING.format(rule.target), math.nan))
        elif rule.tolerance is not None and abs(value - target) > rule.tolerance:
            found.append(Verdict(f"{rule.column} more than {rule.tolerance:g} from the target", value))
        elif rule.max_std is not None and not std <= rule.max_std:
            what = "from one model only" if math.isnan(std) else f"uncertain by more than {rule.max_std:g}"
            found.append(Verdict(f"{rule.column} {what}", std))
        else:
            found.append(PASSED)
    return found


def _symmetry(rule: SymmetryRule, work: _Work) -> list[Verdict]:
    groups = space_groups(
        work.crystals, method=rule.method, symprec=rule.symprec, angle_tolerance=rule.angle_tolerance,
        seconds=_SECONDS if work.isolated else None,
    )  # fmt: skip
    numbers = groups.numbers.tolist()
    systems = [crystal_system(number) if number else "" for number in numbers]
    work.replace("spacegroup", np.where(groups.numbers > 0, groups.numbers, math.nan).astype(np.float64))
    work.replace("crystal_system", np.array(systems, str))
    found = []
    for number, system, failure in zip(numbers, systems, groups.failures, strict=True):
        if failure:
            found.append(Verdict(f"no space group: {failure}", math.nan))
        elif rule.space_groups and number not in rule.space_groups:
            found.append(Verdict("another space group", float(number)))
        elif rule.crystal_systems and system not in rule.crystal_systems:
            found.append(Verdict(f"{system}", float(number)))
        elif rule.min_space_group is not None and number < rule.min_space_group:
            found.append(Verdict(f"a space group below {rule.min_space_group}", float(number)))
        else:
            found.append(PASSED)
    return found


_JUDGES: dict[type, Callable[[Any, _Work], list[Verdict]]] = {
    GeometryRule: _geometry,
    CompositionRule: _composition,
    PropertyRule: _property,
    SymmetryRule: _symmetry,
}
