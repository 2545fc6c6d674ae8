"""Downloads from a real server on this machine: whole or not at all, resumed, retried, verified."""

import fcntl
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from druse.errors import DownloadError, InputError
from druse_export.cli._fetch import SETS as SHOWN
from druse_export.data.download import Patience, Progress
from druse_export.data.fetch import PARTS, SETS, fetch_dataset, read_checksums

CONTENT = {name: f"material_id,cif,split\n{name},x,1\n".encode() + name.encode() * 20_000 for name in PARTS}
QUICK = Patience(attempts=4, pause=0.0, timeout=5.0)


class Server(http.server.ThreadingHTTPServer):
    """Serves ``/perov_5/*.csv`` and ``/mp_20/*.csv`` with ranges and ETags, and misbehaves as it is told.

    ``script`` holds, for the requests to come, a status to answer with, ``("break", n)`` to close after n bytes, or
    ``"ok"``, which is also what an empty script means.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(CONTENT)
        self.script: list[object] = []
        self.ranges = True
        self.honest_ranges = True
        self.etags = True
        self.seen: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.seen.append((name, self.headers.get("Range")))
        action = self.server.script.pop(0) if self.server.script else "ok"
        if isinstance(action, int):
            self.send_response(action)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.files[name]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = self.headers.get("Range")
        start = 0
        if asked and self.server.ranges and self.headers.get("If-Range") in (etag, None):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            told = start if self.server.honest_ranges else start + 1
            self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.etags:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if isinstance(action, tuple):
            self.wfile.write(body[: action[1]])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, folder: Path, name: str = "perov_5", **options: object) -> tuple[tuple[str, bool, str], ...]:
    files = fetch_dataset(name, folder, mirror=server.address, patience=QUICK, **options)  # type: ignore[arg-type]
    for file in files:
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
        assert file.size == file.path.stat().st_size
    return tuple((file.path.name, file.downloaded, file.checked) for file in files)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def whole(folder: Path) -> bool:
    """All files, nothing else, and all right."""
    return names(folder) == ["SHA256SUMS", *sorted(PARTS)] and all(
        (folder / name).read_bytes() == content for name, content in CONTENT.items()
    )


def test_first_fetch_records_and_later_ones_verify(server: Server, tmp_path: Path) -> None:
    seen: list[Progress] = []
    assert fetch(server, tmp_path, progress=seen.append) == tuple((name, True, "nothing") for name in PARTS)
    assert whole(tmp_path)
    for name in PARTS:
        done = [p.done for p in seen if p.file == name]
        assert done == sorted(done)
        assert done[-1] == len(CONTENT[name])
    assert read_checksums(tmp_path / "SHA256SUMS") == {n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()}
    requests = len(server.seen)
    assert fetch(server, tmp_path) == tuple((name, False, "SHA256SUMS") for name in PARTS)
    assert len(server.seen) == requests, "what is there is not asked for again"


def test_a_broken_connection_is_resumed_in_the_same_call(server: Server, tmp_path: Path) -> None:
    server.script = [("break", 30_000), ("break", 40_000)]
    fetch(server, tmp_path)
    assert whole(tmp_path)
    assert [asked for name, asked in server.seen if name == "train.csv"] == [None, "bytes=30000-", "bytes=70000-"]


def test_a_broken_connection_is_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.script = [("break", 30_000), 503, 503, 503, 503]
    with pytest.raises(DownloadError, match=r"503 .*try again later.*--mirror.*by hand"):
        fetch(server, tmp_path)
    assert names(tmp_path) == ["train.csv.part", "train.csv.part.json"]
    server.seen.clear()
    fetch(server, tmp_path)
    assert whole(tmp_path)
    assert server.seen[0] == ("train.csv", "bytes=30000-")


def test_bytes_that_all_came_are_not_fetched_again(server: Server, tmp_path: Path) -> None:
    content = CONTENT["train.csv"]
    (tmp_path / "train.csv.part").write_bytes(content)
    note = {"url": f"{server.address}/perov_5/train.csv", "version": f'"{hashlib.md5(content).hexdigest()}"'}
    (tmp_path / "train.csv.part.json").write_text(json.dumps(note))
    fetch(server, tmp_path)
    assert whole(tmp_path)
    assert [name for name, _ in server.seen] == list(PARTS)


def test_a_server_without_ranges_is_asked_for_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.script = [("break", 30_000)]
    fetch(server, tmp_path)
    assert whole(tmp_path)


def test_without_a_validator_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.etags = False
    server.script = [("break", 30_000)]
    fetch(server, tmp_path)
    assert whole(tmp_path)
    assert all(asked is None for _, asked in server.seen)


def test_a_server_that_sends_another_range_is_not_believed(server: Server, tmp_path: Path) -> None:
    server.honest_ranges = False
    server.script = [("break", 30_000)]
    fetch(server, tmp_path)
    assert whole(tmp_path)


def test_two_versions_of_a_file_are_never_mixed(server: Server, tmp_path: Path) -> None:
    new = CONTENT["train.csv"]
    server.files["train.csv"] = new.replace(b"1", b"2")
    server.script = [("break", 30_000), 500, 500, 500, 500]
    with pytest.raises(DownloadError, match="500"):
        fetch(server, tmp_path)
    server.files["train.csv"] = new
    fetch(server, tmp_path)
    assert whole(tmp_path)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_troubles_are_sat_out(server: Server, tmp_path: Path, status: int) -> None:
    server.script = [status, status]
    fetch(server, tmp_path)
    assert whole(tmp_path)


def test_a_missing_file_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    server.script = [404]
    with pytest.raises(DownloadError, match=r"perov_5/train\.csv could not be fetched: the server answered 404"):
        fetch(server, tmp_path)
    assert len(server.seen) == 1


def test_silence_is_given_up(server: Server, tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(DownloadError, match=r"no answer within 0\.1 s \(2 attempts\)"):
            fetch_dataset(
                "perov_5",
                tmp_path,
                mirror=f"http://127.0.0.1:{deaf.getsockname()[1]}",
                patience=Patience(attempts=2, pause=0.0, timeout=0.1),
            )


def test_a_machine_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DownloadError, match=r"connection refused; try again later") as caught:
        fetch_dataset("perov_5", tmp_path, mirror=f"http://127.0.0.1:{port}", patience=QUICK)
    assert str(tmp_path / "train.csv") in str(caught.value), "where to put the file by hand"
    assert names(tmp_path) == []


def test_wrong_bytes_are_put_aside_and_the_old_file_stays(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    given = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    server.files["val.csv"] = wrong = CONTENT["val.csv"] + b"!"
    with pytest.raises(DownloadError, match=r"you expect .*val\.csv\.rejected.*nothing else was changed"):
        fetch(server, tmp_path, checksums=given, force=True)
    assert (tmp_path / "val.csv").read_bytes() == CONTENT["val.csv"]
    assert (tmp_path / "val.csv.rejected").read_bytes() == wrong
    assert read_checksums(tmp_path / "SHA256SUMS") == given


def test_a_file_that_changed_where_it_comes_from_needs_force(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    (tmp_path / "test.csv").unlink()
    server.files["test.csv"] = CONTENT["test.csv"] + b"new"
    with pytest.raises(DownloadError, match=r"SHA256SUMS says .*fetch with --force"):
        fetch(server, tmp_path)
    assert not (tmp_path / "test.csv").exists()
    assert fetch(server, tmp_path, force=True)[2] == ("test.csv", True, "nothing")
    assert fetch(server, tmp_path)[2] == ("test.csv", False, "SHA256SUMS")


def test_a_file_that_changed_here_is_noticed_and_kept(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    (tmp_path / "val.csv").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"val\.csv is there, but is not the expected file.*--force"):
        fetch(server, tmp_path)
    assert (tmp_path / "val.csv").read_bytes() == b"mine"


def test_mp_20_is_known_without_a_first_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="Druse expects 133bab58"):
        fetch(server, tmp_path, name="mp_20")
    assert names(tmp_path) == ["train.csv.rejected"]


def test_files_put_there_by_hand_are_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(CONTENT["train.csv"])
    assert fetch(server, tmp_path)[:2] == (("train.csv", False, "nothing"), ("val.csv", True, "nothing"))
    assert whole(tmp_path)


def test_a_page_is_no_table(server: Server, tmp_path: Path) -> None:
    server.files["train.csv"] = b"<html>please log in to this network</html>"
    with pytest.raises(DownloadError, match="no CSV with a column `cif`"):
        fetch(server, tmp_path)
    assert names(tmp_path) == ["train.csv.rejected"]


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "train.csv.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading"):
            fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert whole(tmp_path)


@pytest.mark.parametrize("mirror", ["file:///etc", "/data", "ftp://example.org"])
def test_only_http(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(InputError, match="must begin with http"):
        fetch_dataset("perov_5", tmp_path, mirror=mirror)


def test_checksums_that_do_not_fit(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must name train\.csv or perov_5/train\.csv; it names other\.csv"):
        fetch(server, tmp_path, checksums={"other.csv": "0" * 64})
    (tmp_path / "sums").write_text("# comment\n\nabc  train.csv\n")
    with pytest.raises(InputError, match="line 3: must be 64 hexadecimal digits"):
        read_checksums(tmp_path / "sums")
    with pytest.raises(InputError, match="there is no data set 'mp20'; there are mp_20"):
        fetch_dataset("mp20", tmp_path)
    assert server.seen == []


def test_every_set_has_a_command() -> None:
    assert tuple(SHOWN) == SETS
