"""What each sampling schedule costs and gives: the same latents, at least 128 crystals, 95 % confidence intervals.

Run ``python benchmarks/schedules.py RUNS``: for each schedule a run directory below RUNS (an interruption loses
nothing, and what is finished is not computed again), then validity, shortest distances, density and formation energy
by CGCNN of its crystals, and how they relax in CHGNet (``--relax``, needs chgnet). Without targets: conditions are
those of training rows, one for each crystal, so that crystals are as varied as the data.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table

from druse import SCHEDULES, Crystals, Generator, Request, Run, SamplingSchedule, radius_graph
from druse._files import whole_file
from druse.lattice import plane_spacings, volumes
from druse.properties import PropertyModel
from druse.validity import compositional_faults, structural_faults

CANDIDATES: dict[str, SamplingSchedule] = {
    **SCHEDULES,
    "langevin 100, levels above the cell skipped": SamplingSchedule(method="langevin", n_steps=100, skip=0.5),
    "langevin 10, step 0.3": SamplingSchedule(method="langevin", n_steps=10, step_lr=3e-5, skip=0.5),
    "langevin 4": SamplingSchedule(method="langevin", n_steps=4, skip=0.5),
    "ancestral 20 levels": SamplingSchedule(method="ancestral", n_levels=20, skip=0.5),
    "ancestral 1 corrector": SamplingSchedule(method="ancestral", n_steps=1, skip=0.5),
    "ancestral 10 correctors": SamplingSchedule(method="ancestral", n_steps=10, skip=0.5),
    "dpm-solver 20 levels": SamplingSchedule(method="dpm-solver", n_levels=20, skip=0.5),
}
"""Named schedules and variants of them."""


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval, by bootstrap."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> "Mean":
        x = np.asarray(values, float)
        x = x[np.isfinite(x)]
        if not len(x):
            return cls(np.nan, np.nan, np.nan)
        draws = np.random.default_rng(0).integers(0, len(x), (4000, len(x)))
        low, high = np.percentile(x[draws].mean(axis=1), [2.5, 97.5])
        return cls(float(x.mean()), float(low), float(high))

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        numbers = (scale * number for number in (self.value, self.low, self.high))
        value, low, high = (f"{number:.{digits}f}" for number in numbers)
        return f"{value} ({low} to {high})"


def shortest_distances(crystals: Crystals) -> np.ndarray:
    """Angstrom, over all periodic images."""
    graph = radius_graph(crystals.frac, crystals.cells, crystals.offsets, cutoff=8.0, max_neighbors=4)
    ends = graph.edge_offsets
    return np.array([graph.distance[a:b].min(initial=8.0) for a, b in itertools.pairwise(ends)])


def sampled(name: str, folder: Path, generator: Generator, options: argparse.Namespace) -> tuple[Run, float]:
    """A finished run of a schedule, and seconds for its crystals, as far as this process made them."""
    request = Request(
        targets={}, count=options.count, strategy="less", oversample=1, seed=options.seed, schedule=CANDIDATES[name]
    )
    place = folder / name.replace(" ", "_").replace(",", "")
    run = Run.open(place) if (place / "run.json").exists() else Run.create(place, generator, request)
    if run.request != request or run.file.bundle.sha256 != generator.bundle.digest:
        sys.exit(f"{place} is a run of something else; remove it or give another folder")
    bar = rich.progress.Progress(console=rich.console.Console(stderr=True), disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task(name, total=options.count)
        before = run.finished
        summary = run.finish(generator, progress=lambda p: bar.update(task, completed=p.done, total=p.total))
    made = run.finished - before
    return run, summary.seconds["crystals"] * options.count / made if made else np.nan


def measured(run: Run, energy: PropertyModel | None) -> dict[str, Any]:
    """Of every crystal, by name."""
    crystals = run.crystals()
    distances = shortest_distances(crystals)
    found: dict[str, Any] = {
        "structural": np.array([not fault for fault in structural_faults(crystals)]),
        "compositional": np.array([not fault for fault in compositional_faults(crystals)]),
        "shortest": distances,
        "below 1 A": distances < 1.0,
        "volume": volumes(crystals.cells) / crystals.n_atoms,
    }
    if energy is not None:
        found["energy"] = energy.predict(crystals)
    return found


def relaxed(run: Run, steps: int) -> dict[str, Any]:
    """How every crystal relaxes, kept beside the run."""
    path = run.path / f"relaxed-{steps}.npz"
    if not path.exists():
        from relaxation import relax

        result = relax(run.crystals(), n_steps=steps)
        with whole_file(path, "wb") as file:
            np.savez(
            file, displacement=result.displacement, rmsd=result.rmsd, before=result.energy_before, after=result.energy,
            converged=result.converged, failed=result.failed,
        )  # fmt: skip
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def n_evaluations(run: Run, generator: Generator) -> float:
    """Of the score network, for each crystal."""
    schedule, sigmas = run.request.schedule, generator.model.manifest.sigmas
    spacings = plane_spacings(run.crystals().cells).max(axis=1)
    return float(np.mean([schedule.n_evaluations(len(schedule.levels(sigmas, float(s)))) for s in spacings]))


def row(name: str, run: Run, seconds: float, generator: Generator, energy: Any, options: Any) -> dict[str, Any]:
    values = measured(run, energy)
    entry: dict[str, Any] = {"schedule": name, "evaluations": n_evaluations(run, generator), "seconds": seconds}
    entry |= {key: dataclasses.asdict(Mean.of(value)) for key, value in values.items()}
    if options.relax:
        after = relaxed(run, options.relax)
        entry |= {
            "displacement": dataclasses.asdict(Mean.of(after["displacement"])),
            "rmsd": dataclasses.asdict(Mean.of(after["rmsd"])),
            "matched": dataclasses.asdict(Mean.of(np.isfinite(after["rmsd"]))),
            "drop": dataclasses.asdict(Mean.of(after["before"] - after["after"])),
            "relaxed energy": dataclasses.asdict(Mean.of(after["after"])),
            "converged": float(after["converged"].mean()),
            "failed": float(after["failed"].mean()),
        }
    return entry


COLUMNS: Sequence[tuple[str, str, float, int]] = (
    ("structural", "valid structure, %", 100, 0),
    ("compositional", "valid composition, %", 100, 0),
    ("shortest", "shortest distance, Å", 1, 2),
    ("below 1 A", "below 1 Å, %", 100, 0),
    ("volume", "volume, Å³/atom", 1, 1),
    ("energy", "CGCNN, eV/atom", 1, 2),
    ("displacement", "displacement, Å", 1, 2),
    ("matched", "matched, %", 100, 0),
    ("rmsd", "RMSD, Å", 1, 2),
    ("drop", "energy drop, eV/atom", 1, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="folder for the runs")
    parser.add_argument("--bundle", type=Path, help="of the generator; the one that comes with Druse")
    parser.add_argument("--energy", type=Path, help="bundle of a CGCNN for the formation energy")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--relax", type=int, default=0, help="steps of CHGNet relaxation, 0 for none", metavar="STEPS")
    parser.add_argument("--schedules", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    generator = Generator(options.bundle, n_threads=options.threads)
    energy = PropertyModel.open(options.energy) if options.energy else None
    table = rich.table.Table(box=rich.box.MARKDOWN)
    entries = []
    for name in options.schedules:
        run, seconds = sampled(name, options.runs, generator, options)
        entries.append(row(name, run, seconds, generator, energy, options))
        if options.json:
            options.json.write_text(json.dumps(entries, indent=2) + "\n")
    shown = [column for column in COLUMNS if column[0] in entries[0]]
    for k, title in enumerate(("schedule", "evaluations", "s/crystal", *(title for _, title, *_ in shown))):
        table.add_column(title, justify="right" if k else "left", no_wrap=True)
    for entry in entries:
        cells = [Mean(**entry[key]).text(scale, digits) for key, _, scale, digits in shown]
        speed = entry["seconds"] / options.count
        table.add_row(entry["schedule"], f"{entry['evaluations']:.0f}", f"{speed:.2f}", *cells)
    rich.console.Console(width=260).print(table)


if __name__ == "__main__":
    main()
