"""The application, its global options, and the one place where exceptions become sentences."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import druse
from druse.cli._doctor import doctor
from druse.errors import DruseError

app = typer.Typer(
    name="druse",
    help="Crystal structures in bulk, to property targets.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"druse {druse.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Crystal structures in bulk, to property targets."""


def main() -> None:
    """Entry point of ``druse``. Errors that Druse raises on purpose end in one line and exit code 1."""
    try:
        app()
    except DruseError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
