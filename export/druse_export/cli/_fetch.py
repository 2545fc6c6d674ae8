"""``druse data fetch``: a command for each data set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from druse_export.cli._show import downloading

if TYPE_CHECKING:
    from druse_export.data.fetch import FetchedFile

app = typer.Typer(help="Download a public data set.", no_args_is_help=True)

SETS = {
    "mp_20": "45,231 inorganic crystals of the Materials Project, 1 to 20 atoms",
    "perov_5": "18,928 perovskites, 5 atoms",
    "carbon_24": "10,153 structures of carbon, 6 to 24 atoms",
}

_CHECKED = {
    "given": "checksum as you gave it",
    "SHA256SUMS": "checksum as in SHA256SUMS",
    "built-in": "checksum as Druse knows it",
    "nothing": "nobody vouches for it; its checksum is now in SHA256SUMS",
}


def _print(files: "tuple[FetchedFile, ...]", console: Console) -> None:
    for file in files:
        state = "[green]downloaded[/]" if file.downloaded else "[dim]there already[/]"
        console.print(
            f"{state}  {escape(str(file.path))}, {decimal(file.size)}, {_CHECKED[file.checked]}",
            highlight=False,
            soft_wrap=True,
        )


def _command(name: str) -> Callable[..., None]:
    def fetch(
        out: Annotated[Path | None, typer.Option(help=f"Folder for the files; ./{name} if not given.")] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Download files that are there already, and record them anew.")
        ] = False,
        mirror: Annotated[
            str | None,
            typer.Option(help=f"Base address with {name}/train.csv below it; CDVAE's repository if not given."),
        ] = None,
        checksums: Annotated[
            Path | None, typer.Option(help="Expect the checksums in this file, as sha256sum writes it.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
    ) -> None:
        from druse_export.data.fetch import SOURCE, fetch_dataset, read_checksums

        with downloading(wanted=not as_json) as show:
            files = fetch_dataset(
                name,
                out or Path(name),
                mirror=mirror or SOURCE,
                checksums=None if checksums is None else read_checksums(checksums),
                force=force,
                progress=lambda progress: show(*progress),
            )
        if as_json:
            typer.echo(json.dumps([file._asdict() for file in files], indent=2, default=str))
        else:
            _print(files, Console())

    return fetch


for _name, _what in SETS.items():
    app.command(_name, help=f"{_what} (train, val and test, CSV).")(_command(_name))


@app.command("mp")
def materials_project(
    chemsys: Annotated[
        list[str] | None,
        typer.Option(help="Exactly these elements, such as Li-Fe-O; * is any one. May come several times."),
    ] = None,
    max_atoms: Annotated[int | None, typer.Option(help="Atoms in the cell, at most.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("materials_project.csv"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="MP_API_KEY", help="From https://materialsproject.org/api.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Crystals of today's Materials Project that you choose, with MP-20's columns (needs an API key)."""
    from druse.errors import InputError
    from druse_export.data.materials_project import fetch_materials_project

    if out.exists() and not force:
        raise InputError(f"{out} is there already; give another --out, or --force to replace it")
    console = Console()
    count = fetch_materials_project(
        out,
        api_key=api_key,
        chemical_systems=chemsys or (),
        max_atoms=max_atoms,
        quiet=as_json or not console.is_terminal,
    )
    if as_json:
        typer.echo(json.dumps({"path": str(out), "rows": count}, indent=2))
    else:
        console.print(f"{count:,} crystals in {escape(str(out))}", highlight=False, soft_wrap=True)
