"""Novelty of 2,000 structures against the training set of MP-20: what each filter leaves, and seconds.

Run ``python benchmarks/novelty.py`` for figures, ``--check`` to compare with all pairs of one formula, of which
StructureMatcher is asked as anyone would, cells as they came. Pairs of other formulas it refuses by its first
comparison, that of fractional compositions, before it looks at a cell, so that the check is that of all pairs.

The structures are the validation set, which has other formulas, and for the rest crystals of the training set made
hard: strained by up to a quarter, displaced by up to 0.4 of (V / N)^(1/3), doubled, in a skewed cell, turned or
mirrored, in another order; half of them only a little.
"""

import argparse
import collections
import time
import warnings
from pathlib import Path

import numpy as np

from druse._fingerprints import as_structure
from druse._matching import formulas, matcher
from druse._processes import Processes
from druse.candidates import Entries, read_entries
from druse.crystals import Crystals
from druse.duplicates import duplicates
from druse.lattice import volumes
from druse.novelty import Reference, known

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mp20"
SKEW = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]])


def changed(crystal: Crystals, rng: np.random.Generator) -> Crystals:
    """Another crystal that may still be the same."""
    frac, cell, species = crystal.frac, crystal.cells[0], crystal.species
    gentle = rng.random() < 0.5
    size = (volumes(crystal.cells)[0] / len(species)) ** (1 / 3)
    strain = rng.uniform(-1, 1, (3, 3)) * (0.05 if gentle else 0.25) * rng.random()
    moves = rng.normal(size=frac.shape)
    moves *= (0.1 if gentle else 0.4) * size * rng.random() / np.linalg.norm(moves, axis=1)[:, None]
    frac = frac + moves @ np.linalg.inv(cell)
    if rng.random() < 0.3:
        frac = np.concatenate([frac / [2, 1, 1], frac / [2, 1, 1] + [0.5, 0, 0]])
        cell, species = cell * [[2], [1], [1]], np.tile(species, 2)
    if rng.random() < 0.5:
        frac, cell = frac @ np.linalg.inv(SKEW), SKEW @ cell
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(len(species))
    cell = cell @ (np.eye(3) + (strain + strain.T) / 2) @ turn
    return Crystals((frac[order] + rng.random(3)) % 1, cell[None], np.array([0, len(order)]), species[order])


def brute_force(work: tuple[Crystals, Crystals]) -> int:
    """The first of others that is the same; StructureMatcher is asked of each pair, cells as they came."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = as_structure(work[0])
        return next((k for k, old in enumerate(work[1]) if matcher().fit(as_structure(old), new)), -1)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.csv.gz and val.csv.gz")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="structures to add, of any source")
    parser.add_argument("--structures", type=int, default=2000, help="before those to add")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare with brute force")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def stage(name: str) -> None:
        nonlocal start
        seconds[name] = time.perf_counter() - start
        start = time.perf_counter()

    reference = Reference.open(args.data / "train.csv.gz", n_jobs=args.jobs)
    stage("reading the reference")
    others = Entries.concatenate(read_entries([args.data / "val.csv.gz", *args.also], n_jobs=args.jobs)).crystals
    n_copies = max(0, args.structures - len(others))
    copies = (changed(reference.crystals[b], rng) for b in rng.choice(len(reference), n_copies))
    crystals = Crystals.concatenate([others, *copies])
    stage("making the structures")
    with Processes(args.jobs, purpose="comparing with known crystals") as processes:
        of_crystal = formulas(crystals)
        touched = [reference.places(formula) for formula in set(of_crystal)]
        reference.primitives(np.concatenate(touched), processes)
        stage("primitive cells of the reference")
        found = known(crystals, reference, processes=processes)
        stage("the structures")
        print(f"{len(crystals)} structures, {len(reference)} references, {args.jobs} processes")
        print(f"{(found.match >= 0).sum()} known, {(found.match == -1).sum()} new, {(found.match == -2).sum()} neither")
        for name, pairs in found.pairs.items():
            print(f"{pairs:>12,} pairs: {name}")
        print(f"{found.pairs['all'] / max(found.calls, 1):,.0f} times fewer calls than brute force")
        first = duplicates(crystals, processes=processes)
        stage("their duplicates, for comparison")
        print(f"{len(np.unique(first[first >= 0]))} different ones among them")
        for name, value in seconds.items():
            print(f"{value:>8.1f} s {name}")
        if args.check:
            start = time.perf_counter()
            places = [reference.places(formula) for formula in of_crystal]
            works = ((crystal, reference.crystals.take(near)) for crystal, near in zip(crystals, places, strict=True))
            counts: collections.Counter[str] = collections.Counter()
            for b, place in enumerate(processes.map(brute_force, works)):
                match = places[b][place] if place >= 0 else -1
                counts["as found" if match == found.match[b] else f"structure {b}: {match}, not {found.match[b]}"] += 1
            print(f"brute force, {time.perf_counter() - start:.1f} s: {dict(counts)}")


if __name__ == "__main__":
    main()
