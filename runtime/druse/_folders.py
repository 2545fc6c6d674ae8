"""Folders of results: one writer at a time, and what took part."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from druse.errors import InputError

_LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to write into a folder, which goes with the process that has it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process writes to {folder}; wait for it, or stop it") from None
        except OSError as error:
            raise InputError(
                f"{folder} lies on a file system without locks ({error.strerror}); make the run on another one"
            ) from error
        yield
    finally:
        os.close(descriptor)


def is_left_over(path: Path) -> bool:
    """What a writer that was killed may have left before there was a run."""
    return path.name == _LOCK or (path.name.startswith(".") and path.name.endswith(".part"))


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of Druse, Python, and those of the packages that are installed."""
    import importlib.metadata  # 13 ms, which `import druse` shall not take

    found = {"druse": importlib.metadata.version("druse"), "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
