"""Runs that several processes share: killed, ranked once, locked; and what comes out is what one process makes."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch", reason="bundles are made with PyTorch")

from druse import Generator, Request, Run, SamplingSchedule
from druse._folders import locked
from druse._shares import Share, common, working
from druse.errors import InputError
from druse.generate import Progress

QUICK = SamplingSchedule(method="ancestral", n_levels=4)
REQUEST = Request(targets={"band_gap": 2.0}, count=48, oversample=3, seed=11, schedule=QUICK, batch=3)
TARGET = ["--target", "band_gap=2", "--seed", "11", "--batch", "3", "--schedule", "langevin-10"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a run keeps, but when it was made."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "run.json"}


def begun(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "druse", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def killed(process: subprocess.Popen[str]) -> None:
    """With -9."""
    process.kill()
    process.communicate()


def until(true: Callable[[], object], processes: Sequence[subprocess.Popen[str]] = ()) -> None:
    latest = time.monotonic() + 120
    while not true():
        assert time.monotonic() < latest
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "3/3/3", "-1/3", "1/0", "a/b", "1 / 3", "١/٣", "1/100001"])
def test_a_share_is_i_of_n(text: str) -> None:
    with pytest.raises(InputError, match=r"--shard must be i/n with i from 1 to n, such as 3/8; got '"):
        Share.parse(text)


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 8])
def test_shares_are_all_of_the_work_and_none_of_it_twice(n_tasks: int) -> None:
    shares = [Share.parse(f"{task}/{n_tasks}") for task in range(1, n_tasks + 1)]
    assert [[share.has(k) for share in shares].count(True) for k in range(20)] == [1] * 20


def test_shares_overlap_where_they_have_a_part_in_common() -> None:
    shares = [Share(task, n_tasks) for n_tasks in (1, 2, 3, 4, 6) for task in range(1, n_tasks + 1)]
    for a in shares:
        for b in shares:
            assert a.overlaps(b) == any(a.has(k) and b.has(k) for k in range(12))


def test_who_may_work_at_the_same_time(tmp_path: Path) -> None:
    with working(tmp_path, Share(1, 3)), working(tmp_path, Share(2, 3)), working(tmp_path, Share(6, 6)):
        for other, message in (
            (Share(1, 3), r"another process writes to share 1/3 of .*; wait for it, or stop it"),
            (Share(1, 6), r"computes share 1/3 of .*, which has parts of 1/6"),
            (Share(1, 2), r"computes share 1/3 of .*, which has parts of 1/2"),
            (None, r"another process writes to .*; wait for it, or stop it"),
        ):
            with pytest.raises(InputError, match=message), working(tmp_path, other):
                pass
    with working(tmp_path, Share(1, 2)):
        pass  # the others are gone, though their files are there
    with working(tmp_path, None):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(InputError, match="another process writes to"), working(tmp_path, Share(1, 3)):
            pass


def test_what_all_need_is_waited_for(tmp_path: Path) -> None:
    asked: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tmp_path, "common"))

        def waiting() -> None:
            asked.append(1)
            if len(asked) == 2:
                stack.close()

        with common(tmp_path, waiting):
            assert len(asked) == 2


def test_three_tasks_one_of_them_killed_and_a_last_call_make_the_files_of_one_process(
    bundle_path: Path, tmp_path: Path
) -> None:
    asked = ["--bundle", str(bundle_path), "--count", "60", "--oversample", "3", "--threads", "1", *TARGET]
    ended(begun("generate", *asked, "--out", str(tmp_path / "whole")))
    place = tmp_path / "shared"
    generate = ["generate", *asked, "--out", str(place), "--shard"]
    tasks = [begun(*generate, f"{task}/3") for task in (1, 2, 3)]
    until(lambda: (place / "shards" / "00001.parquet").exists())
    killed(tasks[1])
    others = [ended(tasks[0]), ended(tasks[2])]
    run = Run.open(place)
    assert 0 < len(list(run.generated(share=Share(2, 3)))) < 7
    assert {k for k, rows in enumerate(run.shards) if not (place / f"shards/{k:05d}.parquet").exists()} <= {
        k for k in range(20) if k % 3 == 1
    }
    again = ended(begun("resume", str(place), "--shard", "2/3", "--threads", "1"))
    assert {path.name for path in place.iterdir() if not path.name.startswith(".lock")} == {
        "run.json", "latents.parquet", "shards"
    }  # fmt: skip
    assert "21 of 21 crystals are finished" in others[0]
    assert "18 of 18 crystals are finished" in others[1]
    for out in (*others, again):
        assert f"druse resume {place}, which writes the files of crystals" in out.replace("\n", " ")
    ended(begun("resume", str(place)))
    assert contents(place) == contents(tmp_path / "whole")


def test_a_ranker_that_is_killed_is_followed_by_a_task_that_waits(bundle_path: Path, tmp_path: Path) -> None:
    generator = Generator(bundle_path, n_threads=1)
    request = msgspec.structs.replace(REQUEST, oversample=2500)  # 120,000 latents, stored after 32,768
    run = Run.begin(tmp_path / "run", generator, request)
    ranker = begun("resume", str(run.path), "--shard", "1/2", "--threads", "1")
    until((run.path / "ranking.parquet").exists, [ranker])
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 2:  # it waits, and sees how far the other is
            killed(ranker)

    summary = run.finish(generator, share=Share(2, 2), progress=report)
    waited = [progress for progress in told if progress.stage == "latents"]
    assert waited[0].done >= 32_768
    assert waited[0].done % 4096 == 0
    assert [progress.done for progress in waited] == sorted(progress.done for progress in waited)
    assert waited[-1].done == 120_000
    assert (summary.count, summary.finished) == (24, 24)
    whole = Run.create(tmp_path / "whole", generator, request)
    whole.finish(generator)
    run.finish(generator)
    assert contents(run.path) == contents(whole.path)


def test_the_first_task_begins_the_run_and_another_request_is_refused(generator: Generator, tmp_path: Path) -> None:
    run = Run.begin(tmp_path / "run", generator, REQUEST)
    assert Run.begin(tmp_path / "run", generator, REQUEST).file == run.file
    for change, message in (
        ({"seed": 12}, "holds a run with seed 11, not 12; give what it was begun with, or another folder"),
        ({"count": 7, "batch": 2}, "with count 48, not 7, batch 3, not 2;"),
        ({"targets": {"band_gap": 1.0}}, r"with targets .*2.0.*, not .*1.0.*;"),
    ):
        with pytest.raises(InputError, match=message):
            Run.begin(tmp_path / "run", generator, msgspec.structs.replace(REQUEST, **change))
    with pytest.raises(InputError, match="holds a run; go on with it by druse resume"):
        Run.create(tmp_path / "run", generator, REQUEST)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not an empty folder"):
        Run.begin(tmp_path, generator, REQUEST)
    with pytest.raises(InputError, match="is not an empty folder"):
        Run.begin(tmp_path / "file", generator, REQUEST)


def test_tasks_that_come_at_once_begin_one_run(bundle_path: Path, tmp_path: Path) -> None:
    """Each with its share; all open the run that one of them made."""
    asked = ["--bundle", str(bundle_path), "--count", "8", "--oversample", "2", "--threads", "1", *TARGET]
    out = ["--out", str(tmp_path / "run"), "--json", "--shard"]
    tasks = [begun("generate", *asked, *out, f"{task}/4") for task in range(1, 5)]
    for task in tasks:
        ended(task)
    assert Run.open(tmp_path / "run").finished == 8


def test_a_task_leaves_what_others_are_writing(generator: Generator, tmp_path: Path) -> None:
    run = Run.begin(tmp_path / "run", generator, REQUEST)
    (run.path / "shards").mkdir()
    parts = [run.path / "shards" / f".{k:05d}.parquet.77.part" for k in range(3)]
    for part in parts:
        part.write_text("x")
    run.finish(generator, share=Share(2, 3))
    assert [part.exists() for part in parts] == [True, False, True]
    run.finish(generator)
    assert not any(part.exists() for part in parts)


def test_tasks_and_the_whole_run_do_not_work_at_once(generator: Generator, tmp_path: Path) -> None:
    run = Run.begin(tmp_path / "run", generator, REQUEST)
    told: list[Progress] = []

    def meanwhile(progress: Progress) -> None:
        if not told:
            told.append(progress)
            for share, message in (
                (None, "another process writes to .*/run; wait"),
                (Share(1, 3), "another process writes to share 1/3 of .*/run; wait"),
            ):
                with pytest.raises(InputError, match=message):
                    Run.open(run.path).finish(generator, share=share)

    run.finish(generator, share=Share(1, 3), progress=meanwhile)
    assert told
    summary = run.finish(generator, share=Share(2, 3))
    assert (summary.count, summary.finished) == (15, 15)
    assert run.finished == 18 + 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume", "run", "--shard", "9/3"], "--shard must be i/n with i from 1 to n, such as 3/8; got '9/3'"),
        (["resume", "run", "--shard", "1/3", "--ray", "auto"], "give one of them"),
        (["generate", "--out", "new", "--shard", "x"], "--shard must be i/n"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "druse", *arguments], cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
