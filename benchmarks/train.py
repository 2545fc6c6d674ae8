"""A training step beside one that computes as the authors' code does, on the same crystals with the same weights.

Run ``python benchmarks/train.py``: 32 crystals of MP-20 (of random ones where the data are not there), noise levels
spread over sigma 10 to 0.01 Angstrom, 9 Angstrom, K = 20, two threads, float32 and bfloat16. The baseline (``plain/``)
is a restatement of the authors' networks in PyTorch; a test holds that both compute the same. It gets the same native
edge list, allocator, threads and warm-up, and is spared GemNet's unused energy branch.
"""

import argparse
import contextlib
import csv
import dataclasses
import gzip
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import rich.box
import rich.console
import rich.table
import torch
from measure import Times, Work, bf16_instructions, breakdown, cpu_name, gemm_rate, in_turns, peak_memory, settle
from plain.dimenet import path_graph
from plain.gemnet import triplet_graph
from plain.step import edge_list, plain_losses, plain_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from druse import Crystals
from druse.conditions import ScalarProperty
from druse_export.data import CrystalTable, load_table
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.geometry import encoder_geometry, encoder_graph, score_geometry, score_graph
from druse_export.training.average import Average
from druse_export.training.batches import CrystalBatches
from druse_export.training.settings import LossWeights
from druse_export.training.vae import Draws, fit_scales, joint_loss

N_CRYSTALS, CLIP = 32, 0.5
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mp20" / "train.csv.gz"
ENERGY = ScalarProperty("formation_energy_per_atom", -5.0, 5.0, 1.0, "eV/atom")
UPSTREAM_SHARE = "0.18 to 0.27"  # 67 GFLOP/s of a measured peak of 250 to 370, in docs of the decoder's prototype
Side = Literal["ours", "plain"]
SIDES: tuple[Side, ...] = ("ours", "plain")
Precision = Literal["fp32", "bf16"]


def read_table(data: Path, n: int) -> CrystalTable:
    """``n`` crystals from all over MP-20, reduced as for training."""
    with gzip.open(data, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: len(rows) // n][:n]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.csv"
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        return load_table(part, n_jobs=1)


def random_table(n: int) -> CrystalTable:
    """Crystals of 2 to 20 atoms on shaken grid points, 18 cubic Angstrom an atom."""
    rng = np.random.default_rng(0)
    n_atoms = rng.integers(2, 21, n)
    cells = (np.eye(3) + rng.normal(scale=0.1, size=(n, 3, 3))) * np.cbrt(18.0 * n_atoms)[:, None, None]
    grid = np.array(list(itertools.product(range(3), repeat=3)))
    frac = np.concatenate([rng.permutation(grid)[:k] / 3 + rng.normal(scale=0.02, size=(k, 3)) for k in n_atoms])
    crystals = Crystals(frac, cells, np.cumsum([0, *n_atoms]), rng.integers(1, 90, len(frac)).astype(np.int32))
    return CrystalTable(crystals, tuple(map(str, range(n))), {ENERGY.name: rng.normal(size=n)})


def autocast(precision: Precision) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


@dataclasses.dataclass
class Contest:
    """Two models of the same weights, and the work on either side."""

    table: CrystalTable

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        config = ConCDVAEConfig(conditions=(ENERGY,), predicted=(ENERGY,))
        self.config, self.indices = config, list(range(len(self.table)))
        self.batches = CrystalBatches(self.table, (ENERGY,), config)
        self.batch = self.batches[self.indices]
        ours = ConCDVAE(config)
        scaled = ours.heads.scaled_lattice(self.batch.lengths, self.batch.angles, self.batch.n_atoms)
        ours.heads.lattice_mean.copy_(scaled.mean(0))
        ours.heads.lattice_std.copy_(scaled.std(0))
        fit_scales(ours, self.batch, 0)
        self.models = {"ours": ours, "plain": plain_model(ours)}
        self.average = Average(ours, 0.999)
        self.noisy = self._noisy()
        self.graph = score_graph(self.noisy, config.decoder)

    def _noisy(self) -> Crystals:
        """The crystals at noise levels spread evenly over the ladder."""
        rng, crystals = np.random.default_rng(1), self.table.crystals
        level = np.linspace(0, self.config.n_levels - 1, len(crystals)).round().astype(int)
        sigma = self.models["ours"].sigmas.numpy()[rng.permutation(level)].astype(np.float64)
        noise = rng.normal(size=crystals.frac.shape) * np.repeat(sigma, crystals.n_atoms)[:, None]
        inverse = np.repeat(np.linalg.inv(crystals.cells), crystals.n_atoms, axis=0)
        return crystals.replace(frac=crystals.frac + np.einsum("ni,nij->nj", noise, inverse))

    def geometry(self, side: Side, what: str = "decoder") -> Any:
        """What the decoder takes of the noisy crystals, or the encoder of the true ones, from edges on."""
        config = self.config.decoder if what == "decoder" else self.config.encoder
        crystals = self.noisy if what == "decoder" else self.table.crystals
        if side == "ours":
            if what == "decoder":
                return score_geometry(self.graph, self.config.decoder)
            return encoder_geometry(encoder_graph(crystals, self.config.encoder), self.config.encoder)
        cart, cells = (torch.tensor(x).float() for x in (crystals.cart, crystals.cells))
        return (triplet_graph if what == "decoder" else path_graph)(edge_list(crystals, config), cart, cells, config)

    def network(self, what: str, side: Side, precision: Precision, *, backward: bool = True) -> Work:
        """The decoder or the encoder alone, forward and backward, its geometry at hand."""
        model, geometry, n = self.models[side], self.geometry(side, what), len(self.table)
        z = torch.randn(n, self.config.latent, generator=torch.Generator().manual_seed(0), requires_grad=True)
        level = torch.arange(n) % self.config.n_levels

        def work() -> None:
            model.zero_grad()
            with autocast(precision), torch.set_grad_enabled(backward):
                if what == "decoder":
                    outputs = model.score(z, level, self.batch.atom_types, geometry)
                else:
                    outputs = model.encode(self.batch.atom_types, geometry)
            if backward:
                sum((x.float().square().mean() for x in outputs), torch.zeros(())).backward()

        return work

    def losses(self, side: Side, precision: Precision, draws: Draws) -> dict[str, Tensor]:
        """Every term of the joint loss; graphs and geometry are made here, on either side."""
        with autocast(precision):
            if side == "plain":
                return plain_losses(self.models[side], self.batch, draws)
            return joint_loss(self.models[side], self.batches[self.indices], draws, teacher_forcing=True).losses

    def step(self, side: Side, precision: Precision) -> Work:
        """A whole training step. Ours also keeps averaged weights, which upstream does not."""
        model, weights = self.models[side], LossWeights()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        numbers = itertools.count()

        def work() -> None:
            losses = self.losses(side, precision, Draws((0, next(numbers)), torch.device("cpu")))
            optimizer.zero_grad()
            sum((getattr(weights, name) * loss for name, loss in losses.items()), torch.zeros(())).backward()
            torch.nn.utils.clip_grad_value_(model.parameters(), CLIP)
            optimizer.step()
            if side == "ours":
                self.average.update(model)

        return work

    def work(self, what: str, side: Side, precision: Precision) -> Work:
        return self.step(side, precision) if what == "step" else self.network(what, side, precision)

    def our_geometry(self) -> None:
        """Graphs and geometry of one step of ours, for the breakdown."""
        score_geometry(score_graph(self.noisy, self.config.decoder), self.config.decoder)
        self.geometry("ours", "encoder")


def disagreement(contest: Contest) -> float:
    """The largest relative difference of a term of the loss, in float32."""
    with torch.no_grad():
        ours, plain = (contest.losses(side, "fp32", Draws((7,), torch.device("cpu"))) for side in SIDES)
    return max(float(abs(plain[name] - ours[name]) / (abs(ours[name]) + 1e-6)) for name in ours)


def gemm_rates() -> dict[str, float]:
    return {"fp32": gemm_rate(torch.float32), "bf16": gemm_rate(torch.bfloat16)}


def gflop(work: Work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def forward_rate(contest: Contest) -> tuple[float, float]:
    """GFLOP of the baseline's forward pass, and GFLOP/s with the search for triplets, as upstream's call has it."""
    forward = contest.network("decoder", "plain", "fp32", backward=False)

    def call() -> None:
        contest.geometry("plain")
        forward()

    flops = gflop(forward)
    return flops, 1e3 * flops / float(np.median(in_turns(call, forward, 5).ours))


CASES = [f"{what}:{precision}" for precision in ("fp32", "bf16") for what in ("decoder", "encoder", "step")]


def memory(what: str, side: str, precision: Precision, table: CrystalTable) -> float:
    """MiB at the peak of two calls, above what the process holds once all is set up; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crystals.npz"
        c = table.crystals
        np.savez(path, frac=c.frac, cells=c.cells, offsets=c.offsets, species=c.species, **table.properties)
        command = [sys.executable, __file__, "--memory", what, side, precision, str(path)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout)


def print_memory(what: str, side: Side, precision: Precision, path: str) -> None:
    with np.load(path) as file:
        crystals = Crystals(*(file[name] for name in ("frac", "cells", "offsets", "species")))
        table = CrystalTable(crystals, tuple(map(str, range(len(crystals)))), {ENERGY.name: file[ENERGY.name]})
    work = Contest(table).work(what, side, precision)
    before = settle()
    for _ in range(2):
        work()
    print(peak_memory() - before)


def measure(contest: Contest, case: str, n_rounds: int) -> dict[str, Any]:
    """Times, arithmetic and memory of both sides, and where our time goes."""
    what, _, name = case.partition(":")
    precision: Precision = "bf16" if name == "bf16" else "fp32"
    flops = {side: gflop(contest.work(what, side, "fp32")) for side in SIDES}
    ours = contest.work(what, "ours", precision)
    times: Times = in_turns(ours, contest.work(what, "plain", precision), n_rounds)
    row: dict[str, Any] = {"case": case, "ratio": times.ratios, "disturbance": times.disturbance}
    for side, values in zip(SIDES, (times.ours, times.plain), strict=True):
        rate = 1e3 * flops[side] / float(np.median(values))
        row[side] = {
            "ms": np.percentile(values, [25, 50, 75]).tolist(),
            "gflops": rate,
            "memory_mib": memory(what, side, precision, contest.table),
            "times_ms": values,
        }
    row["breakdown_ms"] = breakdown(ours, contest.our_geometry if what == "step" else None)
    return row


def show(rows: list[dict[str, Any]], peak: dict[str, float], markdown: bool) -> None:
    table = rich.table.Table(box=rich.box.MARKDOWN if markdown else rich.box.SIMPLE)
    titles = [
        "",
        "ours (ms)",
        "plain (ms)",
        "plain / ours",
        "quartiles",
        "GFLOP/s",
        "of GEMM",
        "MiB ours",
        "MiB plain",
        "others",
    ]
    for k, title in enumerate(titles):
        table.add_column(title, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        low, middle, high = row["ratio"]
        ours, plain = row["ours"], row["plain"]
        table.add_row(
            row["case"],
            f"{ours['ms'][1]:.0f}",
            f"{plain['ms'][1]:.0f}",
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{ours['gflops']:.0f} / {plain['gflops']:.0f}",
            " / ".join(f"{side['gflops'] / peak[row['case'][-4:]]:.2f}" for side in (ours, plain)),
            f"{ours['memory_mib']:.0f} / {plain['memory_mib']:.0f}",
            f"{row['disturbance']:.0%}",
        )
    rich.console.Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="MP-20 as csv.gz; without it, random crystals")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.memory:
        print_memory(*options.memory)
        return

    bf16 = bf16_instructions()
    print(f"{cpu_name()}; Python {platform.python_version()}, torch {torch.__version__}, {options.threads} threads")
    if not bf16:
        print("no AMX, no AVX512-BF16: in bf16 both sides are slower here than in fp32, and get fewer rounds")
    else:
        print(f"bf16 products by {', '.join(bf16)}")

    table = read_table(options.data, N_CRYSTALS) if options.data.is_file() else random_table(N_CRYSTALS)
    contest = Contest(table)
    graph, n_triplets = contest.graph, len(contest.geometry("plain").id3_ca)
    print(
        f"{len(table)} {'MP-20' if options.data.is_file() else 'random'} crystals, {graph.n_atoms} atoms; noisy: "
        f"{2 * graph.n_edges:,} directed edges, {n_triplets:,} triplets, at most {graph.in_edge.shape[1]} into an atom"
    )
    print(f"terms of the loss differ between the sides by at most {disagreement(contest):.1e} of their size")

    peak = gemm_rates()
    flops, rate = forward_rate(contest)
    slow = max(3, options.rounds // 4)
    rows = [
        measure(contest, case, slow if case.endswith("bf16") and not bf16 else options.rounds) for case in options.cases
    ]
    peak = {name: max(rate, peak[name]) for name, rate in gemm_rates().items()}  # others may have disturbed one
    print(
        f"plain decoder forward, triplets found anew: {1e9 * flops / (2 * graph.n_edges):,.0f} FLOP an edge, "
        f"{rate:.0f} GFLOP/s, {rate / peak['fp32']:.2f} of the GEMM rate (upstream's own code: {UPSTREAM_SHARE})"
    )
    print(", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in peak.items()) + " for products of 2048^3")
    show(rows, peak, options.markdown)
    for row in rows:
        parts, total = row["breakdown_ms"], sum(row["breakdown_ms"].values())
        print(f"ours, {row['case']}: " + ", ".join(f"{name} {ms / total:.0%}" for name, ms in parts.items()))
    if options.json:
        about = {
            "cpu": cpu_name(),
            "torch": torch.__version__,
            "bf16": bf16,
            "gemm_gflops": peak,
            "n_half": graph.n_edges,
        }
        options.json.write_text(json.dumps({**about, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
