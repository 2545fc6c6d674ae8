"""Folders of results: who may write what at a time, and what took part."""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from druse.errors import InputError

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
