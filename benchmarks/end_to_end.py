"""Crystals an hour, from targets to finished crystals, at each schedule and backend, beside plain PyTorch.

Run ``python benchmarks/end_to_end.py``: `Generator.generate` of the default bundle, 100 latents drawn and ranked for
each crystal, two threads. ``faithful`` (100 steps at each of 50 levels) is run with 4 steps at each level, and its
sampling taken 25 times. The baseline computes as the authors' code does (``plain/``, tuned allocator, native edge
list): their 5,000 evaluations at the rate of one on the same crystals and levels, its prior and ranking left out. Sides
take turns.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import msgspec
import numpy as np
import rich.box
import rich.console
import rich.table
import torch
from decoder import plain_evaluation
from measure import Clock, cpu_name, gemm_rate
from train import Contest

from druse import SCHEDULES, Crystals, Generator
from druse.generate import Progress
from druse.tables import CrystalTable

TARGETS = {"formation_energy_per_atom": -2.0}
FAITHFUL_SHARE = 25
"""The faithful schedule is run with so many times fewer steps at a level."""


def run(generator: Generator, name: str, options: argparse.Namespace, seed: int) -> tuple[float, float, Crystals]:
    """Seconds for latents, seconds for crystals of the whole schedule, and the crystals."""
    schedule, times = SCHEDULES[name], 1.0
    if schedule.n_steps >= 4 * FAITHFUL_SHARE:
        schedule = msgspec.structs.replace(schedule, n_steps=schedule.n_steps // FAITHFUL_SHARE)
        times = FAITHFUL_SHARE
    ranked = [0.0]

    def told(progress: Progress) -> None:
        if progress.stage == "latents":
            ranked[0] = time.perf_counter()

    start = time.perf_counter()
    made = Crystals.concatenate(
        generator.generate(TARGETS, count=options.count, seed=seed, schedule=schedule, progress=told)
    )
    return ranked[0] - start, times * (time.perf_counter() - ranked[0]), made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="the one that comes with Druse")
    parser.add_argument("--backends", nargs="+", default=["ort-cpu"], help="NAME or NAME:PRECISION", metavar="BACKEND")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), metavar="NAME")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{cpu_name()}; Python {platform.python_version()}, torch {torch.__version__}, {options.threads} threads")

    generators = {}
    for text in options.backends:
        name, _, precision = text.partition(":")
        generators[text] = Generator(
            options.bundle, backend=name, precision=precision or "fp32", n_threads=options.threads
        )
    first = next(iter(generators.values()))
    *_, crystals = run(first, "ancestral", options, seed=1000)
    energies = {"formation_energy_per_atom": np.zeros(len(crystals))}
    contest = Contest(CrystalTable(crystals, tuple(map(str, range(len(crystals)))), energies))
    plain = plain_evaluation(contest)
    plain()

    spent: dict[tuple[str, str], list[float]] = {("plain PyTorch", "faithful"): []}
    latents: list[float] = []
    clock = Clock()
    for k in range(options.rounds):
        start = time.perf_counter()
        for _ in range(3):
            plain()
        spent["plain PyTorch", "faithful"].append(5000 * (time.perf_counter() - start) / 3)
        for backend, generator in generators.items():
            for name in options.schedules:
                ranking, sampling, _ = run(generator, name, options, seed=k)
                latents.append(ranking)
                spent.setdefault((backend, name), []).append(ranking + sampling)
    others = clock.read()[1]

    table = rich.table.Table(box=rich.box.MARKDOWN)
    for k, title in enumerate(
        ("backend", "schedule", "evaluations", "crystals an hour", "quartiles", "times the plain")
    ):
        table.add_column(title, justify="right" if k > 1 else "left", no_wrap=True)
    base = np.array(spent["plain PyTorch", "faithful"])
    rows: list[dict[str, Any]] = []
    n_levels = len(first.model.manifest.sigmas)
    for (backend, name), seconds in spent.items():
        rate = 3600 * options.count / np.array(seconds)
        ratio = float(np.median(base / seconds))
        rows.append({"backend": backend, "schedule": name, "seconds": seconds, "ratio": ratio})
        low, middle, high = np.percentile(rate, [25, 50, 75])
        at_most = SCHEDULES[name].most_evaluations(n_levels)
        table.add_row(backend, name, f"{at_most:,}", f"{middle:,.0f}", f"{low:,.0f} to {high:,.0f}", f"{ratio:,.1f}")
    rich.console.Console(width=140).print(table)
    print(
        f"{options.count} crystals of {float(np.mean(crystals.n_atoms)):.1f} atoms on average; {options.count * 100:,} "
        f"latents drawn and ranked in {np.median(latents):.1f} s; others took {others:.0%} of the cores; GEMM "
        f"{gemm_rate(torch.float32):.0f} GFLOP/s"
    )
    if options.json:
        options.json.write_text(json.dumps({"cpu": cpu_name(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
