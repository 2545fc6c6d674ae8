"""The periodic radius graph beside five other neighbour lists: 256 crystals of 8 to 12 atoms at 7 Angstrom, K = 20.

Run ``python benchmarks/graph.py`` with the ``bench`` extra installed. Every contender is timed once in each round, in
rotating order, and the medians are compared. The others find all pairs within the cutoff; the graph needs the K nearest
of each atom, so choosing these from their lists is timed apart, in a column of its own.
"""

import argparse
import csv
import dataclasses
import gc
import gzip
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table

from druse import Graph, _native, radius_graph
from druse.graphs import SHELL_TOLERANCE, Mode

Array = np.ndarray[Any, Any]
Lists = list[tuple[Array, Array, Array, Array]]  # for each crystal: centres, neighbours, shifts, distances
Times = dict[str, tuple[list[float], list[float]]]  # for each contender: milliseconds of edges and of K nearest

CUTOFF, K, N_CRYSTALS = 7.0, 20, 256
ROUNDING = 1e-5  # Angstrom; pairs this near the cutoff may be on either side of it, float32 positions included
COINCIDENT = 1e-8  # Angstrom; what pymatgen calls an atom and itself
SLOW = 1.0  # seconds; a contender that takes longer is timed once
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mp20" / "train.csv.gz"
PACKAGES = ["druse", "numpy", "vesin", "matscipy", "pymatgen", "ase", "nvalchemi-toolkit-ops", "warp-lang", "torch"]
ENVIRONMENT = {
    # Memory stays with the process, or page faults would be half of what a contender with large arrays shows.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True)
class Batch:
    structures: list[Any]
    cells: Array
    frac: Array
    offsets: Array

    @property
    def crystals(self) -> list[tuple[Array, Array, Array]]:
        """Of each crystal the cell, the fractional and the Cartesian coordinates."""
        each = zip(self.cells, np.split(self.frac, self.offsets[1:-1]), strict=True)
        return [(cell, frac, np.ascontiguousarray(frac @ cell)) for cell, frac in each]

    def search_box(self) -> Array:
        """How many images of each cell a box around the cutoff sphere has."""
        heights = 1 / np.linalg.norm(np.linalg.inv(self.cells), axis=1)
        return np.asarray(np.prod(2 * np.ceil(CUTOFF / heights) + 1, axis=1))


@dataclasses.dataclass(frozen=True)
class Contender:
    """``find`` is timed as edges and ``select`` as K nearest; ``count`` tells the pairs of each crystal."""

    name: str
    find: Callable[[], Any]
    count: Callable[[Any], Array]
    select: Callable[[Any], tuple[Array, ...]] | None = None


def read_batch(data: Path) -> Batch:
    from pymatgen.core import Structure

    structures = []
    with gzip.open(data, "rt") as file:
        for row in csv.DictReader(file):
            n_atoms = len(row["cif"].partition("_atom_site_occupancy")[2].strip().splitlines())
            if not 8 <= n_atoms <= 12:
                continue
            reduced = Structure.from_str(row["cif"], fmt="cif").get_reduced_structure()
            if 8 <= len(reduced) <= 12:
                structures.append(
                    Structure(reduced.lattice, reduced.species, reduced.frac_coords % 1.0 % 1.0)
                )  # -1e-17 % 1.0 is 1.0
            if len(structures) == N_CRYSTALS:
                break
    return Batch(
        structures,
        np.stack([s.lattice.matrix for s in structures]),
        np.concatenate([s.frac_coords for s in structures]),
        np.cumsum([0, *map(len, structures)]),
    )


def druse(batch: Batch) -> Iterator[Contender]:
    def contender(name: str, max_neighbors: int | None, mode: Mode, n_threads: int, **options: Any) -> Contender:
        def find() -> Graph:
            return radius_graph(
                batch.frac, batch.cells, batch.offsets,
                cutoff=CUTOFF, max_neighbors=max_neighbors, mode=mode, n_threads=n_threads, **options,
            )  # fmt: skip

        return Contender(name, find, lambda graph: graph.counts)

    edges: dict[str, Any] = {"symmetrise": "none", "incidence": False}
    yield contender("druse exact", K, "exact", 1, **edges)
    yield contender("druse exact, 2 threads", K, "exact", 2, **edges)
    yield contender("druse upstream (27 images)", K, "upstream", 1, **edges)
    yield contender("druse upstream (27 images), 2 threads", K, "upstream", 2, **edges)
    yield contender("druse exact + union + incidence", K, "exact", 1, symmetrise="union", incidence=True)
    yield contender("druse exact, all pairs", None, "exact", 1, **edges)


def nearest(batch: Batch, lists: Lists, with_self: bool = False) -> tuple[Array, ...]:
    """The K nearest neighbours of every atom and the rest of their shell, from a list of all pairs."""
    start = np.repeat(batch.offsets[:-1], [len(pairs[0]) for pairs in lists])
    centre, neighbour, shift, distance = (np.concatenate(column) for column in zip(*lists, strict=True))
    centre, neighbour = centre.astype(np.int64) + start, neighbour.astype(np.int64) + start
    row, in_row = centre, distance
    if np.any(np.diff(centre) < 0):
        order = np.argsort(centre.astype(np.uint16), kind="stable")  # a radix sort, for 16 bits
        row, in_row = centre[order], distance[order]
    degree = np.bincount(row, minlength=len(batch.frac))
    table = np.full((len(degree), degree.max()), np.inf)
    table[row, np.arange(len(row)) - (np.cumsum(degree) - degree)[row]] = in_row
    keep = distance <= farthest(table, K + with_self)[centre]
    if with_self:
        keep &= distance > COINCIDENT
    return centre[keep], neighbour[keep], shift[keep], distance[keep]


def farthest(table: Array, k: int = K) -> Array:
    """How far the shell of each atom's k-th neighbour reaches; ``table`` has distances, infinite in unused places."""
    return np.minimum(np.partition(table, k - 1, axis=1)[:, k - 1] + SHELL_TOLERANCE, CUTOFF + ROUNDING)


def list_contender(batch: Batch, name: str, find: Callable[[], Lists], with_self: bool = False) -> Contender:
    n_self = with_self * np.diff(batch.offsets)
    return Contender(
        name,
        find,
        lambda lists: np.array([len(pairs[0]) for pairs in lists]) - n_self,
        lambda lists: nearest(batch, lists, with_self),
    )


def vesin(batch: Batch) -> Iterator[Contender]:
    from vesin import NeighborList

    # One calculator, so that its buffers stay warm; sorted lists take it longer than sorting them here does.
    calculator = NeighborList(cutoff=CUTOFF, full_list=True, algorithm="cell_list", n_threads=1)
    inputs = batch.crystals
    yield list_contender(batch, "vesin", lambda: [calculator.compute(x, a, True, "ijSd") for a, _, x in inputs])


def matscipy(batch: Batch) -> Iterator[Contender]:
    from matscipy.ffi import neighbour_list  # compiled; what `matscipy.neighbours.neighbour_list` calls

    origin, periodic = np.zeros(3), np.ones(3, bool)
    inputs = [(a, np.linalg.inv(a.T), x, np.ones(len(x), np.int32)) for a, _, x in batch.crystals]

    def find() -> Lists:
        return [neighbour_list("ijSd", origin, a, inverse, periodic, x, CUTOFF, z) for a, inverse, x, z in inputs]

    yield list_contender(batch, "matscipy", find)


def pymatgen(batch: Batch) -> Iterator[Contender]:
    from pymatgen.optimization.neighbors import find_points_in_spheres  # what `Structure.get_neighbor_list` calls

    periodic = np.ones(3, np.int64)
    inputs = batch.crystals

    def find() -> Lists:
        return [find_points_in_spheres(x, x, r=CUTOFF, pbc=periodic, lattice=a, tol=COINCIDENT) for a, _, x in inputs]

    yield list_contender(batch, "pymatgen find_points_in_spheres", find, with_self=True)
    yield Contender(
        "pymatgen Structure.get_all_neighbors",
        lambda: [s.get_all_neighbors(CUTOFF) for s in batch.structures],
        lambda found: np.array([sum(map(len, neighbors)) for neighbors in found]),
    )


def ase(batch: Batch) -> Iterator[Contender]:
    from ase.neighborlist import primitive_neighbor_list

    inputs, periodic = batch.crystals, (True, True, True)

    def find() -> Lists:
        return [
            primitive_neighbor_list("ijSd", periodic, a, u, CUTOFF, use_scaled_positions=True) for a, u, _ in inputs
        ]

    yield list_contender(batch, "ASE primitive_neighbor_list", find)


def nvalchemi(batch: Batch) -> Iterator[Contender]:
    import torch
    from nvalchemiops.torch.neighbors import neighbor_list, prepare_neighbor_list

    torch.set_num_threads(1)
    cells, positions = torch.as_tensor(batch.cells), torch.as_tensor(np.concatenate([x for *_, x in batch.crystals]))
    n_atoms = np.diff(batch.offsets)
    owner = torch.as_tensor(np.repeat(np.arange(len(n_atoms)), n_atoms), dtype=torch.int32)
    offsets = torch.as_tensor(batch.offsets, dtype=torch.int32)
    periodic = torch.ones(len(n_atoms), 3, dtype=torch.bool)
    graph = radius_graph(batch.frac, batch.cells, batch.offsets, cutoff=CUTOFF, max_neighbors=None)
    width = int(graph.degree.max())  # rows exactly as long as the longest list

    def contender(name: str, return_distances: bool) -> Contender:
        # float64 and the naive search are its fastest here, and the state holds arrays and image ranges.
        state = prepare_neighbor_list(
            positions, CUTOFF, cells, periodic, owner, offsets,
            method="batch_naive", wrap_positions=False, max_neighbors=width, fixed_cell=True,
            return_distances=return_distances,
        )  # fmt: skip

        def select(found: tuple[Any, ...]) -> tuple[Array, ...]:
            neighbour, degree, shift, distance = (tensor.numpy() for tensor in found)
            table = np.where(np.arange(width) < degree[:, None], distance, np.inf)
            keep = table <= farthest(table)[:, None]
            return np.nonzero(keep)[0], neighbour[keep], shift[keep], distance[keep]

        return Contender(
            name,
            lambda: neighbor_list(positions, cell=cells, state=state),
            lambda found: np.add.reduceat(found[1].numpy(), batch.offsets[:-1]),
            select if return_distances else None,
        )

    yield contender("nvalchemi-toolkit-ops, without distances", return_distances=False)
    yield contender("nvalchemi-toolkit-ops", return_distances=True)


def verify(batch: Batch, contenders: list[Contender]) -> None:
    """Print whether all find as many pairs in each crystal, up to rounding at the cutoff, and keep as many edges."""

    def graph(cutoff: float, max_neighbors: int | None) -> Graph:
        return radius_graph(batch.frac, batch.cells, batch.offsets, cutoff=cutoff, max_neighbors=max_neighbors)

    fewest, most = graph(CUTOFF - ROUNDING, None).counts, graph(CUTOFF + ROUNDING, None).counts
    exact, n_kept = graph(CUTOFF, None).counts, graph(CUTOFF, K).n_edges
    print(f"{exact.sum():,} pairs within {CUTOFF:g} A, {n_kept:,} in the {K} nearest and their shell; beside these:")
    for contender in contenders:
        found = contender.find()
        if "druse" not in contender.name:
            counts = contender.count(found)
            wrong = np.flatnonzero((counts < fewest) | (counts > most))
            kept = f"; keeps {len(contender.select(found)[0]) - n_kept:+d}" if contender.select else ""
            print(f"  {contender.name}: {counts.sum() - exact.sum():+d}, differs in {len(wrong)} crystals{kept}")


def measure(contenders: list[Contender], n_rounds: int) -> Times:
    times: Times = {contender.name: ([], []) for contender in contenders}
    gc.disable()
    for i in range(-1, n_rounds):  # the first round warms up
        first = i % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            edges, chosen = times[contender.name]
            if edges and edges[0] > 1e3 * SLOW:
                continue
            start = time.perf_counter()
            found = contender.find()
            middle = time.perf_counter()
            if contender.select:
                contender.select(found)
            end = time.perf_counter()
            if i >= 0 or middle - start > SLOW:
                edges.append(1e3 * (middle - start))
                if contender.select:
                    chosen.append(1e3 * (end - middle))
            del found
        gc.collect()
    return times


def show(times: Times, contenders: list[Contender], markdown: bool) -> None:
    table = rich.table.Table(box=rich.box.MARKDOWN if markdown else rich.box.SIMPLE)
    for k, title in enumerate(["", "edges (ms)", "best", "/ exact", "+ K nearest (ms)", "sum / exact", "rounds"]):
        table.add_column(title, justify="right" if k else "left", no_wrap=True)
    exact = np.median(times["druse exact"][0])
    for contender in contenders:
        edges, chosen = times[contender.name]
        found = np.median(edges)
        row = [contender.name, f"{found:.2f}", f"{min(edges):.2f}", f"{found / exact:.2f}"]
        if contender.select:
            row += [f"{np.median(chosen):.2f}", f"{(found + np.median(chosen)) / exact:.2f}"]
        else:
            row += ["included" if "druse" in contender.name and "all" not in contender.name else "", ""]
        table.add_row(*row, str(len(edges)))
    rich.console.Console(width=140).print(table)
    ms, name = min((np.median(edges), name) for name, (edges, _) in times.items() if "druse" not in name)
    print(f"fastest of the others: {name}, {ms:.2f} ms, {ms / exact:.2f} times druse exact")


def ticks() -> Array:
    """Processor time since boot: asked for, and of that what the hypervisor gave to other machines."""
    stat = Path("/proc/stat")
    fields = np.array(stat.read_text().split()[1:9], float) if stat.exists() else np.zeros(8)
    return np.array([fields.sum() - fields[3:5].sum(), fields[7]])


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    isas = {number: name for name, number in _native.ISAS.items()}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "isa": isas[_native.library().druse_best_isa()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="MP-20 as csv.gz, with a column `cif`")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, help="write every time to this file")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})  # read at start only
    warnings.simplefilter("ignore")

    batch = read_batch(options.data)
    images = batch.search_box()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, {about['isa']}; Python {about['python']}")
    print(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    print(
        f"{len(batch.cells)} crystals, {len(batch.frac)} atoms; search boxes of {images.mean():.1f} images on average"
    )
    sources = (druse, vesin, matscipy, pymatgen, ase, nvalchemi)
    contenders = list(itertools.chain.from_iterable(source(batch) for source in sources))
    verify(batch, contenders)
    before = ticks()
    times = measure(contenders, options.rounds)
    busy, stolen = ticks() - before
    print(f"the hypervisor kept back {stolen / max(busy, 1):.0%} of the processor time that the rounds asked for")
    show(times, contenders, options.markdown)
    if options.json:
        rows = {name: {"edges_ms": edges, "k_nearest_ms": chosen} for name, (edges, chosen) in times.items()}
        options.json.write_text(json.dumps({**about, "images": images.mean(), "times": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
