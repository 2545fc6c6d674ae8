"""Which crystals of a batch are the same one, by pymatgen's StructureMatcher."""

import collections
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from druse._arrays import Int64
from druse._dependencies import require
from druse._fingerprints import as_structure
from druse._processes import Processes, time_limit
from druse.crystals import Crystals
from druse.validity import TOO_CLOSE, structural_faults

__all__ = ["duplicates"]

_BLOCK = 32
_SECONDS = 60.0  # for one reduction, or one comparison, of milliseconds


class _Member(NamedTuple):
    """A crystal in its primitive cell, and its place in the batch."""

    place: int
    crystal: Crystals


def duplicates(
    crystals: Crystals,
    *,
    processes: Processes | None = None,
    n_jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Int64[np.ndarray, "crystals"]:
    """For each crystal the first one of the batch that is the same; its own place where it is the first.

    The same are crystals of one reduced formula whose primitive cells have as many atoms and that StructureMatcher
    (ltol 0.2, stol 0.3, angle_tol 5; Ong et al., Comput. Mater. Sci. 68, 314, 2013) fits to one another. So a supercell
    is the same as its crystal, and volume does not count. Each is compared with the first of each group. Time grows
    with the square of the different crystals of one formula, a millisecond or two for a pair.

    Args:
        crystals: any batch.
        processes: that do the work; None starts ``n_jobs``, 0 for every core.
        n_jobs: see `processes`.
        progress: called with crystals done and crystals in all.

    Returns:
        Places in the batch; -1 for a crystal that cannot be compared, being none or too much for the matcher.

    Raises:
        MissingDependencyError: pymatgen is not installed.
    """
    require("pymatgen.core", purpose="finding duplicates", extra="evaluate")
    if processes is None:
        with Processes(n_jobs, purpose="finding duplicates") as own:
            return duplicates(crystals, processes=own, progress=progress)
    first = np.full(len(crystals), -1, np.int64)
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, len(crystals))

    several, single = _by_formula(crystals)
    first[single] = single
    count(len(crystals) - sum(map(len, several)))
    seconds = _SECONDS if processes.isolated else None
    buckets: dict[tuple[int, int], list[_Member]] = collections.defaultdict(list)
    places = [(k, b) for k, bucket in enumerate(several) for b in bucket]
    reduced = processes.map(_primitive, ((crystals[b], seconds) for _, b in places), killed=lambda _: None)
    for (k, b), primitive in zip(places, reduced, strict=True):
        if primitive is not None:
            buckets[k, len(primitive.species)].append(_Member(b, primitive))
    count(len(places) - sum(map(len, buckets.values())))
    blocks = [members[k : k + _BLOCK] for members in buckets.values() for k in range(0, len(members), _BLOCK)]
    works = (([member.crystal for member in block], seconds) for block in blocks)
    found = processes.map(_within, works, killed=lambda work: [-1] * len(work[0]))
    for block, firsts in zip(blocks, found, strict=True):
        for member, k in zip(block, firsts, strict=True):
            first[member.place] = block[k].place if k >= 0 else -1
        count(len(block))
    for members in buckets.values():
        if len(members) > _BLOCK:
            _merge(members, first, processes)
    return first


def _by_formula(crystals: Crystals) -> tuple[list[list[int]], list[int]]:
    """Places of crystals that share a reduced formula, and of those that share it with none."""
    found: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for b, (crystal, fault) in enumerate(zip(crystals, structural_faults(crystals), strict=True)):
        if fault in ("", TOO_CLOSE):
            numbers, counts = np.unique(crystal.species, return_counts=True)
            found[*numbers.tolist(), *(counts // math.gcd(*counts.tolist())).tolist()].append(b)
    return [b for b in found.values() if len(b) > 1], [b[0] for b in found.values() if len(b) == 1]


def _merge(members: list[_Member], first: np.ndarray, processes: Processes) -> None:
    """Groups of one block become those of blocks before it where the first ones of both are the same."""
    seconds = _SECONDS if processes.isolated else None
    heads: list[_Member] = []
    for start in range(0, len(members), _BLOCK):
        new = [member for member in members[start : start + _BLOCK] if first[member.place] == member.place]
        parts = [part for k in range(processes.n_jobs) if (part := heads[k :: processes.n_jobs])]
        works = (([n.crystal for n in new], [old.crystal for old in part], seconds) for part in parts)
        found = processes.map(_across, works, killed=lambda work: [-1] * len(work[0]))
        for part, matches in zip(parts, found, strict=True):
            for member, k in zip(new, matches, strict=True):
                if k >= 0:
                    first[member.place] = min(first[member.place], part[k].place)
        heads += [member for member in new if first[member.place] == member.place]
    for member in members:
        if first[member.place] >= 0:
            first[member.place] = first[first[member.place]]


@functools.cache
def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)


def _primitive(work: tuple[Crystals, float | None]) -> Crystals | None:
    """A crystal in its primitive cell, as StructureMatcher reduces it; None where it cannot be had."""
    crystal, seconds = work
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = as_structure(crystal).get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
            species = np.array(found.atomic_numbers, np.int32)
            return Crystals(found.frac_coords, found.lattice.matrix[None], np.array([0, len(species)]), species)
    except Exception:
        return None


def _within(work: tuple[list[Crystals], float | None]) -> list[int]:
    """For each crystal of a block the first one of the block that is the same."""
    structures = [as_structure(crystal) for crystal in work[0]]
    heads: list[int] = []
    found = []
    for b, structure in enumerate(structures):
        found.append(next((h for h in heads if _same(structures[h], structure, work[1])), b))
        if found[b] == b:
            heads.append(b)
    return found


def _across(work: tuple[list[Crystals], list[Crystals], float | None]) -> list[int]:
    """For each crystal of a block the first one of others that is the same, or -1."""
    new, old = ([as_structure(crystal) for crystal in side] for side in work[:2])
    return [next((k for k, head in enumerate(old) if _same(head, one, work[2])), -1) for one in new]


def _same(a: Any, b: Any, seconds: float | None) -> bool:
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(_matcher().fit(a, b, skip_structure_reduction=True))
    except Exception:  # what cannot be compared is not the same
        return False
