"""The score network alone on one GPU: the plain restatement, ours in PyTorch, and ours as the resident loop runs it.

Run ``python benchmarks/gpu_decoder.py --crystals 1024``: crystals of 10 atoms in uniform places, random weights, and
everything that the host computes (edges, triplets, bases, tables) made beforehand and left out, on every side. GFLOP
are those of our formulation, counted once; the share is of a float32, TF32 or bfloat16 product of 8192^3, measured
here.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain.gemnet import triplet_graph
from plain.step import edge_list, plain_model
from torch.utils.flop_counter import FlopCounterMode

from druse import Crystals
from druse._rooms import Room
from druse.bench import random_crystals
from druse.conditions import ScalarProperty
from druse.model import Model
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.gemnet import ScoreGeometry
from druse_export.models.geometry import score_geometry, score_graph

ROUNDS, TIMES = 5, 10
ENERGY = ScalarProperty("formation_energy_per_atom", -5.0, 5.0, 1.0, "eV/atom")


def milliseconds(work: Callable[[], Any]) -> float:
    """Of one call, by events around ten; the median of five rounds after one that is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(TIMES):
            work()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last) / TIMES)
    return statistics.median(found[1:])


def peak(precision: str) -> float:
    """GFLOP/s of a large product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    with products(precision):
        return 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e6


class products:  # noqa: N801  a context, named as it reads
    """PyTorch's float32 products in TF32 or not, and autocast to bfloat16."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.autocast = torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16")

    def __enter__(self) -> None:
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        self.autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.autocast.__exit__(*error)
        torch.set_float32_matmul_precision("highest")


def on_device(value: Any) -> Any:
    """Tensors of a tuple on the GPU, numbers as they are."""
    return type(value)(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in value))


def through_onnx(bundle: Path, precision: str, crystals: Crystals) -> float:
    """Milliseconds of a bundle's score network in a bucket of ONNX Runtime's CUDA provider, captured."""
    resident = Model.open(bundle, backend="ort-cuda", precision=precision).resident
    assert resident is not None
    with resident.lock:
        resident.device.enter()
        bucket = resident.bucket(len(crystals), len(crystals.frac), Room())
        bucket.fill(crystals, np.zeros((len(crystals), bucket.latent.shape[1]), np.float32))
        bucket.at_level(25)
        bucket.evaluate()
        network = bucket._once(("network",), bucket._network)
        found = []
        for _ in range(ROUNDS + 1):
            resident.device.wait()
            start = time.perf_counter()
            for _ in range(TIMES):
                network()
            resident.device.wait()
            found.append((time.perf_counter() - start) * 1e3 / TIMES)
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--crystals", type=int, default=1024)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--bundle", type=Path, help="through ONNX Runtime's CUDA provider, too; of the same sizes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = ConCDVAEConfig(conditions=(ENERGY,), predicted=(ENERGY,))
    ours = ConCDVAE(config).eval()
    crystals = random_crystals(options.crystals)
    graph = score_graph(crystals, config.decoder)
    types = torch.from_numpy(crystals.species.astype(np.int64)).cuda()
    z, level = torch.randn(options.crystals, config.latent).cuda(), torch.full((options.crystals,), 25).cuda()
    cart, cells = (torch.tensor(x).float() for x in (crystals.cart, crystals.cells))
    geometries: dict[str, Any] = {
        "ours": ScoreGeometry(*on_device(score_geometry(graph, config.decoder))),
        "plain": on_device(triplet_graph(edge_list(crystals, config.decoder), cart, cells, config.decoder)),
    }
    models = {"ours": ours.cuda(), "plain": plain_model(ours).cuda().eval()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        models["ours"].score(z, level, types, geometries["ours"])
    gflop = counter.get_total_flops() / 1e9
    name = torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}; {options.crystals} crystals, {2 * graph.n_edges:,} directed edges")
    rows = []

    def row(side: str, precision: str, ms: float) -> None:
        share = gflop / ms * 1e3 / peaks[precision]
        rows.append({"side": side, "precision": precision, "ms": ms, "GFLOP/s": gflop / ms * 1e3, "share": share})
        print(f"{side:>22} {precision:>5} {ms:9.3f} ms {gflop / ms * 1e3:10,.0f} GFLOP/s, {share:.1%} of a product's")

    peaks = {precision: peak(precision) for precision in options.precisions}
    for side, model in models.items():
        for precision in options.precisions:
            with products(precision), torch.inference_mode():
                work = functools.partial(model.score, z, level, types, geometries[side])
                row(f"{side}, PyTorch", precision, milliseconds(work))
    if options.bundle:
        for precision in options.precisions:
            row("ours, ort-cuda", precision, through_onnx(options.bundle, precision, crystals))
    if options.json:
        options.json.write_text(json.dumps({"device": name, "peaks": peaks, "gflop": gflop, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
