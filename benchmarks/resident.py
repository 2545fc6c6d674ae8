"""The resident loop of the bundle that comes with Druse: one step, and its parts, on a device.

Run ``python benchmarks/resident.py --backend ort-cuda --precision tf32 --crystals 64 1024``: crystals of 10 atoms in
uniform places at a middle noise level. A step is an evaluation and a Langevin update in place; its parts are the radius
graph with its table and padding, the two bases, the network, and what is left. Each is queued many times, as the loop
queues it, between two waits; medians of five rounds. `TOGETHER` steps are one launch where they could be captured.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rich.console
import rich.table

from druse import Crystals, _native
from druse._resident import TOGETHER, Bucket, Room
from druse.backends import open_backend
from druse.bundle import Bundle
from druse.model import Model
from druse.noise import Purpose

ROUNDS = 5


def random_crystals(n: int) -> Crystals:
    rng = np.random.default_rng(0)
    offsets = np.arange(n + 1) * 10
    cells = np.cbrt(180.0) * np.eye(3) + rng.uniform(-1, 1, (n, 3, 3))
    return Crystals(rng.random((10 * n, 3)), cells, offsets, rng.integers(1, 80, 10 * n).astype(np.int32))


def milliseconds(bucket: Bucket, work: Callable[[], Any], times: int) -> float:
    """Of one of so many, the median of the rounds; the first round is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        bucket.device.wait()
        begin = time.perf_counter()
        for _ in range(times):
            work()
        bucket.device.wait()
        found.append((time.perf_counter() - begin) * 1e3 / times)
    return statistics.median(found[1:])


def measured(model: Model, n: int, times: int) -> dict[str, Any]:
    resident = model.resident
    assert resident is not None
    crystals, rng = random_crystals(n), np.random.default_rng(1)
    latent = model.project(rng.standard_normal((n, model.manifest.latent)).astype(np.float32))
    with resident.lock:
        resident.device.enter()
        before = resident.device.memory
        bucket = resident.bucket(n, len(crystals.frac), Room())
        bucket.fill(crystals, latent, np.arange(n))
        bucket.at_level(25)

        def steps() -> None:
            bucket.step(
                TOGETHER, first=0, left=1000, drift=1e-3, diffusion=1e-3, seed=0, purpose=Purpose.LANGEVIN, draw=True,
                name=True,
            )  # fmt: skip

        bucket.evaluate()
        row: dict[str, Any] = {"crystals": n, "room": str(tuple(bucket.shape))}
        row["edges"] = int(resident.device.download(bucket._edge_offsets)[-1])
        row["step"] = milliseconds(bucket, steps, max(1, times // TOGETHER)) / TOGETHER
        row["evaluation"] = milliseconds(bucket, bucket.evaluate, times)
        captured = resident.device.capture
        row["graph"] = milliseconds(bucket, captured(bucket._graph), times)
        row["bases"] = milliseconds(bucket, captured(bucket._bases), times)
        try:
            row["network"] = milliseconds(bucket, captured(bucket._network), times)
        except Exception as error:
            row["network"], row["not captured"] = milliseconds(bucket, bucket._network, times), str(error)
        row["megabytes"] = (before - resident.device.memory) / 1e6
        row["crystals a second and step"] = n / row["step"] * 1e3
        resident.clear()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="ort-cuda")
    parser.add_argument("--precision", nargs="+", default=["fp32", "tf32"])
    parser.add_argument("--crystals", nargs="+", type=int, default=[64, 1024, 4096])
    parser.add_argument("--bundle")
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--json")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle) if options.bundle else Bundle.embedded()
    rows = []
    for precision in options.precision:
        model = Model.open(bundle, backend=open_backend(options.backend, precision=precision))
        for n in options.crystals:
            rows.append({"precision": precision, **measured(model, n, options.times)})
            print(rows[-1], flush=True)
    table = rich.table.Table(title=f"{model.backend.describe()}, ABI {_native.ABI_VERSION}; milliseconds")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names))
    rich.console.Console(width=200).print(table)
    if options.json:
        with open(options.json, "w") as file:  # noqa: PTH123
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
