"""Settings as TOML: a file, and assignments that change it."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from druse.errors import InputError


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        InputError: there is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give a TOML file of settings") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error


def override(content: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of ``content`` with ``a.b=value`` set, values as in TOML; what is no TOML value is taken as text.

    Raises:
        InputError: an assignment has no ``=``, or leads into something that is no table.
    """
    result: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(content))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise InputError(f"cannot read {assignment!r}; write NAME=VALUE, such as settings.epochs=100")
        *tables, name = path.strip().split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise InputError(f"cannot set {path}: {table} is a value, not a table of settings")
        try:
            place[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            place[name] = text
    return result
