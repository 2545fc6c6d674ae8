"""CUDA kernels alone: the graph stage of 1,024 crystals of about 10 atoms, of 512 of 64, and every other operation.

Run ``python benchmarks/gpu_graph.py`` on a machine with a CUDA device and ``cuda-bindings``; ``--json FILE`` writes the
numbers, too. Each operation is captured several times over in one CUDA graph, which is replayed between two events.
Inputs are the same each time, so what fits into the device's L2 cache comes from there. Bytes are those that the
operation must read and write, not what the hardware moved.
"""

import argparse
import csv
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))

from operations import (  # noqa: E402
    EVERY,
    EXACT,
    HALF,
    NONE,
    UNION,
    UPSTREAM,
    Arrays,
    Batch,
    batch,
    count_edges,
    ddpm,
    draws,
    force_sum,
    incidence,
    langevin,
    legendre,
    radial_basis,
    radius_graph,
    random_batch,
)
from places import Device, Host, checked, missing, runtime  # noqa: E402

from druse.lattice import cells_from_parameters  # noqa: E402

N_CRYSTALS, CUTOFF, K, WIDTH = 1024, 9.0, 20, 48
REPEATS, LAUNCHES = 10, 20
_NUMBER = r"\s+([-\d.]+)"
_PARAMETERS = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_CELL = [re.compile(rf"_cell_{name}{_NUMBER}") for name in _PARAMETERS]
_ATOM = re.compile(r"^\s+[A-Z][a-z]?\s+\w+\s+1" + 3 * _NUMBER, re.MULTILINE)


def real_crystals(count: int) -> Batch | None:
    """Crystals of 8 to 12 atoms of MP-20, as often as needed; None where the data are not there."""
    for folder in (ROOT / "shared", ROOT.parent / "shared"):
        path = folder / "data" / "mp20" / "val.csv.gz"
        if path.is_file():
            break
    else:
        return None
    with gzip.open(path, "rt", newline="") as file:
        cifs = [row["cif"] for row in csv.DictReader(file)]
    found = []
    for cif in cifs:
        parameters = [float(match[1]) for pattern in _CELL if (match := pattern.search(cif))]
        frac = [[float(x) for x in match.groups()] for match in _ATOM.finditer(cif)]
        if len(parameters) == 6 and 8 <= len(frac) <= 12:
            cell = cells_from_parameters(np.array([parameters[:3]]), np.array([parameters[3:]]))[0]
            found.append((frac, cell))
    return batch([found[k % len(found)] for k in range(count)])


def microseconds(device: Device, call: Callable[[], object]) -> float:
    """The time of one call on the device."""
    call()  # puts the arrays there
    device.begin_capture()
    for _ in range(REPEATS):
        call()
    replay = device.end_capture()
    taken = min(replay.milliseconds(LAUNCHES) for _ in range(3))
    replay.close()
    return 1000 * taken / REPEATS


def n_bytes(*arrays: np.ndarray) -> int:
    return sum(array.nbytes for array in arrays)


class Table:
    """Rows of the result."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, taken: float, moved: int, note: str = "") -> None:
        self.rows.append({"name": name, "us": round(taken, 2), "GB/s": round(moved / taken / 1e3, 1), "note": note})
        print(f"{name:44} {taken:9.2f} us {moved / taken / 1e3:8.1f} GB/s  {note}", flush=True)


def graph_stage(table: Table, name: str, crystals: Batch, **options: Any) -> tuple[Arrays, Arrays]:
    """Times of the graph, the incidence table, and both; the graph and the table on the host."""
    total = count_edges(crystals, **options)
    half = options.get("symmetrise", UNION) != NONE
    graph = radius_graph(Host(), crystals, **options, capacity=total)
    table_host = incidence(Host(), crystals, graph, half=half, width=WIDTH)
    device = Device()
    out = {key: array.copy() for key, array in graph.items()}
    into = {key: array.copy() for key, array in table_host.items()} | {"status": out["status"]}

    def build() -> None:
        radius_graph(device, crystals, **options, capacity=total, out=out)

    def list_edges() -> None:
        incidence(device, crystals, out, half=half, width=WIDTH, out=into)

    def both() -> None:
        build()
        list_edges()

    edges, listed = n_bytes(*graph.values()), n_bytes(table_host["in_edge"], table_host["slot"])
    given = n_bytes(crystals.frac, crystals.cells, crystals.offsets)
    note = f"{crystals.n_crystals} crystals, {crystals.n_atoms} atoms, {total} edges"
    table.add(f"{name}: radius graph", microseconds(device, build), edges + given, note)
    table.add(f"{name}: incidence", microseconds(device, list_edges), listed + 8 * total)
    table.add(f"{name}: graph stage", microseconds(device, both), edges + given + listed + 8 * total)
    device.fetch()
    if not all(out[key].tobytes() == graph[key].tobytes() for key in graph if key != "status"):
        print(f"{name}: NOT the CPU's bytes", flush=True)
    device.close()
    return graph, table_host


def one(table: Table, name: str, moved: int, operation: Callable[..., Arrays], *arguments: Any, **options: Any) -> None:
    """The time of one operation; its arrays are made once and kept."""
    device = Device()
    made: list[np.ndarray] = []

    class Kept:
        """Arrays in the order in which they were first put, whatever their identity."""

        exec_ = device.exec_
        at = 0

        def put(self, array: np.ndarray | None) -> int | None:
            if array is None:
                return None
            if self.at == len(made):
                made.append(array)
            self.at += 1
            return device.put(made[self.at - 1])

        def workspace(self, size: int) -> int | None:
            return device.workspace(size)

    def call() -> None:
        operation(Kept(), *arguments, **options)

    table.add(name, microseconds(device, call), moved)
    device.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(f"nothing was measured: {reason}")
        return 2
    properties = checked(runtime.cudaGetDeviceProperties(0))
    device_name = properties.name.decode()
    real = real_crystals(N_CRYSTALS)
    small = real or random_batch(1, N_CRYSTALS, (8, 12))
    print(f"{device_name}, {'MP-20' if real else 'random'} crystals")

    table = Table()
    graph, listed = graph_stage(table, "1,024 x 10, 9 A, K = 20, exact, union", small, cutoff=CUTOFF, k=K)
    noisy = Batch(np.random.default_rng(2).random(small.frac.shape), small.cells, small.offsets)
    graph_stage(table, "the same, random places", noisy, cutoff=CUTOFF, k=K)
    graph_stage(table, "the same, upstream", small, cutoff=CUTOFF, k=K, mode=UPSTREAM, symmetrise=HALF)
    graph_stage(table, "CGCNN: 12 nearest within 8 A", small, cutoff=8.0, k=12, symmetrise=NONE, tolerance=-1.0)
    large = random_batch(3, 512, (64, 64))
    graph_stage(table, "512 x 64, 5 A, all", large, cutoff=5.0, k=EVERY, mode=EXACT, symmetrise=NONE)
    graph_stage(table, "512 x 64, 5 A, K = 20, union", large, cutoff=5.0, k=K)

    n, n_edges = small.n_atoms, len(graph["src"])
    one(table, "radial basis, 128", 4 * n_edges * 129, radial_basis, n_edges, 128, CUTOFF)
    one(table, "legendre, 7", 4 * n * WIDTH * WIDTH * 7, legendre, graph, listed)
    one(table, "force sum", n_edges * 2 * (4 + 4) + n_edges * 12 + 12 * n, force_sum, graph, listed)
    one(table, "langevin, noise drawn, 100 logits", n * (400 + 2 * 24 + 12 + 4), langevin, small)
    one(table, "langevin, places only", n * (2 * 24 + 12), langevin, small, logits=False)
    one(table, "ddpm, 1,024 x 256, noise drawn", 3 * 4 * 1024 * 256, ddpm, 1024, 256)
    for kind, size in (("normal", 4), ("uniform", 8), ("gumbel", 4)):
        one(table, f"{kind}, {n} x 100", size * n * 100, draws, kind, small.offsets, small.n_crystals, 100)
    if arguments.json is not None:
        found = {"device": device_name, "crystals": "MP-20" if real else "random", "rows": table.rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
