"""``druse export``."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from druse.cli._counting import reading
from druse.cli._options import AsJSON, Jobs, Sources
from druse.io import FORMATS


def export(
    sources: Sources,
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .extxyz, .cif, .zip (a CIF each), .db (ASE), .jsonl (OPTIMADE), .csv.",
            show_default=False,
        ),
    ],
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help=f"{', '.join(FORMATS)}; by the file's name. poscar: a folder, or a .zip.",
            autocompletion=lambda: list(FORMATS),
        ),
    ] = "",
    jobs: Jobs = 0,
    as_json: AsJSON = False,
) -> None:
    """Write crystals to one file for other programs: those of a run, short list, relaxation or file.

    Example: druse export screens/demo --out short_list.db
    """
    from druse.candidates import export as write

    with reading(wanted=not as_json) as progress:
        found = write(sources, out, format=format, n_jobs=jobs, progress=progress)
    if as_json:
        typer.echo(json.dumps({"file": str(out), **found._asdict()}, indent=2))
        return
    typer.echo(f"{found.crystals:,} crystals in {out}")
    console = Console(stderr=True)
    if found.left_out:
        console.print(f"{found.left_out:,} entries that are no crystals are left out", style="yellow", highlight=False)
    if found.unfinished:
        console.print(
            f"{found.unfinished:,} crystals are not made yet; go on with druse resume", style="yellow", highlight=False
        )
