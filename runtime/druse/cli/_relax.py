"""``druse relax``."""

import json
import math
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from druse.cli._counting import counting
from druse.cli._options import AsJSON, Jobs, Limit, Sources
from druse.errors import InputError

_REASONS_SHOWN = 10


def relax(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Folder to be made, or to go on with.", show_default=False)],
    calculator: Annotated[
        str, typer.Option(help="A name of ASE's, such as emt; chgnet; or module:Class, which is imported.")
    ] = "chgnet",
    arguments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Argument of the calculator, as JSON; several times for several."
        ),
    ] = None,
    fmax: Annotated[float, typer.Option(help="Forces in the end, eV/Å.")] = 0.05,
    steps: Annotated[int, typer.Option(help="Moves of a crystal, at most.")] = 500,
    optimizer: Annotated[str, typer.Option(help="FIRE, BFGS or LBFGS.")] = "FIRE",
    cell: Annotated[bool, typer.Option("--cell/--no-cell", help="Whether cells move too.")] = True,
    pressure: Annotated[float, typer.Option(help="From outside, GPa.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="For one crystal, by the clock on the wall.")] = 300.0,
    batched: Annotated[
        bool | None,
        typer.Option(
            "--batched/--no-batched", help="Crystals that share calls; where the calculator can.", show_default=False
        ),
    ] = None,
    limit: Limit = 0,
    jobs: Jobs = 0,
    as_json: AsJSON = False,
) -> None:
    """Relax crystals, in a folder that any interruption leaves whole: the same command goes on.

    Example: druse relax runs/demo --calculator chgnet --out relaxed/demo
    """
    from druse.cli._unfinished import tell_unfinished
    from druse.relax import Relaxation, relaxing

    how = relaxing(
        calculator, batched=batched, arguments=_arguments(arguments or []), optimizer=optimizer, fmax=fmax, steps=steps,
        cell=cell, pressure=pressure, seconds=seconds,
    )  # fmt: skip
    tell_unfinished(sources)
    finish(Relaxation.create(out, sources, how, limit=limit), jobs, as_json)


def finish(relaxation: Any, jobs: int, as_json: bool) -> None:
    """Go on with a relaxation to its end, and print what it came to."""
    out = relaxation.path
    console = Console(stderr=True)
    warnings.filterwarnings("ignore", "A worker was restarted", UserWarning)  # by loky, which takes caches for a leak
    try:
        with counting(wanted=not as_json) as progress:
            total = relaxation.count() if console.is_terminal and not as_json else 0
            progress("relaxing", 0, total)
            summary = relaxation.finish(n_jobs=jobs, progress=lambda done: progress("relaxing", done, total))
    except KeyboardInterrupt:
        console.print(
            f"stopped; what is relaxed is stored. Go on with [bold]druse resume {escape(str(out))}[/]",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(130)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **_json(msgspec.to_builtins(summary))}, indent=2))
        return
    _print(out, summary)


def _print(out: Path, summary: Any) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(
        f"[bold]{summary.converged:,}[/] of {summary.entries:,} crystals converged, {summary.relaxed:,} are without a "
        f"failure; {summary.seconds:,.0f} s",
        highlight=False,
    )
    if summary.converged:
        console.print("\nmean absolute change of the converged ones", highlight=False)
        heads = ("a, Å", "b, Å", "c, Å", "α, °", "β, °", "γ, °", "RMSD", "RMSD, Å")
        values = [*summary.changes.values(), summary.rmsd, summary.rmsd_angstrom]
        table = Table.grid(padding=(0, 2))  # a line for each: eleven columns are too many for some terminals
        table.add_column(style="dim")
        table.add_column(justify="right")
        for head, value in zip(heads, values, strict=True):
            table.add_row(head, "" if math.isnan(value) else f"{value:.3f}")
        table.add_row("matched", f"{summary.matched:,} of {summary.converged:,}")
        table.add_row("steps", f"{summary.steps:.0f}")
        console.print(table)
    if summary.failures:
        console.print(f"\n[bold]{summary.entries - summary.relaxed:,}[/] failed", highlight=False)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right")
        grid.add_column(overflow="fold")
        for reason, count in list(summary.failures.items())[:_REASONS_SHOWN]:
            grid.add_row(f"{count:,}", escape("".join(c if c.isprintable() else "?" for c in reason)))
        console.print(grid)
        if (more := len(summary.failures) - _REASONS_SHOWN) > 0:
            console.print(f"and {more:,} reasons more; --json lists them all", highlight=False)
    console.print(
        f"\n{escape(str(out))}/relaxed.parquet, relaxed.extxyz and relaxed.cif", highlight=False, soft_wrap=True
    )


def _arguments(given: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise InputError(f"--set must be NAME=VALUE, such as epsilon=0.01; got {text!r}")
        if name.strip() in found:
            raise InputError(f"--set {name.strip()} is given twice")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value
    return found


def _json(values: Any) -> Any:
    """As JSON has it, which knows no NaN."""
    if isinstance(values, dict):
        return {name: _json(value) for name, value in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values
