"""Properties by CGCNN: native neighbours and ONNX beside pymatgen's neighbours and PyTorch.

Run ``python benchmarks/cgcnn.py``. Every side has its crystals understood before: ours as `Crystals`, the others as
pymatgen structures. The authors' route is `get_all_neighbors` at 8 Angstrom, the 12 nearest, Gaussians of their
distances and the network; here it gets the PyTorch network as Druse has it, which multiplies less than theirs, and
computes the Gaussians, in batches, without gradients. A third side takes `get_neighbor_list` in its place, which gives
arrays and not objects. With several models each side finds its neighbours once. Sides take turns within a round; the
ratios are medians over rounds.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import rich.box
import rich.console
import rich.table
import torch
from measure import cpu_name
from pymatgen.core import Lattice, Structure

from druse.crystals import Crystals
from druse.elements import SYMBOLS
from druse.properties import EMBEDDED, PropertyModel, PropertyModels, _surroundings
from druse.tables import default_cache, load_table
from druse_export.models.cgcnn import CGCNN, NeighborTable
from druse_export.models.weights import read_weights

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "mp20" / "val.csv.gz"
CUTOFF, K = 8.0, 12
Table = tuple[np.ndarray, np.ndarray]
Seconds = dict[str, float]
Clock = Callable[[], float]

STRUCTURES: list[Structure] = []
"""What processes that are forked find neighbours of."""


def by_objects(place: int) -> Table:
    """Neighbours and distances ``[atoms, 12]`` as the authors find them."""
    structure = STRUCTURES[place]
    neighbor, distance = blank(len(structure))
    for atom, found in enumerate(structure.get_all_neighbors(CUTOFF, include_index=True)):
        nearest = sorted(found, key=lambda one: one[1])[:K]
        neighbor[atom, : len(nearest)] = [one[2] for one in nearest]
        distance[atom, : len(nearest)] = [one[1] for one in nearest]
    return neighbor, distance


def by_arrays(place: int) -> Table:
    """The same from pymatgen's list of arrays."""
    structure = STRUCTURES[place]
    centre, other, _, length = structure.get_neighbor_list(CUTOFF)
    order = np.lexsort((length, centre))
    centre, other, length = centre[order], other[order], length[order]
    rank = np.arange(len(centre)) - np.searchsorted(centre, centre)
    near = rank < K
    neighbor, distance = blank(len(structure))
    neighbor[centre[near], rank[near]] = other[near]
    distance[centre[near], rank[near]] = length[near]
    return neighbor, distance


def blank(n_atoms: int) -> Table:
    return np.zeros((n_atoms, K), np.int64), np.full((n_atoms, K), CUTOFF + 1.0, np.float32)


def torch_side(
    find: Callable[[int], Table], crystals: Crystals, models: list[CGCNN], batch: int, pool: object, clock: Clock
) -> Callable[[], tuple[list[np.ndarray], Seconds]]:
    species = [crystal.species.astype(np.int64) for crystal in crystals]

    @torch.inference_mode()
    def work() -> tuple[list[np.ndarray], Seconds]:
        start = clock()
        places = range(len(crystals))
        tables = list(map(find, places)) if pool is None else pool.map(find, places, chunksize=8)  # type: ignore[attr-defined]
        found = clock()
        values: list[list[np.ndarray]] = [[] for _ in models]
        for first in range(0, len(tables), batch):
            some = range(first, min(first + batch, len(tables)))
            sizes = np.array([len(species[b]) for b in some])
            starts = np.cumsum(sizes) - sizes
            table = NeighborTable(
                torch.from_numpy(np.concatenate([species[b] for b in some])),
                torch.from_numpy(np.concatenate([tables[b][0] + at for b, at in zip(some, starts, strict=True)])),
                torch.from_numpy(np.concatenate([tables[b][1] for b in some])),
                torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
                torch.from_numpy(sizes),
            )
            for kept, model in zip(values, models, strict=True):
                kept.append(model.predict(table).numpy())
        end = clock()
        seconds = {"neighbours": found - start, "networks": end - found, "all": end - start}
        return [np.concatenate(kept) for kept in values], seconds

    return work


def our_side(
    crystals: Crystals, models: list[PropertyModel], clock: Clock
) -> Callable[[], tuple[list[np.ndarray], Seconds]]:
    together = PropertyModels(models)
    spent = dict.fromkeys(("neighbours",), 0.0)

    def work() -> tuple[list[np.ndarray], Seconds]:
        start = clock()
        columns = together.columns(crystals)
        end = clock()
        for first in range(0, len(crystals), 24):  # once more alone, in bins of about the same size
            _surroundings(crystals.take(np.arange(first, min(first + 24, len(crystals)))), K, CUTOFF)
        spent["neighbours"] = (clock() - end) / max(1, models[0].backend.workers)
        seconds = {**spent, "networks": end - start - spent["neighbours"], "all": end - start}
        return [columns[model.column] for model in models], seconds

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="crystals: CSV, Parquet or extended XYZ")
    parser.add_argument("--crystals", type=int, default=256, help="the first so many")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of every side; pymatgen gets as many processes")
    parser.add_argument("--batch", type=int, default=128, help="crystals of a batch in PyTorch")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, help="write every time to this file")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    # on one thread processor time, which what else the machine does disturbs less
    clock = time.process_time if options.threads == 1 else time.perf_counter
    table = load_table(options.data, niggli=False, cache=default_cache())
    crystals = table.crystals.take(np.arange(min(options.crystals, len(table))))
    STRUCTURES.extend(
        Structure(Lattice(crystal.cells[0]), [SYMBOLS[z - 1] for z in crystal.species], crystal.frac)
        for crystal in crystals
    )
    pool = multiprocessing.get_context("fork").Pool(options.threads) if options.threads > 1 else None
    networks = [read_weights(ROOT / "models" / f"{name}.safetensors")[0].eval() for name in EMBEDDED]
    runtime = list(PropertyModels.open(n_threads=options.threads).models)
    print(f"{cpu_name()}, {options.threads} threads, {len(crystals)} crystals, {len(crystals.species)} atoms")

    times: dict[str, dict[str, list[Seconds]]] = {}
    for n in (1, len(EMBEDDED)):
        sides = {
            "get_all_neighbors, PyTorch": torch_side(by_objects, crystals, networks[:n], options.batch, pool, clock),
            "get_neighbor_list, PyTorch": torch_side(by_arrays, crystals, networks[:n], options.batch, pool, clock),
            "Druse": our_side(crystals, runtime[:n], clock),
        }
        values = {name: side()[0] for name, side in sides.items()}  # warm
        for name, given in values.items():
            close = [
                np.abs((value if value.ndim == 1 else value[:, 1]) - ours) < 1e-4
                for value, ours in zip(given, values["Druse"], strict=True)
            ]
            # the others: neighbours 12 and 13 of an atom tie, and either may be taken
            print(f"{n} models, {name}: {np.all(close, axis=0).mean():.1%} of crystals within 1e-4 of Druse")
        taken = times[f"{n} model{'s' if n > 1 else ''}"] = {name: [] for name in sides}
        for turn in range(options.rounds):
            order = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
            for name in order:
                gc.collect()
                taken[name].append(sides[name]()[1])
    if pool is not None:
        pool.terminate()

    grid = rich.table.Table(box=rich.box.MARKDOWN if options.markdown else rich.box.SIMPLE)
    for title in ("models", "", "neighbours, ms a crystal", "networks", "all", "Druse is faster by"):
        grid.add_column(title, justify="left" if title in ("models", "") else "right")
    for models, sides_ in times.items():
        for name, rounds in sides_.items():
            ms = [
                f"{1e3 * statistics.median(one[part] for one in rounds) / len(crystals):.3f}"
                for part in ("neighbours", "networks", "all")
            ]
            ratios = [one["all"] / ours["all"] for one, ours in zip(rounds, sides_["Druse"], strict=True)]
            grid.add_row(models, name, *ms, f"{statistics.median(ratios):.1f}")
    rich.console.Console(width=160).print(grid)
    if options.json:
        options.json.write_text(json.dumps({"crystals": len(crystals), "seconds": times}, indent=1))


if __name__ == "__main__":
    main()
