"""What each sampling schedule costs and gives: crystals from the same latents, 95 % intervals, real ones beside them.

Run ``python benchmarks/schedules.py RUNS --relax 150`` for the tables of ``docs/sampling.md``: for each schedule a run
below RUNS, named by bundle, schedule and all else that it was asked for, so that an interruption loses nothing and what
is finished is not computed again; then validity, distances, density, elements, formation energy by CGCNN, and how the
crystals relax in CHGNet (extra ``bench``). Without targets: conditions are those of training rows, one for each
crystal, so that crystals are as varied as the data. ``--variants`` adds those schedules that the named ones were chosen
from.
"""

import argparse
import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import msgspec
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
from scipy.stats import wasserstein_distance

from druse import SCHEDULES, Crystals, Generator, Request, Run, SamplingSchedule, radius_graph
from druse._files import whole_file
from druse.evaluate import Share, densities
from druse.lattice import plane_spacings
from druse.properties import PropertyModel
from druse.tables import load_table
from druse.validity import compositional_faults, structural_faults

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "mp20" / "val.csv.gz"
WEIGHTS = HERE.parent / "models" / "cgcnn_formation_energy.safetensors"
REAL = "MP-20, validation"
ENERGY = "formation_energy_per_atom"

STEPS = ("1e-5", "2e-5", "3e-5", "5e-5", "7e-5", "1e-4", "1.5e-4", "2e-4")


def langevin(n: int, step: str = "5e-5", **others: Any) -> SamplingSchedule:
    return SamplingSchedule(**{"method": "langevin", "n_steps": n, "step_lr": float(step), "skip": 0.5, **others})


def ancestral(n: int = 0, step: str = "5e-5", **others: Any) -> SamplingSchedule:
    return SamplingSchedule(**{"method": "ancestral", "n_steps": n, "step_lr": float(step), "skip": 0.5, **others})


VARIANTS: dict[str, SamplingSchedule] = {
    **{f"langevin {n}, step {step}": langevin(n, step) for n, step in itertools.product((2, 5, 10), STEPS)},
    **{f"correctors {n}, step {step}": ancestral(n, step) for n, step in itertools.product((1, 2, 4, 10), STEPS)},
    "langevin 10, as faithful else": SamplingSchedule(method="langevin", n_steps=10, draw_types=False, denoise=False),
    "langevin 10, likeliest types": langevin(10, draw_types=False),
    "langevin 20, 20 levels": langevin(20, n_levels=20),
    "langevin 40, 10 levels": langevin(40, n_levels=10),
    "langevin 14, stop at 0.05 Å": langevin(14, sigma_stop=0.05),
    "langevin 18, stop at 0.1 Å": langevin(18, sigma_stop=0.1),
    "langevin 14, begin at a quarter": langevin(14, skip=0.25),
    "langevin 20, begin at a quarter, stop at 0.05 Å": langevin(20, skip=0.25, sigma_stop=0.05),
    "langevin 100": langevin(100),
    "ancestral, likeliest types": ancestral(draw_types=False),
    **{f"ancestral, stop at {sigma} Å": ancestral(sigma_stop=sigma) for sigma in (0.02, 0.05, 0.1)},
    "ancestral, 20 levels": ancestral(n_levels=20),
}
"""What the named schedules were chosen from."""


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, scale: float, digits: int) -> str:
        value, low, high = (f"{scale * number + 0.0:.{digits}f}" for number in self)
        return "" if np.isnan(self.value) else f"{value} ({low} to {high})"


def bootstrapped(statistic: Callable[[np.ndarray], float], values: Any) -> Estimate:
    """A statistic of those values that are numbers, with percentiles of 2,000 resamples."""
    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    if not len(x):
        return Estimate(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(0)
    draws = [statistic(x[rng.integers(0, len(x), len(x))]) for _ in range(2000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(statistic(x)), float(low), float(high))


class Column(NamedTuple):
    """A column of a table: of what, how it is summed up (``share`` by Wilson's interval), and how it is written."""

    key: str
    title: str
    kind: str  # share, mean, median, or distance: Wasserstein's, to the validation set
    digits: int = 2

    def estimate(self, values: np.ndarray, reference: np.ndarray | None) -> Estimate:
        if self.kind == "share":
            share = Share(int(np.nansum(values)), len(values))
            return Estimate(share.value, *share.interval())
        if self.kind == "distance":
            found = bootstrapped(lambda x: float(wasserstein_distance(x, reference)), values)
            # a resample has ties, and is farther from everything than the sample is
            shift = (found.low + found.high) / 2 - found.value
            return Estimate(found.value, max(0.0, found.low - shift), found.high - shift)
        return bootstrapped({"mean": np.mean, "median": np.median}[self.kind], values)

    def difference(self, values: np.ndarray, others: np.ndarray) -> Estimate:
        """Of each crystal and the one from the same latent."""
        return bootstrapped(np.median if self.kind == "median" else np.mean, values - others)

    @property
    def scale(self) -> float:
        return 100.0 if self.kind == "share" else 1.0


COLUMNS = (
    Column("structural", "valid structure, %", "share", 1),
    Column("compositional", "valid composition, %", "share", 0),
    Column("close", "pairs below 1 Å, %", "share", 0),
    Column("shortest", "shortest distance, Å", "mean"),
    Column("density", "density, g/cm³", "mean"),
    Column("density", "distance to MP-20's", "distance"),
    Column("elements", "elements", "mean"),
    Column("energy", "CGCNN, eV/atom", "mean"),
    Column("off", "off its condition, eV/atom", "mean"),
)
RELAXED = (
    Column("matched", "the same crystal after, %", "share", 0),
    Column("rmsd", "RMSD, Å", "median", 3),
    Column("displacement", "displacement, Å", "median"),
    Column("drop", "energy lost, eV/atom", "median", 3),
)
PAIRED = ("compositional", "shortest", "elements", "energy", "off", "matched", "rmsd", "displacement", "drop")


def shortest_distances(crystals: Crystals) -> np.ndarray:
    """Angstrom, over all periodic images."""
    graph = radius_graph(crystals.frac, crystals.cells, crystals.offsets, cutoff=8.0, max_neighbors=4)
    ends = graph.edge_offsets
    return np.array([graph.distance[a:b].min(initial=8.0) for a, b in itertools.pairwise(ends)])


def bar(text: str, total: int) -> tuple[rich.progress.Progress, Callable[[float, float], None]]:
    progress = rich.progress.Progress(console=rich.console.Console(stderr=True), disable=not sys.stderr.isatty())
    task = progress.add_task(text, total=total)
    return progress, lambda done, total: progress.update(task, completed=done, total=total)


def sampled(name: str, schedule: SamplingSchedule, generator: Generator, options: argparse.Namespace) -> Run:
    """A finished run of a schedule, wherever it was begun."""
    request = Request(
        targets={}, count=options.count, strategy="less", oversample=1, seed=options.seed, schedule=schedule
    )
    asked = hashlib.sha256(generator.bundle.digest.encode() + msgspec.json.encode(request)).hexdigest()
    place = options.runs / f"{schedule.method}-{asked[:12]}"
    run = Run.open(place) if (place / "run.json").exists() else Run.create(place, generator, request)
    if run.finished == options.count:  # perhaps by another backend
        return run
    progress, told = bar(name, options.count)
    with progress:
        run.finish(generator, progress=lambda p: told(p.done, p.total))
    return run


def crystals_of(run: Run) -> tuple[Crystals, np.ndarray, np.ndarray]:
    """The good crystals of a run, their numbers, and the formation energies that they were conditioned on, eV/atom."""
    parts = [part.take(np.flatnonzero(part.ok)) for part in run.generated()]
    ids = np.concatenate([part.ids for part in parts]).astype(int)
    unknown = np.full(len(ids), np.nan)
    given = [part.columns.get(f"condition_{ENERGY}") for part in parts]
    return Crystals.concatenate(parts), ids, unknown if given[0] is None else np.concatenate(given)


def measured(name: str, crystals: Crystals, place: Path, energy: PropertyModel, steps: int) -> dict[str, np.ndarray]:
    """Of every crystal, by name; relaxations are kept in ``place``."""
    owners = zip(crystals.offsets[:-1], crystals.offsets[1:], strict=True)
    shortest = shortest_distances(crystals)
    found = {
        "structural": np.array([not fault for fault in structural_faults(crystals)], float),
        "compositional": np.array([not fault for fault in compositional_faults(crystals)], float),
        "close": (shortest < 1.0).astype(float),
        "shortest": shortest,
        "density": densities(crystals),
        "elements": np.array([len(np.unique(crystals.species[a:b])) for a, b in owners], float),
        "energy": energy.predict(crystals).astype(float),
    }
    if steps:
        found |= relaxed(name, crystals, place / f"relaxed-{steps}.npz", steps)
    return found


def relaxed(name: str, crystals: Crystals, path: Path, steps: int) -> dict[str, np.ndarray]:
    if not path.exists():
        from relaxation import relax

        progress, told = bar(f"{name}: CHGNet", len(crystals))
        with progress:
            result = relax(crystals, n_steps=steps, progress=told)
        with whole_file(path, "wb") as file:
            np.savez(
                file, displacement=result.displacement, rmsd=result.rmsd, before=result.energy_before,
                after=result.energy, converged=result.converged, failed=result.failed,
            )  # fmt: skip
    with np.load(path) as file:
        stored = {key: file[key].astype(float) for key in file.files}
    return {**stored, "matched": np.isfinite(stored["rmsd"]).astype(float), "drop": stored["before"] - stored["after"]}


def spread(values: np.ndarray, ids: np.ndarray, count: int, missing: float) -> np.ndarray:
    """Values of the good crystals among those of all."""
    whole = np.full(count, missing)
    whole[ids] = values
    return whole


def n_evaluations(schedule: SamplingSchedule, run: Run, generator: Generator) -> float:
    """Of the score network, for each crystal."""
    spacings = plane_spacings(crystals_of(run)[0].cells).max(axis=1)
    sigmas = generator.model.manifest.sigmas
    return float(np.mean([schedule.n_evaluations(len(schedule.levels(sigmas, float(s)))) for s in spacings]))


def property_model(place: Path) -> PropertyModel:
    """The CGCNN of ``models/`` as a bundle, built once."""
    if not (place / "manifest.json").exists():
        from druse_export.bundles.trained import build_bundle

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build_bundle(WEIGHTS, place, priors={}, name=place.name, licence="MIT")
    return PropertyModel.open(place)


Entry = dict[str, Any]


def entry_of(name: str, values: dict[str, np.ndarray], reference: dict[str, np.ndarray], evaluations: float) -> Entry:
    columns = [column for column in (*COLUMNS, *RELAXED) if column.key in values]
    estimates = {column.title: column.estimate(values[column.key], reference.get(column.key)) for column in columns}
    return {"schedule": name, "evaluations": evaluations, **estimates}


def show(title: str, rows: list[Entry], columns: list[Column], first: str) -> None:
    """A table as Markdown."""
    table = rich.table.Table(box=rich.box.MARKDOWN)
    for k, text in enumerate((first, "evaluations", *(column.title for column in columns))):
        table.add_column(text, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        cells = [
            row[column.title].text(column.scale, column.digits) if column.title in row else "" for column in columns
        ]
        evaluations = row["evaluations"]
        table.add_row(row["schedule"], "" if np.isnan(evaluations) else f"{evaluations:,.0f}", *cells)
    print(f"\n{title}")
    rich.console.Console(width=280).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="folder for the runs")
    parser.add_argument("--bundle", type=Path, help="of the generator; the one that comes with Druse")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only-generate", action="store_true", help="leave when the crystals are there")
    parser.add_argument("--relax", type=int, default=0, help="steps of CHGNet relaxation, 0 for none", metavar="STEPS")
    parser.add_argument(
        "--schedules", nargs="+", choices=(*SCHEDULES, *VARIANTS), default=list(SCHEDULES), metavar="NAME",
        help="differences are from the first",
    )  # fmt: skip
    parser.add_argument("--variants", action="store_true", help="all that the named schedules were chosen from, too")
    parser.add_argument("--data", type=Path, default=DATA, help="real crystals, that the model was not trained on")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="chgnet|pymatgen|ase")
    generator = Generator(
        options.bundle, backend=options.backend, precision=options.precision, n_threads=options.threads
    )
    names = dict.fromkeys([*options.schedules, *(VARIANTS if options.variants else ())])
    if options.only_generate:
        for name in names:
            sampled(name, {**SCHEDULES, **VARIANTS}[name], generator, options)
        return
    energy = property_model(options.runs / "cgcnn")

    # of the whole validation set what distances are taken to, and as many crystals as a schedule makes, at random
    real = load_table(options.data, n_jobs=1, cache=options.runs / "tables").crystals
    reference = measured(REAL, real, options.runs, energy, steps=0)
    some = real.take(np.random.default_rng(0).permutation(len(real))[: options.count])
    place = options.runs / f"real-{options.count}"
    entries = [entry_of(REAL, measured(REAL, some, place, energy, options.relax), reference, np.nan)]
    pairs: list[Entry] = []
    base: dict[str, np.ndarray] = {}
    shares = {column.key for column in (*COLUMNS, *RELAXED) if column.kind == "share"}
    for name in names:
        schedule = {**SCHEDULES, **VARIANTS}[name]
        run = sampled(name, schedule, generator, options)
        crystals, ids, wanted = crystals_of(run)
        found = measured(name, crystals, run.path, energy, options.relax)
        found["off"] = np.abs(found["energy"] - wanted)
        values = {
            key: spread(value, ids, options.count, 0.0 if key in shares else np.nan) for key, value in found.items()
        }
        evaluations = n_evaluations(schedule, run, generator)
        entries.append(entry_of(name, values, reference, evaluations))
        base = base or values
        paired = [c for c in (*COLUMNS, *RELAXED) if c.key in PAIRED and c.key in values and c.kind != "distance"]
        if values is not base:
            differences = {c.title: c.difference(values[c.key], base[c.key]) for c in paired}
            pairs.append({"schedule": name, "evaluations": evaluations, **differences})
        if options.json:
            content = {"bundle": generator.bundle.digest, "count": options.count, "seed": options.seed}
            options.json.write_text(json.dumps({**content, "rows": entries, "differences": pairs}, indent=2) + "\n")

    print(f"bundle {generator.bundle.name}, SHA-256 {generator.bundle.digest[:12]}...; {options.count} crystals each")
    show("As they come:", entries, list(COLUMNS), "schedule")
    if options.relax:
        show(f"Relaxed in CHGNet, at most {options.relax} steps:", entries, list(RELAXED), "schedule")
    if pairs:
        show(f"Less those of {next(iter(names))}, from the same latents:", pairs, paired, "schedule")


if __name__ == "__main__":
    main()
