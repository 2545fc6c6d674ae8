"""Download over HTTP that survives broken connections: it resumes, retries, and never mixes two versions of a file."""

import contextlib
import fcntl
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple

from druse.errors import DownloadError, InputError

_CHUNK = 1 << 16
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_LONGEST_PAUSE = 60.0  # seconds, whatever a server asks for
_BROKEN = (TimeoutError, ConnectionError, http.client.HTTPException, ssl.SSLError)


class Progress(NamedTuple):
    """How far a file has come: bytes that are here, and in all where the server says so."""

    file: str
    done: int
    total: int | None


Report = Callable[[Progress], None]


class Patience(NamedTuple):
    """How long to insist.

    Attributes:
        attempts: in a row that bring nothing before giving up; one that brings bytes starts the count anew.
        pause: seconds after the first failure, doubled after each further one.
        timeout: seconds of silence that count as a failure.
    """

    attempts: int = 5
    pause: float = 1.0
    timeout: float = 30.0


class _InterruptedError(Exception):
    """A trouble that may pass; ``pause`` is what the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


class Part:
    """A file on its way, held by one process at a time, with a note of which version of which URL it belongs to."""

    def __init__(self, path: Path, file: BufferedRandom):
        self.path, self.file = path, file
        self._note = path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return os.fstat(self.file.fileno()).st_size

    def version(self, url: str) -> str | None:
        """The validator (ETag or date) of the bytes that are here, or None where they cannot be continued."""
        try:
            note = json.loads(self._note.read_text())
            return str(note["version"]) if note["url"] == url and note["version"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restart(self, url: str, version: str | None) -> None:
        """Drop the bytes that are here; the next ones are of this version."""
        self.file.seek(0)
        self.file.truncate()
        self._note.write_text(json.dumps({"url": url, "version": version}))

    def forget(self) -> None:
        """Remove the note, once the file has its place."""
        self._note.unlink(missing_ok=True)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[Part]:
    """Open the part file at ``path``, which keeps what an earlier try brought.

    Raises:
        DownloadError: another process is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DownloadError(f"another process is downloading {path}; wait for it, or stop it") from error
        part = Part(path, file)
        try:
            yield part
        finally:
            if part.size == 0:
                path.unlink(missing_ok=True)
                part.forget()


def download(url: str, part: Part, *, name: str, patience: Patience, progress: Report | None = None) -> None:
    """Bring a part file to the whole content of ``url``, and make its bytes last.

    It resumes by a range request tied to the version that it began with. A server that knows no ranges, and a file that
    changed meanwhile, mean a new start. After a failure the bytes stay, for a later call to go on from.

    Raises:
        InputError: not an HTTP address.
        DownloadError: the server refuses, or is out of reach for longer than ``patience``.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"an address must begin with http:// or https://, got {url!r}")
    failures = 0
    while True:
        before = part.size
        try:
            _transfer(url, part, name, patience.timeout, progress)
            break
        except _InterruptedError as error:
            failures = 1 if part.size > before else failures + 1
            if failures >= patience.attempts:
                raise DownloadError(f"{url} could not be fetched: {error} ({failures} attempts)") from error
            time.sleep(min(max(patience.pause * 2 ** (failures - 1), error.pause), _LONGEST_PAUSE))
    os.fsync(part.file.fileno())


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS only: a redirect to a local file or another scheme leads nowhere."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _transfer(url: str, part: Part, name: str, timeout: float, progress: Report | None) -> None:
    """One request, and all bytes that it brings."""
    headers = {"User-Agent": "druse", "Accept-Encoding": "identity"}
    have, version = part.size, part.version(url)
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it was here
            if error.code == 416:
                part.restart(url, None)
                raise _InterruptedError("the server refused to resume") from error
            reason = f"the server answered {error.code} {error.reason}"
            if error.code in _PASSING:
                raise _InterruptedError(reason, _retry_after(error.headers.get("Retry-After"))) from error
            raise DownloadError(f"{url} could not be fetched: {reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise _InterruptedError(_why(error.reason, timeout)) from error
        raise DownloadError(f"{url} could not be fetched: {_why(error.reason, timeout)}") from error
    except _BROKEN as error:
        raise _InterruptedError(_why(error, timeout)) from error
    with answer:
        total = _begin(answer, part, url, have, version)
        while block := _read(answer, timeout):
            part.file.write(block)
            part.file.flush()
            _tell(progress, name, part.size, total)
    if total is not None and part.size != total:
        raise _InterruptedError(f"the connection broke off after {part.size:,} of {total:,} bytes")
    _tell(progress, name, part.size, part.size)


def _begin(answer: http.client.HTTPResponse, part: Part, url: str, have: int, version: str | None) -> int | None:
    """Put the part file where the answer goes on, and say how long it will be."""
    offered = _version(answer)
    length = answer.headers.get("Content-Length")
    if answer.status == 206:
        covered = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if covered is not None and int(covered[1]) == have and offered in (None, version):
            return None if covered[2] == "*" else int(covered[2])
        part.restart(url, None)
        raise _InterruptedError("the server sent another range than it was asked for, or of another version")
    part.restart(url, offered)
    return int(length) if length is not None and length.isdigit() else None


def _version(answer: http.client.HTTPResponse) -> str | None:
    """What identifies the content byte for byte; a weak ETag does not."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _read(answer: http.client.HTTPResponse, timeout: float) -> bytes:
    try:
        return answer.read(_CHUNK)
    except _BROKEN as error:
        raise _InterruptedError(_why(error, timeout)) from error


def _why(error: BaseException | str, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def _retry_after(value: str | None) -> float:
    return float(value) if value is not None and value.isdigit() else 0.0


def _tell(progress: Report | None, name: str, done: int, total: int | None) -> None:
    if progress is not None:
        progress(Progress(name, done, total))
