"""Progress of a command, on a terminal only: a bar for each part, or a count where nobody knows the end."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def counting(*, wanted: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part, on a terminal only; gone when the block ends."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>17}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:

        def update(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(part, total=total)
            bar.update(tasks[part], completed=done, total=total)

        yield update


@contextlib.contextmanager
def reading(*, wanted: bool) -> Iterator[Callable[[int], None]]:
    """How many crystals are done; how many there are, no source says before its end."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} crystals"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done: bar.update(task, completed=done)
