"""The cache of engines: whole, this user's own, and of the key that is asked for; anything else is not there."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from druse.backends._engines import EngineCache, default_folder

KEY = {"library": "TensorRT 10.9", "device": "NVIDIA H100", "network": "ab" * 32, "shapes": "x 4x8"}
ENGINE = bytes(range(256)) * 50 + b"\n{}\n"


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    made = EngineCache(tmp_path / "druse" / "engines")
    made.write(KEY, ENGINE)
    return made


def test_what_is_written_is_read(cache: EngineCache) -> None:
    assert cache.read(KEY) == ENGINE
    assert cache.read(dict(reversed(KEY.items()))) == ENGINE
    cache.write(KEY, b"")
    assert cache.read(KEY) == b""
    assert [file.name for file in cache.folder.iterdir()] == [cache.path(KEY).name], "nothing else is left there"


def test_writers_of_one_key_do_not_meet(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    """Two devices of one model, in one process, build the same engine at the same time."""
    engines = [bytes([k]) * (3_000_000 + k) for k in range(4)]
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda engine: EngineCache(cache.folder).write(KEY, engine), engines))
        assert cache.read(KEY) in engines
    assert not caplog.records
    assert [file.name for file in cache.folder.iterdir()] == [cache.path(KEY).name]


def test_only_this_user_may_read_or_write_it(cache: EngineCache) -> None:
    assert cache.path(KEY).stat().st_mode & 0o777 == 0o600
    assert cache.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("part", KEY)
def test_every_part_of_the_key_counts(cache: EngineCache, part: str) -> None:
    other = {**KEY, part: KEY[part] + "0"}
    assert cache.read(other) is None
    cache.path(KEY).rename(cache.path(other))  # the name alone is not believed
    assert cache.read(other) is None
    cache.write(other, b"other")
    assert cache.read(other) == b"other"


@pytest.mark.parametrize("place", [0, 5, 200, -1])
def test_a_changed_byte_is_seen(cache: EngineCache, place: int, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(cache.path(KEY).read_bytes())
    content[place] ^= 1
    cache.path(KEY).write_bytes(content)
    with caplog.at_level(logging.INFO, "druse"):
        assert cache.read(KEY) is None
    assert "is damaged, or of another key" in caplog.text


@pytest.mark.parametrize("length", [0, 1, 100, 1000])
def test_a_file_that_is_cut_off_is_seen(cache: EngineCache, length: int) -> None:
    cache.path(KEY).write_bytes(cache.path(KEY).read_bytes()[:length])
    assert cache.read(KEY) is None


def test_a_file_that_others_may_write_is_not_used(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.path(KEY).chmod(0o622)
    with caplog.at_level(logging.INFO, "druse"):
        assert cache.read(KEY) is None
    assert "no plain file of this user alone" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_used(cache: EngineCache) -> None:
    os.chown(cache.path(KEY), 12345, -1)
    assert cache.read(KEY) is None


def test_a_link_or_a_pipe_is_not_used(cache: EngineCache) -> None:
    path = cache.path(KEY)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    assert cache.read(KEY) is None
    path.unlink()
    os.mkfifo(path, 0o600)
    assert cache.read(KEY) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EngineCache(tmp_path / "file")
    cache.write(KEY, ENGINE)
    assert "an engine cannot be kept" in caplog.text
    assert cache.read(KEY) is None


def test_the_platform_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("platformdirs", reason="finds the cache folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "druse" / "engines"
