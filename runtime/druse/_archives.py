"""Members of zip archives from outside: read one by one, bounded, and never unpacked to a place."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from druse._limits import Limits
from druse.errors import InputError

_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar", ".zst")
_FREE = 1 << 16
"""Bytes that a member may have however small it is in the archive."""


class Member(NamedTuple):
    """A member: its name, and its content or why there is none."""

    name: str
    content: bytes
    fault: str = ""


class Bounded:
    """A file of which at most so many bytes are read at once; `zipfile` reads the whole list of members in one go."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit = file, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """As of a file; a list that is cut by it is found broken."""
        return self._file.read(min(size, self._limit) if size >= 0 else self._limit)  # type: ignore[no-any-return]


def members(path: Path, wanted: Any, limits: Limits) -> Iterator[Member]:
    """The members that are wanted, in the order of the archive, and archives within it, which are not opened.

    Args:
        path: of the archive.
        wanted: says by the name of a member whether it is.
        limits: of what comes out.

    Raises:
        InputError: it is no zip archive, or broken.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(Bounded(file, limits.directory)) as archive:
            infos = archive.infolist()
            total, overlapping = 0, _overlapping(infos)
            for info in infos:
                name = info.orig_filename
                if info.is_dir() or not (wanted(name) or name.lower().endswith(_ARCHIVES)):
                    continue
                fault = _fault(info, limits) or (
                    "it shares its bytes with another member" if info in overlapping else ""
                )
                content = b""
                if not fault:
                    content, fault = _content(archive, info, limits)
                yield Member(name, b"" if fault else content, fault)
                total += len(content)
                if total > limits.expanded:
                    yield Member(
                        path.name, b"", f"more than {limits.expanded:,} bytes come out of it; the rest is not read"
                    )
                    return
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path.name} is broken, or no zip archive: {error}") from error


def _fault(info: zipfile.ZipInfo, limits: Limits) -> str:
    """Why a member is not even looked at."""
    name = info.orig_filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or "\0" in name:
        return "its name leads out of the archive"
    if name.lower().endswith(_ARCHIVES):
        return "an archive within an archive is not opened"
    if info.flag_bits & 1:
        return "it is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is compressed by method {info.compress_type}; stored and deflated members are read"
    if info.file_size > limits.text:
        return f"{info.file_size:,} bytes, more than {limits.text:,}"
    return ""


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> tuple[bytes, str]:
    """The bytes of a member, of which the archive's own figures are not believed."""
    try:
        with archive.open(info) as member:
            content = member.read(limits.text + 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        return b"", f"it is broken: {error}"
    if len(content) > limits.text:
        return content, f"more than {limits.text:,} bytes"
    if len(content) != info.file_size:
        return content, f"{len(content):,} bytes, not the {info.file_size:,} that the archive says"
    if len(content) > max(_FREE, limits.expansion * info.compress_size):
        return (
            content,
            f"{len(content):,} bytes out of {info.compress_size:,}, more than {limits.expansion:g} times as much",
        )
    return content, ""


def _overlapping(infos: list[zipfile.ZipInfo]) -> set[zipfile.ZipInfo]:
    """Members whose bytes lie in another one's too, which no honest writer makes."""
    found: set[zipfile.ZipInfo] = set()
    end, last = -1, None
    for info in sorted(infos, key=lambda one: (one.header_offset, one.compress_size)):
        if last is not None and info.header_offset < end:
            found |= {info, last}
        reach = info.header_offset + 30 + info.compress_size
        if reach > end:
            end, last = reach, info
    return found
