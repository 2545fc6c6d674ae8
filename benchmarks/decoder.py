"""One evaluation of the score network by every backend, beside one that computes as the authors' code does.

Run ``python benchmarks/decoder.py``: 64 crystals of MP-20 with 10 to 20 atoms (of random ones where the data are not
there), noise levels spread over sigma 10 to 0.01 Angstrom, 9 Angstrom, K = 20, two threads. Each side starts with
noisy crystals and ends with scores and logits: graph, bases or triplets, network, forces on atoms. The baseline
(``plain/``) is that of ``train.py``: native edge list, tuned allocator, warm-up, no unused energy branch. Sides take
turns.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import rich.box
import rich.console
import rich.table
import torch
from measure import Clock, bf16_instructions, cpu_name, gemm_rate
from plain.gemnet import triplet_graph
from plain.step import edge_list
from torch.utils.flop_counter import FlopCounterMode
from train import DATA, Contest, random_table, read_table

from druse._gemnet import GemNetT
from druse._onnx import float_tensors
from druse._score import Workspace, atom_forces, decoder_inputs, plan, spec_graph
from druse.backends import Backend, open_backend
from druse.bundle import Bundle, Provenance
from druse.model import Model
from druse_export.bundles.build import build_con_cdvae

N_CRYSTALS = 64
SIDES = {
    "ort-cpu fp32": ("ort-cpu", "fp32"),
    "ort-cpu fp32, all in ONNX Runtime": ("ort-cpu", "fp32"),
    "ort-openvino fp32": ("ort-openvino", "fp32"),
    "ort-openvino bf16": ("ort-openvino", "bf16"),
}
Work = Callable[[], Any]


def plain_evaluation(contest: Contest) -> Work:
    """One evaluation as the authors' code does it, of noise levels spread over the noisy crystals."""
    model, config = contest.models["plain"].eval(), contest.config.decoder
    n, noisy = len(contest.noisy), contest.noisy
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((n, contest.config.latent)).astype(np.float32))
    level, types = torch.arange(n) % contest.config.n_levels, torch.from_numpy(noisy.species.astype(np.int64))

    @torch.inference_mode()
    def work() -> tuple[np.ndarray, np.ndarray]:
        cart, cells = (torch.tensor(x).float() for x in (noisy.cart, noisy.cells))
        geometry: Any = triplet_graph(edge_list(noisy, config), cart, cells, config)
        score, logits = model.score(z, level, types, geometry)
        return score.numpy(), logits.numpy()

    return work


class Evaluation:
    """The same crystals, latents and weights on every side."""

    def __init__(self, data: Path, n_threads: int) -> None:
        table = read_table(data, 6 * N_CRYSTALS) if data.is_file() else random_table(6 * N_CRYSTALS)
        sizes = table.crystals.n_atoms
        keep = np.flatnonzero((sizes >= 10) & (sizes <= 20))[:N_CRYSTALS]
        self.contest = Contest(table.select(keep))
        self.crystals, self.n_threads = self.contest.noisy, n_threads
        rng = np.random.default_rng(0)
        self.z = rng.standard_normal((len(self.crystals), self.contest.config.latent)).astype(np.float32)
        self.level = np.arange(len(self.crystals)) % self.contest.config.n_levels

    def bundle(self, folder: Path) -> Bundle:
        if not folder.exists():
            made = Provenance(source="trained", note="random weights, for a benchmark")
            build_con_cdvae(
                self.contest.models["ours"].eval(), {}, folder, name="benchmark", licence="MIT", provenance=made
            )
        return Bundle.open(folder)

    def ours(self, bundle: Bundle, backend: Backend) -> Work:
        model = Model(bundle, backend)
        latent = model.project(self.z)
        return lambda: model.score(self.crystals, None, self.level, latent=latent)[:2]

    def gflop(self) -> float:
        """Of the network in our formulation, sums over triplets in native code included."""
        model, geometry = self.contest.models["ours"].eval(), self.contest.geometry("ours")
        types = torch.from_numpy(self.crystals.species.astype(np.int64))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.score(torch.from_numpy(self.z), torch.from_numpy(self.level), types, geometry)
        config, degree = model.config.decoder, self.contest.graph.degree.astype(np.float64)
        sums = 2 * config.n_spherical * config.triplet * (np.sum(degree**2) + config.cbf * np.sum(degree))
        return float(counter.get_total_flops() + config.n_blocks * sums) / 1e9

    def parts(self, bundle: Bundle, backend: Backend, n: int = 5) -> dict[str, float]:
        """Milliseconds of what one thread does for all bins, one after the other; medians over ``n``."""
        model = Model(bundle, backend)
        latent, spec, work = model.project(self.z), model.manifest.graph, Workspace()
        native = GemNetT(float_tensors(bundle.read("decoder.onnx")), spec) if backend.fused else None
        run = model.runner("decoder")
        rounds: list[dict[str, float]] = []

        def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            rounds[-1][name] = rounds[-1].get(name, 0.0) + 1e3 * (time.perf_counter() - start)
            return result

        for _ in range(n + 1):
            rounds.append({})
            for piece in plan(self.crystals.n_atoms, model.manifest, backend.memory, backend.workers):
                some, rows = self.crystals.take(np.arange(piece.start, piece.stop)), slice(piece.start, piece.stop)
                given = some.species, latent[rows], self.level[rows].astype(np.int32)
                graph = timed("graph", spec_graph, some, spec)
                if native is not None:
                    timed("network, bases and forces in native code", native.score, graph, *given)
                    continue
                inputs = timed("bases and tables", decoder_inputs, graph, *given, spec, work)
                force, _ = timed("network", run, inputs)
                timed("forces", atom_forces, graph, force)
        return {name: float(np.median([spent[name] for spent in rounds[1:]])) for name in rounds[0]}


def in_turns(sides: dict[str, Work], n_rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Milliseconds of each side, round by round, and the share of the cores that others took in each round."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    others = []
    names = list(sides)
    for k in range(-2, n_rounds):
        clock = Clock()
        for name in names if k % 2 else reversed(names):
            time.sleep(0.02)  # threads of the side before stop spinning
            start = time.perf_counter()
            sides[name]()
            if k >= 0:
                spent[name].append(1e3 * (time.perf_counter() - start))
        if k >= 0:
            others.append(clock.read()[1])
    return spent, others


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="MP-20 as csv.gz; without it, random crystals")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--bundle", type=Path, help="keep the bundle here, or take it from here")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)

    print(f"{cpu_name()}; Python {platform.python_version()}, torch {torch.__version__}, {options.threads} threads")
    print(f"bf16 products by {', '.join(bf16_instructions()) or 'nothing: in bf16 this processor emulates'}")
    evaluation = Evaluation(options.data, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bundle = evaluation.bundle(options.bundle or Path(folder) / "bundle")
    graph = evaluation.contest.graph
    gflop = evaluation.gflop()
    print(
        f"{len(evaluation.crystals)} crystals, {graph.n_atoms} atoms, {2 * graph.n_edges:,} directed edges, at most "
        f"{graph.in_edge.shape[1]} into an atom; {gflop:.1f} GFLOP, {1e3 * gflop / (2 * graph.n_edges):.2f} MFLOP each"
    )
    sides: dict[str, Work] = {"plain fp32": plain_evaluation(evaluation.contest)}
    backends = {}
    for name in options.sides:
        kind, precision = SIDES[name]
        try:
            backends[name] = open_backend(kind, precision=precision, n_threads=options.threads)
            backends[name].fused &= "all in" not in name
        except Exception as error:
            print(f"left out: {name}: {error}")
            continue
        sides[name] = evaluation.ours(bundle, backends[name])
    expected = sides["plain fp32"]()
    for name in backends:
        off = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(sides[name](), expected, strict=True)]
        print(f"{name}: scores differ from plain by {off[0]:.1e} of their scale, logits by {off[1]:.1e}")

    before = gemm_rate(torch.float32)
    spent, others = in_turns(sides, options.rounds)
    peak = max(before, gemm_rate(torch.float32))
    table = rich.table.Table(box=rich.box.MARKDOWN)
    for k, title in enumerate(("", "ms", "quartiles", "plain / this", "quartiles", "GFLOP/s", "of fp32 GEMM")):
        table.add_column(title, justify="right" if k else "left", no_wrap=True)
    rows = []
    for name, values in spent.items():
        low, middle, high = np.percentile(values, [25, 50, 75])
        ratios = np.percentile(np.divide(spent["plain fp32"], values), [25, 50, 75])
        rate = 1e3 * gflop / middle
        rows.append({"side": name, "ms": values, "ratio": ratios.tolist(), "gflops": rate})
        quartiles = f"{low:.0f} to {high:.0f}", f"{ratios[0]:.2f} to {ratios[2]:.2f}"
        rates = f"{rate:.0f}", f"{rate / peak:.2f}"
        table.add_row(name, f"{middle:.0f}", quartiles[0], f"{ratios[1]:.2f}", quartiles[1], *rates)
    rich.console.Console(width=140).print(table)
    print(f"fp32 GEMM of 2048^3: {peak:.0f} GFLOP/s; others took {np.median(others):.0%} of the cores (median round)")
    for name, backend in backends.items():
        parts = evaluation.parts(bundle, backend)
        print(f"{name}, one bin after the other: " + ", ".join(f"{part} {ms:.1f} ms" for part, ms in parts.items()))
    if options.json:
        content = {"cpu": cpu_name(), "gemm_gflops": peak, "gflop": gflop, "others": others, "sides": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
