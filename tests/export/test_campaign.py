"""A run on a Ray cluster of this machine: the same bytes, whatever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="bundles are made with PyTorch")
pytest.importorskip("ray", reason="there is no cluster without Ray (the extra `ray`)")

import ray

from druse import Generator, Request, Run, SamplingSchedule, campaign
from druse.errors import DruseError, InputError
from druse.generate import Progress

QUICK = SamplingSchedule(method="ancestral", n_levels=4)
LONG = SamplingSchedule(method="langevin", n_steps=25)
REQUEST = Request(targets={"band_gap": 2.0}, count=20, oversample=3, seed=11, schedule=QUICK, batch=3)
LONGER = msgspec.structs.replace(REQUEST, count=24, schedule=LONG)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs."""
    before = os.environ.copy()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def whole(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes."""
    run = Run.create(tmp_path_factory.mktemp("whole") / "run", generator, REQUEST)
    run.finish(generator)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a run keeps, but when it was made."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "run.json"}


def workers() -> list[int]:
    """Processes of this process's cluster that are at a task of ours."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name = (place / "cmdline").read_bytes()
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            above = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if above == os.getpid() and name.startswith(b"ray::_sampled"):
            found.append(int(place.name))
    return found


@pytest.mark.parametrize("shards_per_task", [1, 3])
def test_the_same_bytes_as_of_one_process(
    cluster: None, whole: Run, generator: Generator, tmp_path: Path, shards_per_task: int
) -> None:
    run = Run.create(tmp_path / "run", generator, REQUEST)
    told: list[Progress] = []
    summary = campaign.finish(run, generator, "auto", shards_per_task=shards_per_task, progress=told.append)
    assert summary.finished == 20
    assert contents(run.path) == contents(whole.path)
    crystals = [progress.done for progress in told if progress.stage == "crystals"]
    assert crystals[0] == 0
    assert crystals[-1] == 20
    assert crystals == sorted(crystals)
    assert ray.is_initialized(), "what was not started here stays"


def test_only_what_is_missing_is_computed(cluster: None, whole: Run, generator: Generator, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.path, copy)
    for k in (1, 2, 4):
        (copy / "shards" / f"{k:05d}.parquet").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()}
    campaign.finish(Run.open(copy), generator, "auto", shards_per_task=4)
    assert contents(copy) == contents(whole.path)
    assert {name: (copy / "shards" / name).stat().st_mtime_ns for name in before} == before


def killer(times: int) -> tuple[list[int], Callable[[Progress], None]]:
    """Kills a worker that is at a task, after each of the first shards that come."""
    killed: list[int] = []

    def report(progress: Progress) -> None:
        if progress.stage == "crystals" and progress.done and len(killed) < times:
            latest = time.monotonic() + 60
            while not (found := workers()) and time.monotonic() < latest:
                time.sleep(0.01)
            os.kill(found[0], signal.SIGKILL)
            killed.append(found[0])

    return killed, report


@pytest.fixture(scope="module")
def long(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose shards take a while."""
    run = Run.create(tmp_path_factory.mktemp("long") / "run", generator, LONGER)
    run.finish(generator)
    return run


def test_a_worker_that_is_killed_loses_its_task_only(
    cluster: None, long: Run, generator: Generator, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", generator, LONGER)
    killed, report = killer(2)
    campaign.finish(run, generator, "auto", progress=report)
    assert len(killed) == 2
    assert contents(run.path) == contents(long.path)


def test_a_task_that_fails_for_good_is_named_and_the_others_go_on(
    cluster: None, long: Run, generator: Generator, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", generator, LONGER)
    killed, report = killer(1)
    with pytest.raises(DruseError, match=r"3 crystals of .*run are missing \(shards \d: WorkerCrashedError") as caught:
        campaign.finish(run, generator, "auto", retries=0, progress=report)
    assert len(killed) == 1
    assert "\n" not in str(caught.value)
    assert run.finished == 21
    assert not (run.path / "crystals.cif").exists()
    run.finish(generator)
    assert contents(run.path) == contents(long.path)


def test_the_driver_that_is_killed_is_followed_by_another(bundle_path: Path, long: Run, tmp_path: Path) -> None:
    """By the command line, with a cluster that it starts; then on one process."""
    generator = Generator(bundle_path, n_threads=2)
    run = Run.create(tmp_path / "run", generator, LONGER)
    command = [sys.executable, "-m", "druse", "resume", str(run.path), "--ray", "local", "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    latest = time.monotonic() + 120
    while run.finished < 6:
        assert driver.poll() is None
        assert time.monotonic() < latest
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert 6 <= run.finished < 24
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert last.stderr == ""
    assert json.loads(last.stdout)["finished"] == 24
    assert contents(run.path) == contents(long.path)


def test_workers_do_not_need_the_bundle_s_place(cluster: None, whole: Run, bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_path, copy)
    generator = Generator(copy)
    shutil.rmtree(copy)
    run = Run.create(tmp_path / "run", generator, REQUEST)
    campaign.finish(run, generator, "auto")
    assert contents(run.path) == contents(whole.path)


def test_where_all_tasks_fail_not_all_are_tried(cluster: None, bundle_path: Path, tmp_path: Path) -> None:
    generator = Generator(bundle_path)
    generator.bundle.digest = generator.model.bundle.digest = "0" * 64
    run = Run.create(tmp_path / "run", generator, msgspec.structs.replace(REQUEST, count=200, batch=1, oversample=1))
    with pytest.raises(DruseError, match=r"200 crystals .* \(shards \d, \d, \d, \d: a worker has another bundle than"):
        campaign.finish(run, generator, "auto")


def test_a_worker_with_other_packages_refuses() -> None:
    other = tuple(text for text in campaign._versions() if not text.startswith("numpy"))
    with pytest.raises(InputError, match=r"a worker has numpy .* where the driver has numpy 0.1; install the same on"):
        campaign._opened(campaign._Model("0", "ort-cpu", "fp32", 1, (*other, "numpy 0.1")))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cpus_per_task": 0}, "at least 1 CPU"), ({"gpus_per_task": -1.0}, "at least 1 CPU"), ({"retries": -1}, "got")],
)
def test_numbers_that_cannot_be(whole: Run, generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        campaign.finish(whole, generator, "auto", **options)


def test_without_a_cluster_it_is_said_in_one_line(generator: Generator, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", generator, REQUEST)
    result = subprocess.run(
        [sys.executable, "-m", "druse", "resume", str(run.path), "--ray", "127.0.0.1:1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert "there is no Ray cluster to be had at 127.0.0.1:1" in result.stderr
    assert result.stderr.count("\n") == 1
