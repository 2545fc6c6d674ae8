"""What a command says of runs that are not finished, before it goes on with what there is of them."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from druse.runs import Run


def tell_unfinished(sources: Sequence[Path]) -> None:
    """A warning for each run of which crystals are missing: what is made of it now lacks them."""
    for source in sources:
        if not (source / "run.json").is_file():
            continue
        run = Run.open(source)
        if missing := run.request.count - run.finished:
            Console(stderr=True).print(
                f"[bold yellow]warning:[/] {missing:,} of {run.request.count:,} crystals of {escape(str(source))} are "
                f"not made yet and left out; druse resume {escape(str(source))} makes them",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
