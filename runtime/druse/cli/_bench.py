"""``druse bench``."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from druse.bench import Report, Step, measure
from druse.cli._options import PrecisionName, backend_names
from druse.generate import DEFAULT_SCHEDULE, Generator
from druse.schedules import SCHEDULES

_PARTS = ("graph", "bases", "network", "update", "step")


def bench(
    bundle: Annotated[Path | None, typer.Option(help="Folder or .zip; the one that comes with Druse.")] = None,
    backend: Annotated[
        str, typer.Option(help="auto, or a backend of druse doctor.", autocompletion=backend_names)
    ] = "auto",
    precision: PrecisionName = "auto",
    crystals: Annotated[
        list[int] | None,
        typer.Option(help="Crystals at once; several times for several. 64, and 1,024 on a device.", min=1),
    ] = None,
    schedule: Annotated[
        str, typer.Option(help=f"Sample so really: {', '.join(SCHEDULES)}; or none.", metavar="NAME")
    ] = DEFAULT_SCHEDULE,
    threads: Annotated[int, typer.Option(help="0: every core.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure this machine: a step and its parts, the share of its peak, crystals a second at each schedule."""
    generator = Generator(bundle, backend=backend, precision=precision, n_threads=threads)
    on_device = getattr(generator.model.backend.device, "stream", 0) != 0
    numbers = crystals or ([64, 1024] if on_device else [64])
    console = Console(stderr=True)
    with console.status("measuring", spinner="dots"):
        report = measure(generator, n_crystals=numbers, schedule=None if schedule == "none" else schedule)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    _print(report)


def _print(report: Report) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    peak = "not measured" if report.peak_gflops is None else f"{_rate(report.peak_gflops)} in large products"
    for name, value in (
        ("machine", f"{report.platform}, {report.threads} threads, {report.isa}"),
        ("backend", f"{report.backend}, {report.precision}: {report.engine}"),
        ("bundle", f"{report.bundle}, {report.sha256[:12]}"),
        ("peak", peak),
    ):
        facts.add_row(name, escape(value))
    console.print(facts)
    console.print("\n[bold]a step[/], milliseconds")
    console.print(_steps(report.steps))
    if not all(step.milliseconds["bases"] is not None for step in report.steps):
        console.print("[dim]the native network makes its bases itself[/]")
    if any(step.captured is False for step in report.steps):
        console.print("[yellow]steps could not be captured and are queued kernel by kernel[/]")
    console.print("\n[bold]crystals a second[/], by the time of a step")
    console.print(_speeds(report))
    done = report.sampled
    if done is not None:
        console.print(
            f"\n[bold]sampled[/]  {done.crystals:,} crystals by {escape(done.schedule)}, {done.evaluations:.0f} "
            f"evaluations each, in {done.seconds:.1f} s: [bold]{_number(done.per_second)} a second[/]; their latents "
            f"took {done.latent_seconds:.1f} s; {done.good:,} are good",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _steps(steps: tuple[Step, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("crystals", "edges", *_PARTS, "rate", "of peak", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in steps:
        parts = [step.milliseconds[name] for name in _PARTS]
        memory = step.device_bytes if step.device_bytes is not None else step.array_bytes
        table.add_row(
            f"{step.crystals:,}",
            f"{step.directed_edges:,}",
            *("" if part is None else f"{part:,.3f}" if part < 10 else f"{part:,.1f}" for part in parts),
            "" if step.gflops is None else _rate(step.gflops),
            "" if step.share_of_peak is None else f"{step.share_of_peak:.1%}",
            "" if memory is None else f"{memory / 1e6:,.0f} MB",
        )
    return table


def _speeds(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("schedule", no_wrap=True)
    table.add_column("evaluations", justify="right")
    for step in report.steps:
        table.add_column(f"{step.crystals:,} at once", justify="right")
    for name in dict.fromkeys(speed.schedule for speed in report.speeds):
        mine = [speed for speed in report.speeds if speed.schedule == name]
        table.add_row(escape(name), f"{mine[0].evaluations:,.0f}", *(_number(speed.per_second) for speed in mine))
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rate(gflops: float) -> str:
    return f"{gflops / 1e3:,.1f} TFLOP/s" if gflops >= 1e4 else f"{gflops:,.0f} GFLOP/s"
