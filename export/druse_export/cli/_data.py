"""``druse data``: fetch, describe and split data sets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from druse_export.cli import _fetch
from druse_export.cli._show import counting, page

if TYPE_CHECKING:
    from druse_export.data.describe import Description

app = typer.Typer(help="Fetch, describe and split data sets of crystals.", no_args_is_help=True)
app.add_typer(_fetch.app, name="fetch")

_FILE = typer.Argument(metavar="FILE", help="CSV (.csv, .csv.gz), Parquet, extended XYZ, or a folder of CIF files.")
_REJECTED_SHOWN = 10


def _print(description: "Description", console: Console) -> None:
    read = description.n_rows - len(description.rejected)
    facts = f"[bold]{description.n_rows:,}[/] rows, [bold]{read:,}[/] read, {len(description.rejected):,} skipped"
    if description.n_filtered:
        facts += f"; [bold]{description.n_crystals:,}[/] pass the filters"
    console.print(facts, highlight=False)
    for row in description.rejected[:_REJECTED_SHOWN]:
        console.print(f"  [yellow]skipped[/] {escape(row.id)}: {escape(row.reason)}", highlight=False, soft_wrap=True)
    if (more := len(description.rejected) - _REJECTED_SHOWN) > 0:
        console.print(f"  and {more:,} more; --json lists them all", highlight=False)
    table = Table(box=None, padding=(0, 2 if console.width > 90 else 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("property", overflow="fold")
    table.add_column("unit", no_wrap=True)
    for heading in ("count", "min", "mean", "median", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    for s in description.properties:
        numbers = (f"{value:.3g}" for value in (s.minimum, s.mean, s.median, s.maximum))
        table.add_row(escape(s.name), s.unit, f"{s.count:,}", *numbers)
    console.print()
    console.print(table)
    console.print()
    if description.crystal_systems:
        systems = ", ".join(f"{count:,} {name}" for name, count in description.crystal_systems.items() if count)
        console.print(f"[bold]crystal systems[/]  {systems}", highlight=False)
    often = sorted(description.elements.items(), key=lambda item: -item[1])
    some = ", ".join(f"{symbol} {count:,}" for symbol, count in often[:10])
    console.print(f"[bold]elements[/]  {len(often)}; in most crystals: {some}", highlight=False)


@app.command()
def describe(
    file: Annotated[Path, _FILE],
    out: Annotated[Path | None, typer.Option(help="Draw the distributions here (.png, .pdf, .svg).")] = None,
    max_atoms: Annotated[int | None, typer.Option(help="Atoms in the cell, at most; the paper: 20 or 40.")] = None,
    max_hull: Annotated[
        float | None, typer.Option(help="Energy above hull in eV/atom, below this; the paper: 0.5.")
    ] = None,
    max_gap: Annotated[float | None, typer.Option(help="Band gap, below this, eV; the paper: 8.")] = None,
    min_density: Annotated[float | None, typer.Option(help="Atoms per Å³, above this; the paper: 0.01.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what was read, so that the next time is fast; your cache folder.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor keep what was read.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0 for every core.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON.")] = False,
) -> None:
    """Say what a data set holds: rows, properties, symmetry, elements; --out draws it (the paper's figure A1)."""
    from druse.tables import default_cache, load_table
    from druse_export.data.describe import describe as describe_table
    from druse_export.data.figure import draw_distributions, figure_format, save_figure

    if out is not None:
        figure_format(out)
    folder = None if no_cache else cache or default_cache()
    with counting("reading", wanted=not as_json) as progress:
        table = load_table(file, n_jobs=jobs, cache=folder, progress=progress)
    kept = table.filtered(max_atoms=max_atoms, max_hull=max_hull, max_gap=max_gap, min_density=min_density)
    description = describe_table(kept, n_filtered=len(table) - len(kept))
    if as_json:
        typer.echo(json.dumps({"file": str(file), **description.to_dict()}, indent=2))
    else:
        _print(description, page())
    if out is not None:
        save_figure(draw_distributions(kept, f"{file.resolve().parent.name}/{file.name}"), out)


@app.command()
def split(
    file: Annotated[Path, _FILE],
    out: Annotated[Path, typer.Option(help="Folder for train.csv, val.csv and test.csv.")],
    seed: Annotated[int, typer.Option(help="Of the permutation; the same seed gives the same parts.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers of rows as JSON.")] = False,
) -> None:
    """Write the rows of a data set to three files at random, 8 : 1 : 1, as they are."""
    from druse_export.data.split import split_file

    counts = split_file(file, out, seed=seed, force=force)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "seed": seed, "rows": counts}, indent=2))
    else:
        for name, count in counts.items():
            typer.echo(f"{count:>9,} rows in {out / name}")
