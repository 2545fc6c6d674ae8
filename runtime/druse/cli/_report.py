"""``druse report``."""

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from druse.cli._counting import counting
from druse.cli._options import AsJSON, Jobs
from druse.errors import InputError


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Folders of druse generate, screen, relax or dft.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    top: Annotated[int, typer.Option(help="Candidates with a view of the crystal.", min=0, max=500)] = 24,
    window: Annotated[
        list[str] | None,
        typer.Option(help="How near to its target a property must be, such as band_gap=0.3.", metavar="NAME=VALUE"),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Table of real crystals, whose properties are shown in grey.")
    ] = None,
    models: Annotated[bool, typer.Option(help="Ask the property models of the crystals of a run.")] = True,
    symmetry: Annotated[bool, typer.Option(help="Look for the space groups of the crystals of a run.")] = True,
    jobs: Jobs = 0,
    as_json: AsJSON = False,
) -> None:
    """One HTML page of what became of crystals, with nothing to load from a network.

    Example: druse report runs/demo --out demo.html
    """
    from druse.cli._unfinished import tell_unfinished
    from druse.report import write_report

    tell_unfinished(folders)
    with counting(wanted=not as_json) as progress:
        said = write_report(
            out, folders, top=top, windows=_windows(window or []), reference=reference, models=models,
            symmetry=symmetry, n_jobs=jobs, progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(said), indent=2))
        return
    typer.echo(f"{said.file}: {said.entries:,} entries, {said.candidates:,} candidates, {said.bytes / 1e6:.1f} MB")


def _windows(given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"--window must be NAME=VALUE, such as band_gap=0.3; got {text!r}") from None
    return found
