"""Arguments and options that several commands share: one name, one sentence."""

from pathlib import Path
from typing import Annotated

import typer

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE", help="Folders of other commands; files and folders of crystals of any kind."),
]
Jobs = Annotated[int, typer.Option(help="Processes; 0 for every core.", min=0)]
Limit = Annotated[int, typer.Option(help="Entries, at most: the first ones; 0 for all.", min=0)]
AsJSON = Annotated[bool, typer.Option("--json", help="Print what came of it as JSON, and no progress bar.")]
