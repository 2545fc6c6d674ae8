"""Text from outside in bounded memory: lines and blocks of files that may be compressed, endless or a bomb."""

import contextlib
import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from druse._files import is_hollow
from druse._limits import Limits
from druse.errors import InputError

_FREE = 1 << 24
"""Bytes that may come out of a file whatever its size; a short file of one line may well shrink a thousand times."""


class Expands(Exception):  # noqa: N818
    """More comes out of a compressed file than is allowed."""


class _Unpacked(io.RawIOBase):
    """The bytes of a gzipped file, counted."""

    def __init__(self, packed: IO[bytes], limits: Limits) -> None:
        self._packed, self._limits, self._count = packed, limits, 0
        self._plain: Any = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = int(self._plain.readinto(buffer))
        self._count += n
        if self._count > max(_FREE, self._limits.expansion * self._packed.tell()):
            raise Expands(f"more than {self._limits.expansion:g} times as much comes out of it as it has")
        if self._count > self._limits.expanded:
            raise Expands(f"more than {self._limits.expanded:,} bytes come out of it")
        return n


@contextlib.contextmanager
def opened(
    path: Path, limits: Limits, *, newline: str | None = None, errors: str = "replace"
) -> Iterator[io.TextIOBase]:
    """A text file, gzipped if its name says so; what is no UTF-8 in it is replaced, unless ``errors`` is strict.

    Raises:
        InputError: it cannot be read, is no gzip or ends early.
        Expands: it is a bomb.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would not even open
            raise InputError(f"{path} is not a file")
        with path.open("rb") as file:
            if is_hollow(path):
                raise Expands("it is longer than what is stored of it")
            raw: Any = io.BufferedReader(_Unpacked(file, limits)) if path.name.lower().endswith(".gz") else file
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors=errors, newline=newline)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path.name} is broken: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


class Line(NamedTuple):
    """A line with its end, or the beginning of one that is too long; empty after the last."""

    text: str
    whole: bool


def next_line(file: io.TextIOBase, limit: int) -> Line:
    """The next line; no more of it than ``limit`` is ever in memory."""
    text = file.readline(limit + 1)
    if len(text) <= limit or text.endswith("\n"):
        return Line(text, True)
    while (rest := file.readline(limit)) and not rest.endswith("\n"):
        pass
    return Line(text, False)


class Block(NamedTuple):
    """A block of CIF: its name, and its text or, where that is too long, nothing."""

    name: str
    text: str


def cif_blocks(file: io.TextIOBase, limits: Limits) -> Iterator[Block]:
    """The blocks that say something of a structure, in order; what stands before the first is no block."""
    name, lines, size, relevant = None, list[str](), 0, False
    while (line := next_line(file, limits.text)).text:
        text = line.text.lstrip()
        if text.startswith("data_"):
            if name is not None and relevant:
                yield Block(name, "".join(lines))
            name, lines, size, relevant = text[5:].split(None, 1)[0][:80] if text[5:].strip() else "", [], 0, False
        relevant = relevant or text.lower().startswith(("_cell_length_", "_atom_site_"))
        size += len(line.text)
        if size > limits.text:
            lines, relevant = [], True
        elif name is not None and text:
            lines.append(line.text)
    if name is not None and relevant:
        yield Block(name, "".join(lines))
