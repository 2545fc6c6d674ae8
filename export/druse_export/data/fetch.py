"""Public data sets from where their authors keep them, verified and whole."""

import csv
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from druse._files import move_into_place, whole_file
from druse.errors import DownloadError, InputError
from druse_export.data.download import Part, Patience, Report, claim, download

SOURCE = "https://raw.githubusercontent.com/txie-93/cdvae/main/data"
"""The repository of CDVAE (Xie et al., arXiv:2110.06197), which holds ``<set>/{train,val,test}.csv``."""

SETS = ("mp_20", "perov_5", "carbon_24")
PARTS = ("train.csv", "val.csv", "test.csv")
LOCK = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](\S.*)")


class FetchedFile(NamedTuple):
    """A file that is now in its place.

    Attributes:
        path: of the file.
        url: where it comes from.
        size: in bytes.
        sha256: of its content.
        downloaded: now; False where it was there before.
        checked: what its checksum was compared with: ``given``, ``SHA256SUMS`` (recorded when it first came),
            ``built-in``, or ``nothing`` for the first sight of a file that nobody vouches for.
    """

    path: Path
    url: str
    size: int
    sha256: str
    downloaded: bool
    checked: str


class _Expected(NamedTuple):
    sha256: str | None
    by: str


def read_checksums(path: Path) -> dict[str, str]:
    """SHA-256 by file name, from a file as ``sha256sum`` writes it; lines that begin with # are comments.

    Raises:
        InputError: the file is missing, or a line is of another form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of checksums: {error}") from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise InputError(
                f"{source}, line {number}: must be 64 hexadecimal digits, two spaces and a file name, got {line[:80]!r}"
            )
        found[match[2]] = match[1].lower()
    return found


def fetch_dataset(
    name: str,
    folder: Path,
    *,
    mirror: str = SOURCE,
    checksums: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Report | None = None,
    patience: Patience | None = None,
) -> tuple[FetchedFile, ...]:
    """Download the three files of a data set, or verify those that are there.

    Every file appears whole or not at all. What an interrupted call brought is continued by the next. A checksum comes
    from ``checksums``; else from ``SHA256SUMS`` in the folder, where every file is recorded when it first comes; else
    from the list that Druse carries, which knows ``mp_20``. A file with another checksum is refused, and what was there
    before stays.

    Args:
        name: of the data set (`SETS`).
        folder: for the files; made where it is missing.
        mirror: base address; ``<mirror>/<name>/train.csv`` is the first file.
        checksums: SHA-256 by file name (``train.csv`` or ``mp_20/train.csv``).
        force: download what is there already, and do not believe ``SHA256SUMS``.
        progress: called as bytes come.
        patience: with a server that fails.

    Raises:
        InputError: an unknown name, or checksums that lack a file.
        DownloadError: a file could not be fetched, or is not what it should be.
    """
    if name not in SETS:
        raise InputError(f"there is no data set {name!r}; there are {', '.join(SETS)}")
    lock = folder / LOCK
    recorded = read_checksums(lock) if lock.is_file() else {}
    found = []
    for file in PARTS:
        expected = _expected(name, file, checksums, {} if force else recorded)
        url = f"{mirror.rstrip('/')}/{name}/{file}"
        path = folder / file
        if path.is_file() and not force:
            fetched = _verify(path, url, expected)
        else:
            fetched = _download(path, url, expected, progress, patience or Patience())
        found.append(fetched)
        if recorded.get(file) != fetched.sha256:
            recorded[file] = fetched.sha256
            _record(lock, recorded)
    return tuple(found)


def _expected(name: str, file: str, given: Mapping[str, str] | None, recorded: Mapping[str, str]) -> _Expected:
    if given is not None:
        for key in (f"{name}/{file}", file):
            if key in given:
                return _Expected(given[key].lower(), "given")
        raise InputError(f"`checksums` must name {file} or {name}/{file}; it names {', '.join(given) or 'nothing'}")
    if file in recorded:
        return _Expected(recorded[file], LOCK)
    text = resources.files("druse_export").joinpath("data", "known_sha256.txt").read_text("ascii")
    known = _parse(text, "known_sha256.txt").get(f"{name}/{file}")
    return _Expected(known, "nothing" if known is None else "built-in")


def _verify(path: Path, url: str, expected: _Expected) -> FetchedFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected.sha256 not in (None, digest):
        raise DownloadError(
            f"{path} is there, but is not the expected file: its SHA-256 is {digest}, and {_by(expected)} "
            f"{expected.sha256}; move it away, or fetch it again with --force"
        )
    return FetchedFile(path, url, path.stat().st_size, digest, False, expected.by)


def _download(path: Path, url: str, expected: _Expected, progress: Report | None, patience: Patience) -> FetchedFile:
    with claim(path.with_name(f"{path.name}.part")) as part:
        try:
            download(url, part, name=path.name, patience=patience, progress=progress)
        except DownloadError as error:
            raise DownloadError(
                f"{error}; try again later, name another source with --mirror, or put the file at {path} by hand"
            ) from error
        part.file.seek(0)
        digest = hashlib.file_digest(part.file, "sha256").hexdigest()
        if expected.sha256 not in (None, digest):
            cure = "fetch with --force" if expected.by == LOCK else "give its checksum with --checksums"
            raise _refuse(
                part,
                path,
                f"what {url} sent has SHA-256 {digest}, and {_by(expected)} {expected.sha256}",
                f"if the file was changed on purpose where it comes from, {cure}",
            )
        if not _is_table(part):
            raise _refuse(part, path, f"what {url} sent is no CSV with a column `cif`", "check the address")
        size = part.size
        part.forget()
        move_into_place(part.path, path)
    return FetchedFile(path, url, size, digest, True, expected.by)


def _refuse(part: Part, path: Path, reason: str, remedy: str) -> DownloadError:
    kept = path.with_name(f"{path.name}.rejected")
    part.forget()
    part.path.replace(kept)
    return DownloadError(f"{reason}; it was put aside as {kept}, and nothing else was changed; {remedy}")


def _is_table(part: Part) -> bool:
    """A page that says "not found" or "log in" has a checksum too; where nobody vouches for one, this finds it."""
    part.file.seek(0)
    header = part.file.readline(1 << 16).decode("utf-8", "replace")
    return "cif" in next(csv.reader([header]), [])


def _by(expected: _Expected) -> str:
    return {"given": "you expect", LOCK: f"{LOCK} says", "built-in": "Druse expects"}[expected.by]


def _record(lock: Path, checksums: Mapping[str, str]) -> None:
    with whole_file(lock) as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in checksums.items())
