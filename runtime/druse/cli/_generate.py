"""``druse generate`` and ``druse resume``."""

import json
import math
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from druse.cli._machines import CPUs, GPUs, Machines, RayAddress, Shard, ShardsPerTask
from druse.cli._options import AsJSON, backend_names, precision_names
from druse.conditions import CRYSTAL_SYSTEMS
from druse.control import Control
from druse.errors import InputError
from druse.generate import DEFAULT_SCHEDULE, OVERSAMPLE, Generator, Request
from druse.runs import Run, Summary
from druse.schedules import SCHEDULES, sampling_schedule

_DEVICES = "Devices that share the crystals, such as cuda:0,cuda:1."
BundlePath = Annotated[Path | None, typer.Option("--bundle", help="Folder or .zip; the one that comes with Druse.")]


def _control(text: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Control: what every crystal must be", **options)


def _how(text: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="How", **options)


_TITLES = {"latents": "ranking latents", "crystals": "sampling crystals"}


class _Rate(ProgressColumn):
    """Crystals or latents a second."""

    def render(self, task: Task) -> Text:
        """The mean over the last while."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.1f}/s" if speed >= 0.1 else f"{60 * speed:,.1f}/min", style="dim")


class _Bars:
    """A progress bar for each stage."""

    def __init__(self, console: Console, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counted]}"), _Rate(),
            TimeRemainingColumn(), console=console, disable=not shown,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *error: object) -> None:
        if self._tasks:  # where nothing was shown, its end is an empty line
            self._progress.stop()

    def __call__(self, progress: Any) -> None:
        stage, done, total = progress
        done = round(done, 6)  # a sum of parts of crystals, which in the end must be all of them
        counted = f"{int(done):,} of {total:,}"
        if stage not in self._tasks:
            self._progress.start()
            self._tasks[stage] = self._progress.add_task(_TITLES[stage], total=total, counted=counted)
        self._progress.update(self._tasks[stage], completed=done, counted=counted)


def generate(
    out: Annotated[Path, typer.Option(help="Folder of the run, to be made.", show_default=False)],
    count: Annotated[int, typer.Option(help="Crystals wanted.")] = 32,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What a property shall be, such as formation_energy_per_atom=-2; several times for several.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    bundle: BundlePath = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same crystals.")] = 0,
    as_json: AsJSON = False,
    formula: Annotated[str, _control("Exactly this composition, such as LiFePO4.")] = "",
    z: Annotated[int, _control("Formula units in the cell. 0: as the model likes.", "--z", min=0)] = 0,
    elements: Annotated[str, _control("Only from these elements, such as Li,Fe,O.")] = "",
    exclude: Annotated[str, _control("Without these elements, such as Pb,Cd.")] = "",
    n_atoms: Annotated[str, _control("Atoms in the cell: a number, or a range such as 4-12.")] = "",
    crystal_system: Annotated[
        str,
        _control(f"Of the lattice: {', '.join(CRYSTAL_SYSTEMS)}.", autocompletion=lambda: list(CRYSTAL_SYSTEMS)),
    ] = "",
    strategy: Annotated[
        str,
        _how(
            "auto, default, full or less: what conditions the latents.",
            autocompletion=lambda: ["auto", "default", "full", "less"],
        ),
    ] = "auto",
    independent: Annotated[bool, _how("With less: draw each missing property by itself.", "--independent")] = False,
    oversample: Annotated[int, _how("Latents drawn for each crystal that is kept.")] = OVERSAMPLE,
    schedule: Annotated[
        str, _how(f"How crystals are sampled: {', '.join(SCHEDULES)}.", autocompletion=lambda: list(SCHEDULES))
    ] = DEFAULT_SCHEDULE,
    backend: Annotated[
        str, _how("auto, ort-cpu, ort-cuda, ort-openvino or tensorrt.", autocompletion=backend_names)
    ] = "auto",
    precision: Annotated[
        str, _how("fp32, tf32, bf16 or fp16; auto: the fastest as good as fp32.", autocompletion=precision_names)
    ] = "auto",
    devices: Annotated[str, _how(f"{_DEVICES} Empty: the first.")] = "",
    threads: Annotated[int, _how("0: every core.", min=0)] = 0,
    batch: Annotated[int, _how("Crystals stored together. 0: about a minute's.", min=0)] = 0,
    shard: Shard = "",
    ray: RayAddress = "",
    cpus_per_task: CPUs = 1,
    gpus_per_task: GPUs = 0.0,
    shards_per_task: ShardsPerTask = 1,
) -> None:
    """Crystals to property targets, in a folder that any interruption leaves whole.

    Example: druse generate --target formation_energy_per_atom=-2 --count 32 --out runs/demo
    """
    machines = Machines.of(shard, ray, cpus_per_task, gpus_per_task, shards_per_task)
    control = Control(
        formula=formula, z=z, elements=_listed(elements), exclude=_listed(exclude), n_atoms=_range(n_atoms),
        crystal_system=crystal_system,
    )  # fmt: skip
    request = Request(
        targets=_targets(target or []), count=count, strategy=strategy, independent=independent, control=control,
        schedule=sampling_schedule(schedule), oversample=oversample, seed=seed, batch=batch,
    )  # fmt: skip
    console = Console(stderr=True)
    generator = Generator(bundle, backend=backend, precision=precision, n_threads=threads, devices=_listed(devices))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = (Run.begin if machines.share else Run.create)(out, generator, request)
    for text in dict.fromkeys(str(entry.message) for entry in said):
        console.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
    _finish(run, generator, machines, console, as_json)


_HARMLESS = ("emt", "lj", "morse", "chgnet")
"""Calculators that compute and do nothing else, whatever their arguments; a folder may be of others."""


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, a screening or a relaxation.")],
    bundle: BundlePath = None,
    threads: Annotated[
        int, typer.Option("--threads", "--jobs", help="Threads of a run, else processes; 0: every core.", min=0)
    ] = 0,
    devices: Annotated[str, typer.Option(help=f"{_DEVICES} Empty: the first.")] = "",
    shard: Shard = "",
    ray: RayAddress = "",
    cpus_per_task: CPUs = 1,
    gpus_per_task: GPUs = 0.0,
    shards_per_task: ShardsPerTask = 1,
    as_json: AsJSON = False,
) -> None:
    """Go on with a run, a screening or a relaxation that was interrupted; it gives what it would have given."""
    machines = Machines.of(shard, ray, cpus_per_task, gpus_per_task, shards_per_task)
    of_runs = {"--bundle": bundle, "--devices": devices, "--ray": ray}
    if (run / "screen.json").is_file():
        from druse.cli._screen import finish
        from druse.screening import Screening

        if ray:
            raise InputError("--ray is for runs; a screening is shared by --shard")
        _without("a screening", of_runs)
        finish(Screening.open(run), threads, as_json, machines.share)
        return
    if (run / "relax.json").is_file():
        from druse.cli._relax import finish as relax_on
        from druse.relax import Relaxation

        _without("a relaxation", {**of_runs, "--shard": shard})
        opened_relaxation = Relaxation.open(run)
        if (name := opened_relaxation.file.how.calculator) not in _HARMLESS:  # it may import or start anything
            raise InputError(
                f"{run} asks for the calculator {name!r}, which is taken from nobody's file; repeat the command that "
                f"began it: druse relax ... --calculator {name} --out {run}"
            )
        relax_on(opened_relaxation, threads, as_json)
        return
    if (run / "dft.json").is_file():
        raise InputError(f"{run} holds inputs of DFT, which VASP works on; druse dft collect {run} reads what is there")
    opened = Run.open(run)
    generator = opened.generator(bundle=bundle, n_threads=threads, devices=_listed(devices))
    _finish(opened, generator, machines, Console(stderr=True), as_json)


def _without(what: str, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value:
            raise InputError(f"{what} does not take {name}; leave it out")


def _finish(run: Run, generator: Generator, machines: Machines, console: Console, as_json: bool) -> None:
    with _Bars(console, not as_json) as bars:
        try:
            summary = _finished(run, generator, machines, bars)
        except KeyboardInterrupt:
            bars.__exit__()
            again = f"druse resume {run.path}" + (f" --shard {machines.share}" if machines.share else "")
            console.print(
                f"stopped: {run.finished:,} of {run.request.count:,} crystals are finished and stored; go on with "
                f"[bold]{escape(again)}[/]",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            sys.exit(130)
    if as_json:
        share = {"share": str(machines.share)} if machines.share else {}
        typer.echo(json.dumps({"run": str(run.path), **share, **msgspec.to_builtins(summary)}, indent=2))
        return
    Console().print(_table(run, summary, machines))


def _finished(run: Run, generator: Generator, machines: Machines, bars: _Bars) -> Summary:
    if not machines.ray:
        return run.finish(generator, share=machines.share, progress=bars)
    from druse import campaign

    return campaign.finish(
        run, generator, machines.ray, cpus_per_task=machines.cpus, gpus_per_task=machines.gpus,
        shards_per_task=machines.shards, progress=bars,
    )  # fmt: skip


def _table(run: Run, summary: Summary, machines: Machines) -> Table:
    seconds, bad = summary.seconds, summary.finished - summary.good
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    speed = f", {3600 * summary.count / seconds['crystals']:,.0f} an hour" if seconds.get("crystals", 0) > 1 else ""
    rows = {
        "crystals": f"{summary.good:,} good" + (f", {bad:,} failed and left out of the files" if bad else ""),
        "time": ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()) + speed,
        **{f"mean predicted {name}": f"{value:.4g}" for name, value in summary.predicted.items()},
    }
    if summary.changed:
        rows["changed by the control"] = ", ".join(
            f"{name.replace('n_atoms', 'atom count')} in {share:.0%}" for name, share in summary.changed.items()
        )
    if machines.share:
        first = f"share {machines.share}"
        rows = {first: f"{summary.finished:,} of {summary.count:,} crystals are finished", **rows}
        rows["whole run"] = f"{run.finished:,} of {run.request.count:,} crystals are finished"
        rows["when all shares are"] = f"druse resume {run.path}, which writes the files of crystals"
    else:
        rows["files"] = f"{run.path}/crystals.extxyz and {run.path}/crystals.cif"
    for name, text in rows.items():
        grid.add_row(escape(name), escape(text))
    return grid


def _targets(given: list[str]) -> dict[str, float | int | str]:
    found: dict[str, float | int | str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(f"--target must be NAME=VALUE, such as formation_energy_per_atom=-2; got {text!r}")
        if name.strip() in found:
            raise InputError(f"--target {name.strip()} is given twice")
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> float | str:
    """A number where it is one that JSON has; what else it may be, the model's properties tell."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) and "_" not in text else text


def _listed(given: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in given.split(","))))


def _range(given: str) -> tuple[int, int] | None:
    if not given.strip():
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", given)
    if match is None:
        raise InputError(f"--n-atoms must be a number or a range such as 4-12, got {given!r}")
    return int(match[1]), int(match[2] or match[1])
