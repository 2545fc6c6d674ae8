"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A new file to write; it takes the place of ``path`` when the block ends, and is gone when the block fails.

    Args:
        path: of the file; its folder is made where it is missing.
        mode: ``"w"`` or ``"wb"``.
        options: of `open`, such as ``newline``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move_into_place(part, path)
    except OSError as error:
        if error.filename is None:  # a write that failed does not say of which file
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


def move_into_place(part: Path, path: Path) -> None:
    """Rename a finished file, and make the name last as well as the bytes."""
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
