"""Run directories: killed, resumed, locked, damaged, on a full disk; and what comes out is always the same."""

import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

pytest.importorskip("torch", reason="bundles are made with PyTorch")

from druse import Control, Generator, Request, Run, SamplingSchedule
from druse._columns import Ragged, read_columns, write_columns
from druse.errors import InputError
from druse.generate import Progress
from druse.runs import Share

QUICK = SamplingSchedule(method="ancestral", n_levels=4)
LONG = SamplingSchedule(method="langevin", n_steps=25)
REQUEST = Request(targets={"band_gap": 2.0}, count=20, oversample=3, seed=11, schedule=QUICK, batch=6)
FILES = ("crystals.extxyz", "crystals.cif")


@pytest.fixture(scope="module")
def finished(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", generator, REQUEST)
    run.finish(generator)
    return run


def exported(run: Run | Path) -> list[bytes]:
    folder = run if isinstance(run, Path) else run.path
    return [(folder / name).read_bytes() for name in FILES]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_holds(finished: Run, generator: Generator) -> None:
    shards = {f"shards/{k:05d}.parquet" for k in range(4)}
    assert files_in(finished.path) == {"run.json", "latents.parquet", ".lock", ".lock-common", *FILES, *shards}
    again = Run.open(finished.path)
    assert again.file == finished.file
    assert again.finished == 20
    assert again.file.bundle.sha256 == generator.bundle.digest
    assert again.file.versions["druse"]
    crystals = again.crystals()
    parts = list(again.generated())
    assert len(crystals) == sum(int(part.ok.sum()) for part in parts)
    direct = list(generator.generate({"band_gap": 2.0}, count=20, oversample=3, seed=11, schedule=QUICK, batch=6))
    for stored, made in zip(parts, direct, strict=True):
        assert np.array_equal(stored.frac, made.frac)
        assert np.array_equal(stored.cells, made.cells)
        assert np.array_equal(stored.species, made.species)
        assert stored.columns.keys() == made.columns.keys()
        for name, column in made.columns.items():
            assert np.array_equal(stored.columns[name], column)
            assert stored.columns[name].dtype == column.dtype


@pytest.mark.parametrize(("batch", "n_threads"), [(1, 1), (20, 3), (5, 2)])
def test_the_same_files_at_any_batch_and_threads(
    finished: Run, bundle_path: Path, tmp_path: Path, batch: int, n_threads: int
) -> None:
    generator = Generator(bundle_path, n_threads=n_threads)
    run = Run.create(tmp_path / "run", generator, msgspec.structs.replace(REQUEST, batch=batch))
    run.finish(generator)
    assert exported(run) == exported(finished)


def test_a_run_killed_at_ten_moments_gives_the_same_files(bundle_path: Path, tmp_path: Path) -> None:
    """With -9, at least five times while it samples."""
    request = msgspec.structs.replace(REQUEST, count=60, schedule=LONG, batch=3)
    generator = Generator(bundle_path, n_threads=2)
    whole = Run.create(tmp_path / "whole", generator, request)
    whole.finish(generator)

    run = Run.create(tmp_path / "killed", generator, request)
    rng = np.random.default_rng(3)
    while_sampling, before = 0, []
    for k in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "druse", "resume", str(run.path), "--json"], stdout=subprocess.DEVNULL
        )
        if k < 3:
            time.sleep(rng.uniform(0.1, 1.5))  # wherever it is: importing, ranking
        else:
            start, latest = run.finished, time.monotonic() + 60
            while not (run.path / "latents.parquet").exists() or run.finished == start:
                assert process.poll() is None
                assert time.monotonic() < latest
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        before.append(run.finished)
        while_sampling += (run.path / "latents.parquet").exists() and run.finished < 60
    assert while_sampling >= 5
    assert before == sorted(before)
    last = subprocess.run(
        [sys.executable, "-m", "druse", "resume", str(run.path), "--json", "--threads", "1"], capture_output=True
    )
    assert last.returncode == 0, last.stderr
    assert exported(run) == exported(whole)
    assert not [name for name in files_in(run.path) if name.endswith(".part")]


def test_a_run_that_is_stopped_while_it_ranks_goes_on_where_it_was(generator: Generator, tmp_path: Path) -> None:
    """At most a piece of 32,768 latents is ranked again."""
    request = msgspec.structs.replace(REQUEST, oversample=5000)
    whole = Run.create(tmp_path / "whole", generator, request)
    whole.finish(generator)
    run = Run.create(tmp_path / "stopped", generator, request)

    def until(latents: int) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            if progress.done >= latents:
                raise KeyboardInterrupt

        return report

    for latents, begin in ((10_000, 4096), (45_000, 4096), (70_000, 32_768), (70_000, 65_536), (90_000, 65_536)):
        told: list[float] = []
        stop = until(latents)

        def report(progress: Progress, told: list[float] = told, stop: Any = stop) -> None:
            told.append(progress.done)
            stop(progress)

        with pytest.raises(KeyboardInterrupt):
            run.finish(generator, progress=report)
        assert told[0] == begin
    assert files_in(run.path) == {"run.json", ".lock", ".lock-common", "ranking.parquet"}
    run.finish(generator)
    assert files_in(run.path) == files_in(whole.path)
    assert exported(run) == exported(whole)
    latents = [(place.path / "latents.parquet").read_bytes() for place in (run, whole)]
    assert latents[0] == latents[1]


@pytest.mark.parametrize("damage", ["cut", "of another run", "no number"])
def test_a_damaged_ranking_is_named(generator: Generator, tmp_path: Path, damage: str) -> None:
    run = Run.create(tmp_path / "run", generator, REQUEST)
    run.finish(generator)
    content = (run.path / "latents.parquet").read_bytes()
    (run.path / "latents.parquet").unlink()
    columns, ranking = read_columns(run.path / "shards" / "00000.parquet", ""), run.path / "ranking.parquet"
    if damage == "cut":
        ranking.write_bytes(content[:-20])
    elif damage == "no number":
        ranking.write_bytes(content)
    else:
        write_columns(ranking, columns, {"drawn": "10"})
    with pytest.raises(InputError, match=r"ranking.parquet .*delete it, and druse resume"):
        run.finish(generator)


def test_ctrl_c_leaves_what_is_finished(bundle_path: Path, tmp_path: Path) -> None:
    generator = Generator(bundle_path)
    run = Run.create(tmp_path / "run", generator, msgspec.structs.replace(REQUEST, schedule=LONG, batch=2))
    process = subprocess.Popen(
        [sys.executable, "-m", "druse", "resume", str(run.path)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    latest = time.monotonic() + 60
    while run.finished == 0 and process.poll() is None and time.monotonic() < latest:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with druse resume" in said.replace("\n", " ")
    assert "of 20 crystals are finished and stored" in said
    assert 0 < run.finished < 20
    assert not (run.path / FILES[0]).exists()
    assert run.export(tmp_path / "some.csv") <= run.finished
    run.finish(generator)
    assert run.finished == 20


def test_one_writer_at_a_time(bundle_path: Path, tmp_path: Path) -> None:
    generator = Generator(bundle_path)
    run = Run.create(tmp_path / "run", generator, REQUEST)
    told: list[str] = []

    def meanwhile(progress: Progress) -> None:
        if not told:
            with pytest.raises(InputError, match="another process writes to") as caught:
                Run.open(run.path).finish(generator)
            told.append(str(caught.value))

    run.finish(generator, progress=meanwhile)
    assert told
    assert run.finish(generator).finished == 20  # the lock is gone, and there is nothing left to do


def test_a_finished_run_is_not_computed_again(finished: Run, generator: Generator) -> None:
    stages: list[str] = []
    before = exported(finished)
    finished.finish(generator, progress=lambda progress: stages.append(progress.stage))
    assert stages == []
    assert exported(finished) == before


@pytest.mark.parametrize("name", ["shards/00001.parquet", "latents.parquet"])
@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_file_is_named(finished: Run, generator: Generator, tmp_path: Path, name: str, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    content = (copy / name).read_bytes()
    if damage == "other":
        (copy / name).write_bytes((copy / "shards/00002.parquet").read_bytes())
    else:
        half, marks = content[: len(content) // 2], b"PAR0" + content[4:-4] + b"PAR0"
        (copy / name).write_bytes(half if damage == "cut" else marks)
    with pytest.raises(InputError, match=rf"{Path(name).name} .*delete it, and druse resume"):
        (Run.open(copy).summary if "shards" in name else functools.partial(Run.open(copy).finish, generator))()
    (copy / name).unlink()
    Run.open(copy).finish(generator)
    assert exported(copy) == exported(finished)


@pytest.mark.parametrize(
    ("column", "content"),
    [
        ("status", np.array([0.5, 1.5])),
        ("status", np.array(["a", "b"])),
        ("predicted_band_gap", np.array(["1", "2"])),
        ("predicted_band_gap", Ragged(np.ones(4), np.array([0, 2, 4]))),
        ("cost", np.array(["1", "2"])),
    ],
)
def test_columns_of_another_kind_are_named(
    finished: Run, generator: Generator, tmp_path: Path, column: str, content: Any
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    shard = read_columns(copy / "shards" / "00003.parquet", "")
    write_columns(copy / "shards" / "00003.parquet", {**shard, column: content}, {})
    with pytest.raises(InputError, match=rf"00003.parquet is not this run's \(.*{column}.*delete it, and druse resume"):
        Run.open(copy).summary()
    if column != "status":
        latents = read_columns(copy / "latents.parquet", "")
        longer = content if isinstance(content, Ragged) else np.tile(content, 10)
        some = {name: values[: 2 if isinstance(content, Ragged) else 20] for name, values in latents.items()}
        write_columns(copy / "latents.parquet", {**some, column: longer}, {})
        with pytest.raises(InputError, match=r"latents.parquet is not this run's .*delete it, and druse resume"):
            Run.open(copy).finish(generator)


@pytest.mark.parametrize("change", ["narrower", "without a condition"])
def test_latents_of_another_model_are_named(finished: Run, generator: Generator, tmp_path: Path, change: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    latents = read_columns(copy / "latents.parquet", "")
    if change == "narrower":
        latents["z"] = latents["z"][:, :-1]
    else:
        del latents["condition_band_gap"]
    write_columns(copy / "latents.parquet", latents, {})
    with pytest.raises(InputError, match=r"latents.parquet is of another model; delete it, and druse resume"):
        Run.open(copy).finish(generator)


def test_a_file_that_unpacks_to_far_more_than_it_has_is_not_read(finished: Run, tmp_path: Path) -> None:
    """Runs of equal numbers take no bytes, and the size that a Parquet file states of itself does not count them."""
    copy, n = tmp_path / "copy", 4_000_000
    shutil.copytree(finished.path, copy)
    equal = pa.table({"id": np.zeros(n, np.uint64), "status": np.zeros(n, np.uint32)})
    parquet.write_table(equal, copy / "shards" / "00001.parquet", row_group_size=n)
    assert (copy / "shards" / "00001.parquet").stat().st_size < 50_000
    with pytest.raises(InputError, match=r"00001.parquet asks for too much memory: 4,000,000 rows are .*delete it"):
        Run.open(copy).summary()


@pytest.mark.parametrize("name", ["shards/00001.parquet", "latents.parquet", "ranking.parquet"])
def test_a_pipe_in_the_place_of_a_file_does_not_hold(
    finished: Run, generator: Generator, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    if name == "ranking.parquet":
        (copy / "latents.parquet").unlink()
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(InputError, match=rf"{Path(name).name} cannot be read \(it is not a file\); delete it"):
        Run.open(copy).finish(generator)


def test_folders_that_other_commands_left_are_no_obstacle(finished: Run, generator: Generator, tmp_path: Path) -> None:
    """A killed `druse export` of POSCAR files, or of a data base, into the run."""
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "shards" / "00001.parquet").unlink()
    for part in (copy / ".poscar.77.part", copy / "shards" / ".00001.parquet.77.part"):
        part.mkdir()
        (part / "file").touch()
    Run.open(copy).finish(generator)
    assert exported(copy) == exported(finished)


def test_shards_are_those_that_the_run_has(finished: Run, generator: Generator, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    for name in ("1", "00007", "99999"):
        shutil.copy(copy / "shards" / "00000.parquet", copy / "shards" / f"{name}.parquet")
    (copy / "shards" / "00001.parquet").unlink()
    assert Run.open(copy).finished == 14
    assert Run.open(copy).finish(generator).finished == 20
    assert exported(copy) == exported(finished)


def test_a_run_of_more_shards_than_there_is_memory(finished: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "shards" / "00003.parquet").unlink()
    asked = (copy / "run.json").read_text()
    (copy / "run.json").write_text(asked.replace('"count": 20', f'"count": {2**40}'))
    huge = Run.open(copy)
    assert huge.finished == 18
    assert [len(part) for part in huge.generated()] == [6, 6, 6]
    assert huge.summary().count == 2**40
    assert huge.export(tmp_path / "some.csv") == 18


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (20, 6), (18, 6), (7, 8), (8, 8), (9, 8)])
def test_shards_cut_the_run(finished: Run, tmp_path: Path, count: int, batch: int) -> None:
    request = msgspec.structs.replace(REQUEST, count=count, batch=batch)
    run = Run(tmp_path, msgspec.structs.replace(finished.file, request=request))
    cut = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    assert [*run.shards] == cut == run.shards[:]
    for share in (Share(1, 1), Share(1, 3), Share(2, 3), Share(3, 3)):
        assert run.summary(share=share).count == sum(map(len, cut[share.task - 1 :: share.n_tasks]))


def test_runs_that_are_none(finished: Run, tmp_path: Path, generator: Generator) -> None:
    with pytest.raises(InputError, match=r"holds no run \(run.json\)"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="holds a run; go on with it by druse resume"):
        Run.create(finished.path, generator, REQUEST)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not an empty folder"):
        Run.create(tmp_path, generator, REQUEST)
    for text, message in (
        (b"{}", "missing required field"),
        (b"\xff\xfe", "cannot be used"),
        ((finished.path / "run.json").read_bytes().replace(b'"schema": 1', b'"schema": 9'), "has version 9"),
        ((finished.path / "run.json").read_bytes().replace(b'"count": 20', b'"count": 0'), "from 1 up"),
        ((finished.path / "run.json").read_bytes().replace(b'"seed"', b'"sood"'), "unknown field"),
        ((finished.path / "run.json").read_bytes().replace(b'"n_levels": 8', b'"n_levels": 0'), "at least 1"),
    ):
        (tmp_path / "run.json").write_bytes(text)
        with pytest.raises(InputError, match=message):
            Run.open(tmp_path)


def test_another_bundle_is_refused(finished: Run, generator: Generator, tmp_path: Path) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(finished.file.bundle.path, other)
    manifest = other / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"random"', b'"others"'))
    with pytest.raises(InputError, match="was begun with another bundle"):
        Run.open(finished.path).generator(bundle=other)
    assert Run.open(finished.path).generator().bundle.digest == generator.bundle.digest


def test_another_generator_is_refused(finished: Run, bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    other = Generator(bundle_path)
    other.model.bundle.digest = other.bundle.digest = "0" * 64
    with pytest.raises(InputError, match="was begun with another bundle, backend or precision"):
        Run.open(copy).finish(other)


def test_numbers_of_numpy_and_what_a_killed_writer_left_are_no_obstacle(generator: Generator, tmp_path: Path) -> None:
    (tmp_path / ".run.json.77.part").write_text("{")
    request = Request(targets={"band_gap": np.float64(2.0)}, count=np.int64(2), oversample=1, seed=np.uint64(3))  # type: ignore[arg-type]
    run = Run.create(tmp_path, generator, request)
    assert run.finish(generator).finished == 2
    assert Run.open(tmp_path).request == run.request
    assert ".run.json.77.part" not in files_in(tmp_path)


def test_a_full_disk_leaves_nothing_that_looks_whole(bundle_path: Path, tmp_path: Path) -> None:
    """Under a limit on the size of files: what a full disk does to a write."""
    generator = Generator(bundle_path)
    run = Run.create(tmp_path / "run", generator, REQUEST)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = subprocess.run(
        [sys.executable, "-m", "druse", "resume", str(run.path)], preexec_fn=limited, capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert result.returncode == 1
    assert "latents.parquet: file too large" in result.stderr.replace("\n", "")
    assert files_in(run.path) == {"run.json", ".lock", ".lock-common"}


def test_summary(generator: Generator, tmp_path: Path) -> None:
    control = Control(elements=("Li", "O"))
    run = Run.create(tmp_path / "run", generator, msgspec.structs.replace(REQUEST, control=control))
    summary = run.finish(generator)
    assert (summary.count, summary.finished) == (20, 20)
    assert summary.good <= 20
    assert summary.changed.keys() == {"n_atoms", "composition", "lattice"}
    assert summary.changed["composition"] > 0
    assert summary.predicted.keys() == {"band_gap"}
    assert summary.seconds.keys() == {"latents", "crystals", "files"}
