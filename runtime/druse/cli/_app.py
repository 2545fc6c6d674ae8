"""The application, its global options, and the one place where exceptions become sentences."""

import errno
import io
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import druse
from druse.cli import _bundle, _dft
from druse.cli._bench import bench
from druse.cli._doctor import doctor
from druse.cli._evaluate import evaluate
from druse.cli._export import export
from druse.cli._generate import generate, resume
from druse.cli._plugins import attach
from druse.cli._predict import predict
from druse.cli._relax import relax
from druse.cli._report import report
from druse.cli._screen import screen
from druse.errors import DruseError, MissingDependencyError

app = typer.Typer(
    name="druse",
    help="Crystal structures in bulk, to property targets.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(resume)
app.command()(predict)
app.command()(screen)
app.command()(relax)
app.command()(report)
app.command()(export)
app.command()(evaluate)
app.command()(bench)
app.command()(doctor)
app.add_typer(_bundle.app, name="bundle")
app.add_typer(_dft.app, name="dft")
attach(app)


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


_FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    **dict.fromkeys(_FULL, "; make room and run the same again (a run goes on with druse resume)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "; choose a place where you may write"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "; give another name"),
}


def _sentence(error: Exception) -> str | None:
    """What a person is told of an exception; None for one that nobody foresaw, whose traceback helps more."""
    if isinstance(error, DruseError):  # names of files in it may hold what a terminal would obey
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(error))
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("druse"):
        return str(MissingDependencyError(f"this command needs {error.name}; pip install 'druse[export]'"))
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or error.errno in _FULL):
        advice = _ADVICE.get(error.errno or 0, "")
        file = "the output" if error.filename is None else error.filename  # what goes to a file of ours has a name
        return f"{file}: {error.strerror[0].lower()}{error.strerror[1:]}{advice}"
    return None


def main() -> None:
    """Entry point of ``druse``. Errors that were foreseen end in one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # an encoding without Å shows a question mark
    try:
        app()
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
