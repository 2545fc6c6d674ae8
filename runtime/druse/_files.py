"""Files and folders that appear whole or not at all, and files of which only so much is read."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from druse.errors import InputError


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A new file to write; it takes the place of ``path`` when the block ends, and is gone when the block fails.

    Args:
        path: of the file; its folder is made where it is missing.
        mode: ``"w"`` or ``"wb"``.
        options: of `open`, such as ``newline``; text is in UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # threads have one number, and so have processes in two containers or on two machines
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")  # not what this machine's locale says
    try:
        with part.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move_into_place(part, path)
    except OSError as error:
        if error.filename in (None, str(part)):  # a write that failed names no file, a rename the one that is not there
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A folder to fill; it gets its name when the block ends, and is gone when the block fails."""
    place = place.resolve()  # "." has a name too
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if part.exists():
            move_into_place(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON, in a file that appears whole or not at all."""
    with whole_file(path, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def move_into_place(part: Path, path: Path) -> None:
    """Rename a finished file, and make the name last as well as the bytes."""
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_small(path: Path, largest: int = 1 << 26) -> bytes:
    """The content of a file that says what was asked for, which others may have put there.

    Args:
        path: of the file. What is none (a pipe, a device) is not opened: it might never end.
        largest: bytes it may have.

    Raises:
        InputError: it is no file, or larger.
        OSError: it does not exist, or may not be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is not a file")
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise InputError(f"{path} has more than {largest:,} bytes; it is no such file")
    return content


def is_hollow(path: Path) -> bool:
    """Whether a file is long only in name: 100 times longer than what is stored of it, the rest being zeros."""
    found = path.stat()
    return found.st_size > max(_HOLLOW, 100 * 512 * found.st_blocks)


_HOLLOW = 1 << 24
"""Bytes of which nobody asks whether they are stored."""


def in_a_table(value: Any) -> Any:
    """A value for CSV: text that a spreadsheet would take for a formula has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULAS else value


_FORMULAS = frozenset("=+-@\t\r")
