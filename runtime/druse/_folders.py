"""Folders of results: who may write what at a time, and what took part."""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from druse._files import read_small
from druse.errors import InputError

File = TypeVar("File")

_LOCK = ".lock"
_AGAIN = 0.5  # seconds until a lock that another process has is asked for again


@contextlib.contextmanager
def locked(
    folder: Path,
    name: str = "",
    *,
    what: str = "",
    shared: bool = False,
    waiting: Callable[[], None] | None = None,
) -> Iterator[None]:
    """A right in a folder, which goes with the process that has it, on whatever machine that is.

    Args:
        folder: that exists.
        name: of the right, a part of its file's name; empty: to write into the whole folder.
        what: the right is about, in an error; empty: the folder.
        shared: others may have it at the same time, if they ask for it so too.
        waiting: called again and again until another process gives the right back; None: that is an error.

    Raises:
        InputError: another process has it, or the file system has no locks.
    """
    descriptor = os.open(folder / (f"{_LOCK}-{name}" if name else _LOCK), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _taken(descriptor, folder, shared=shared):
            if waiting is None:
                raise InputError(
                    f"another process writes to {f'{what} of ' if what else ''}{folder}; wait for it, or stop it"
                )
            waiting()
            time.sleep(_AGAIN)
        os.listdir(folder)  # noqa: PTH208  a network file system may remember what was missing until it is opened anew
        yield
    finally:
        os.close(descriptor)


def asked_in(folder: Path, name: str, kind: type[File], schema: int, *, what: str, command: str) -> File:
    """What was asked for, from the file that says so in a folder of results.

    Args:
        folder: any.
        name: of the file, JSON.
        kind: what it holds, with a field ``schema``.
        schema: the version that this Druse reads.
        what: there is in such a folder: "run".
        command: that makes one.

    Raises:
        InputError: there is none, or it is of another version of Druse.
    """
    try:
        file = msgspec.json.decode(read_small(folder / name), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} holds no {what} ({name}); make one with {command} --out {folder}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{folder / name} cannot be used: {error}; it may be of another Druse") from error
    if (found := getattr(file, "schema", None)) != schema:
        raise InputError(f"{folder / name} has version {found}, this Druse reads {schema}; update Druse")
    return file


def is_taken(folder: Path, name: str) -> bool:
    """Whether a process has this right now."""
    try:
        descriptor = os.open(folder / f"{_LOCK}-{name}", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _taken(descriptor, folder, shared=True)
    finally:
        os.close(descriptor)


def lock_files(folder: Path) -> dict[str, Path]:
    """Files of the rights that have names, by name; taken or not."""
    return {path.name.removeprefix(f"{_LOCK}-"): path for path in folder.glob(f"{_LOCK}-*")}


def is_left_over(path: Path) -> bool:
    """What a writer that was killed may have left before there was a run."""
    name = path.name
    return name == _LOCK or name.startswith(f"{_LOCK}-") or (name.startswith(".") and name.endswith(".part"))


def check_free(folder: Path, name: str) -> None:
    """A folder of results can be there: nothing is but what is left over, or the file of this name, by now.

    Raises:
        InputError: there is something else.
    """
    there = {path.name for path in folder.iterdir() if not is_left_over(path)} if folder.is_dir() else {""}
    if folder.exists() and there and name not in there:
        raise InputError(f"{folder} is not an empty folder; give another one")


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of Druse, Python, and those of the packages that are installed."""
    import importlib.metadata  # 13 ms, which `import druse` shall not take

    found = {"druse": importlib.metadata.version("druse"), "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _taken(descriptor: int, folder: Path, *, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{folder} lies on a file system without locks ({error.strerror}); make the run on another one"
        ) from error
    return True
