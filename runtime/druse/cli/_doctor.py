"""``druse doctor``."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from druse.doctor import Report, examine

_MARKS = {
    "works": "[green]works[/]",
    "not installed": "[dim]not installed[/]",
    "unavailable": "[dim]unavailable[/]",
    "broken": "[bold red]broken[/]",
}


def _print(report: Report, console: Console) -> None:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")  # a path is of use only when it is whole
    versions = ", ".join(f"{name} {version}" for name, version in report.packages.items())
    for name, value in (
        ("druse", f"{report.druse} on Python {report.python}, {report.platform}"),
        ("native library", report.native_library),
        ("processor", f"{report.threads} threads, {report.isa}"),
        ("CUDA devices", report.devices),
        ("packages", versions),
    ):
        facts.add_row(f"[bold]{name}[/]", escape(value))
    console.print(facts)
    backends = Table(box=None, padding=(0, 2), pad_edge=False)
    for heading in ("backend", "state", ""):
        backends.add_column(heading, header_style="bold")
    for backend in report.backends:
        backends.add_row(backend.name, _MARKS[backend.state], escape(backend.detail))
    console.print()
    console.print(backends)
    console.print()
    for problem in report.problems:
        console.print(f"[bold red]problem:[/] {escape(problem.text)}")
        console.print(f"   [bold]cure:[/] {escape(problem.cure)}", soft_wrap=True)
    if not report.problems:
        console.print("[green]no problems found[/]")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that each backend gets to answer.", min=1.0)] = 60.0,
) -> None:
    """Say what is installed, which backends really run, and how to cure what is wrong."""
    report = examine(timeout=timeout)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report, Console())
    if report.problems:
        raise typer.Exit(1)
