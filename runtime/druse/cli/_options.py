"""Arguments and options that several commands share: one name, one sentence."""

from pathlib import Path
from typing import Annotated, get_args

import typer

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE", help="Folders of other commands; files and folders of crystals of any kind."),
]
Jobs = Annotated[int, typer.Option(help="Processes; 0 for every core.", min=0)]
Limit = Annotated[int, typer.Option(help="Entries, at most: the first ones; 0 for all.", min=0)]
AsJSON = Annotated[bool, typer.Option("--json", help="Print what came of it as JSON, and no progress bar.")]


def backend_names() -> list[str]:
    """For completion."""
    from druse.backends import BACKENDS

    return ["auto", *BACKENDS]


def precision_names() -> list[str]:
    """For completion."""
    from druse.bundle import Precision

    return ["auto", *get_args(Precision)]


PrecisionName = Annotated[
    str,
    typer.Option(help="auto, fp32, tf32, bf16 or fp16; what the backend can.", autocompletion=precision_names),
]
