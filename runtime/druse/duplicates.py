"""Which crystals of a batch are the same one, by pymatgen's StructureMatcher."""

import collections
from collections.abc import Callable, Iterator

import numpy as np

from druse._arrays import Int64
from druse._dependencies import require
from druse._mappings import may_lie
from druse._matching import Counted, Formula, Primitives, first_fits, formulas, groups, primitives_of
from druse._processes import Processes
from druse.crystals import Crystals

__all__ = ["duplicates"]

_BLOCK = 32


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
    is the same as its crystal, and volume does not count. Each is compared with the first of each group, in order; what
    the matcher provably refuses it is not asked (``docs/novelty.md``). Time grows with the square of the different
    crystals of one formula, some tenths of a millisecond for a pair.

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

    by_formula: dict[Formula, list[int]] = collections.defaultdict(list)
    for b, formula in enumerate(formulas(crystals)):
        by_formula[formula].append(b)
    by_formula.pop((), None)
    single = [members[0] for members in by_formula.values() if len(members) == 1]
    several = [members for members in by_formula.values() if len(members) > 1]
    first[single] = single
    count(len(crystals) - sum(map(len, several)))
    places = np.array([b for members in several for b in members], np.int64)
    primitives = primitives_of(crystals.take(places), processes)
    buckets: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    formula_of = np.repeat(np.arange(len(several)), [len(members) for members in several])
    for row, (k, n_atoms) in enumerate(zip(formula_of.tolist(), primitives.crystals.n_atoms.tolist(), strict=True)):
        if n_atoms:
            buckets[k, n_atoms].append(row)
    count(len(places) - sum(map(len, buckets.values())))
    rows = _first_rows(list(buckets.values()), primitives, processes, count)
    first[places] = np.where(rows >= 0, places[rows], -1)
    return first


def _first_rows(
    buckets: list[list[int]], primitives: Primitives, processes: Processes, counted: Counted
) -> Int64[np.ndarray, "rows"]:
    """For each row that is in a bucket the first one of the bucket that is the same."""
    first = np.full(len(primitives.crystals), -1, np.int64)
    heads: list[list[int]] = [[] for _ in buckets]
    for start in range(0, max(map(len, buckets), default=0), _BLOCK):
        blocks = {k: bucket[start : start + _BLOCK] for k, bucket in enumerate(buckets) if len(bucket) > start}
        pairs = (pair for k, block in blocks.items() for new in block for pair in _pair(new, heads[k], primitives))
        failed = set()
        for (new, olds), found in first_fits(pairs, processes):
            if found.place >= 0:
                first[new] = olds[found.place]
            elif found.place == -2:
                failed.add(new)
        left = {k: [new for new in block if first[new] < 0 and new not in failed] for k, block in blocks.items()}
        batches = (primitives.crystals.take(rows) for rows in left.values())
        for (k, rows), within in zip(left.items(), groups(batches, processes), strict=True):
            if within is None:
                _one_by_one(rows, first, primitives, processes)
            else:
                first[rows] = [rows[place] if place >= 0 else -1 for place in within]
            heads[k] += [row for row in rows if first[row] == row]
            counted(len(blocks[k]))
    return first


def _pair(
    new: int, olds: list[int], primitives: Primitives
) -> Iterator[tuple[tuple[int, np.ndarray], Crystals, Crystals]]:
    """A crystal with those of others that its lattice does not refuse at once; nothing where there are none."""
    rows = np.array(olds, np.int64)
    near = rows[may_lie(primitives.minima[rows], primitives.edges[new])]
    if len(near):
        yield (new, near), primitives.crystals[new], primitives.crystals.take(near)


def _one_by_one(rows: list[int], first: np.ndarray, primitives: Primitives, processes: Processes) -> None:
    """What `groups` does, so that a crystal that kills a process harms only itself."""
    heads: list[int] = []
    for new in rows:
        first[new] = new
        for (_, olds), found in first_fits(_pair(new, heads, primitives), processes):
            if found.place != -1:
                first[new] = olds[found.place] if found.place >= 0 else -1
        if first[new] == new:
            heads.append(new)
