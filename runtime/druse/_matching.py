"""Which crystals are the same one, by pymatgen's StructureMatcher; it is asked of as few pairs as can be.

Two crystals of one reduced formula are compared in their primitive cells, which must have as many atoms, and only where
`_mappings` does not refuse them. What is left is the answer of ``StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)``,
``fit(earlier, later)``, which reduces crystals by the same two calls and is not quite symmetric.
"""

import collections
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from druse._arrays import Float64
from druse._fingerprints import as_structure
from druse._mappings import ANGLE_TOL, LTOL, STOL, Primitive, edges, minima, refused_by
from druse._processes import Processes, time_limit
from druse._workable import unworkable
from druse.crystals import Crystals
from druse.validity import TOO_CLOSE, structural_faults

Formula: TypeAlias = tuple[int, ...]
Counted: TypeAlias = Callable[[int], None]
Key = TypeVar("Key")

_SECONDS = 60.0  # for one reduction, or one comparison, of milliseconds


@dataclasses.dataclass(frozen=True, eq=False)
class Primitives:
    """Crystals in primitive cells, as StructureMatcher reduces them.

    Attributes:
        crystals: without atoms where there is no such cell.
        minima: of each lattice, see `druse._mappings.minima`.
    """

    crystals: Crystals
    minima: Float64[np.ndarray, "crystals 3"]

    @functools.cached_property
    def edges(self) -> Float64[np.ndarray, "crystals 3"]:
        """Of each cell, see `druse._mappings.edges`."""
        return edges(self.crystals)

    @classmethod
    def concatenate(cls, parts: Iterable["Primitives"]) -> "Primitives":
        """One batch of several, in order."""
        found = list(parts)
        return cls(
            Crystals.concatenate(part.crystals for part in found),
            np.concatenate([np.zeros((0, 3)), *(part.minima for part in found)]),
        )


class Found(NamedTuple):
    """What came of comparing a crystal with others.

    Attributes:
        place: of the first one that is the same; -1 for none; -2 for none, where one could not be compared.
        lying: pairs whose lattices lie on one another, up to that place.
        calls: pairs of which StructureMatcher was asked.
    """

    place: int
    lying: int
    calls: int


def formulas(crystals: Crystals) -> list[Formula]:
    """Of each crystal the elements and their counts without common divisor; empty for what is no crystal."""
    found = []
    for start, stop, fault in zip(
        crystals.offsets[:-1], crystals.offsets[1:], structural_faults(crystals), strict=True
    ):
        numbers, counts = np.unique(crystals.species[start:stop], return_counts=True)
        good = fault in ("", TOO_CLOSE)
        found.append((*numbers.tolist(), *(counts // math.gcd(*counts.tolist())).tolist()) if good else ())
    return found


def primitives_of(crystals: Crystals, processes: Processes, counted: Counted = lambda _: None) -> Primitives:
    """Primitive cells, some milliseconds each.

    Args:
        crystals: good ones.
        processes: that do the work.
        counted: called with 1 for each that is done.
    """
    seconds = _limit(processes)
    cells, lengths = [], []
    for result in processes.map(_reduce, ((crystal, seconds) for crystal in crystals), killed=lambda _: None):
        cell, shortest = result or (_NONE, np.zeros(3))
        cells.append(cell)
        lengths.append(shortest)
        counted(1)
    return Primitives(Crystals.concatenate(cells), np.array(lengths).reshape(-1, 3))


def first_fits(pairs: Iterable[tuple[Key, Crystals, Crystals]], processes: Processes) -> Iterator[tuple[Key, Found]]:
    """For crystals, each with others, the first one of these that is the same.

    Args:
        pairs: a name for the result, the crystal, the others: all three in primitive cells of one composition.
        processes: that do the work.
    """
    seconds = _limit(processes)
    keys: collections.deque[Key] = collections.deque()

    def works() -> Iterator[_Work]:
        for key, new, olds in pairs:
            keys.append(key)
            yield _Work(new, olds, seconds)

    for found in processes.map(_first_fit, works(), killed=lambda _: Found(-2, 0, 0)):
        yield keys.popleft(), found


def groups(batches: Iterable[Crystals], processes: Processes) -> Iterator[list[int] | None]:
    """For each crystal of a batch the first one of the batch that is the same, each compared with such first ones.

    Args:
        batches: each in primitive cells of one composition.
        processes: that do the work, one a batch.

    Returns:
        For each batch places in it, -1 for a crystal that cannot be compared; None for one that killed a process.
    """
    seconds = _limit(processes)
    return processes.map(_groups, ((batch, seconds) for batch in batches), killed=lambda _: None)


@functools.cache
def matcher() -> Any:
    """StructureMatcher with the paper's tolerances."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=LTOL, stol=STOL, angle_tol=ANGLE_TOL)


class _Work(NamedTuple):
    """See `first_fits`; seconds for a pair."""

    new: Crystals
    olds: Crystals
    seconds: float | None


def _limit(processes: Processes) -> float | None:
    return _SECONDS if processes.isolated else None


def _first_fit(work: _Work) -> Found:
    return _first(Primitive.each(work.new)[0], Primitive.each(work.olds), work.seconds)


def _groups(work: tuple[Crystals, float | None]) -> list[int]:
    sides = Primitive.each(work[0])
    heads: list[int] = []
    found = []
    for b, side in enumerate(sides):
        place = _first(side, (sides[head] for head in heads), work[1]).place
        found.append(heads[place] if place >= 0 else b if place == -1 else -1)
        if found[b] == b:
            heads.append(b)
    return found


def _first(new: Primitive, olds: Iterable[Primitive], seconds: float | None) -> Found:
    """The first one of others that is the same."""
    place, lying, calls = -1, 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, old in enumerate(olds):
            try:
                with time_limit(seconds):
                    refused = refused_by(old, new)
                    lying += refused != "mappings"
                    if refused:
                        continue
                    calls += 1
                    if matcher().fit(old.structure, new.structure, skip_structure_reduction=True):
                        return Found(k, lying, calls)
            except Exception:  # of the matcher, or it takes too long
                place = -2
    return Found(place, lying, calls)


_NONE = Crystals(np.zeros((0, 3)), np.zeros((1, 3, 3)), np.array([0, 0]), np.zeros(0, np.int32))


def _reduce(work: tuple[Crystals, float | None]) -> tuple[Crystals, np.ndarray] | None:
    """A crystal in its primitive cell and the minima of its lattice; None where it cannot be had."""
    crystal, seconds = work
    if unworkable(crystal):
        return None
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = as_structure(crystal).get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
            species = np.array(found.atomic_numbers, np.int32)
            cell = Crystals(found.frac_coords, found.lattice.matrix[None], np.array([0, len(species)]), species)
            return cell, minima(cell)
    except Exception:
        return None
