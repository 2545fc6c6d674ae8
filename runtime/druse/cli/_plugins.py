"""Commands from other packages, found by the entry point group ``druse.commands``.

Such an entry point names a `typer.Typer` (a group of commands) or a function (one command). A name with a dot, as
``bundle.build``, joins a group that Druse has. It is imported for ``druse --help`` too, so its module imports what is
heavy inside of its commands only.
"""

import importlib.metadata
from collections.abc import Callable

import typer

from druse.errors import DruseError

GROUP = "druse.commands"


def attach(app: typer.Typer) -> None:
    """Add every command of the group to ``app``, in the order of their names.

    One that cannot be imported is listed too; only running it fails, and says why.
    """
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            command = entry.load()
        except Exception as error:
            command = _broken(entry, error)
        group, _, name = entry.name.rpartition(".")
        groups = {info.name: info.typer_instance for info in app.registered_groups}
        place = groups.get(group) or app
        if isinstance(command, typer.Typer):
            place.add_typer(command, name=name)
        else:
            place.command(name)(command)


def _broken(entry: importlib.metadata.EntryPoint, cause: Exception) -> Callable[[], None]:
    def command() -> None:
        name = entry.dist.name if entry.dist is not None else "the package that brings it"
        raise DruseError(
            f"the command {entry.name!r} cannot be loaded from {entry.value}: {cause}; update or remove {name}"
        ) from cause

    command.__doc__ = f"Cannot be loaded: {cause}."
    return command
