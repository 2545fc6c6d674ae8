"""Screenings that several processes share."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from screening_examples import many_file

pytest.importorskip("pymatgen", reason="the rules need it")
pytest.importorskip("smact", reason="the rules need it")

from druse._shares import Share, working
from druse.errors import InputError
from druse.rules import GeometryRule, PropertyRule, RuleSet, UniqueRule
from druse.screening import Screening

RULES = RuleSet(
    rules=(GeometryRule(min_distance=0.7), PropertyRule(column="gap", min=0.5), UniqueRule()), embedded=False
)
TOML = """
embedded = false
[[rules]]
kind = "geometry"
min_distance = 0.7
[[rules]]
kind = "property"
column = "gap"
min = 0.5
[[rules]]
kind = "unique"
"""
FILES = ("verdicts.parquet", "survivors.parquet", "survivors.extxyz", "survivors.cif", "survivors.csv", "funnel.json")
SLOWLY = """
import sys, time
from druse._shares import Share
from druse.screening import Screening

def say(what, done, total):
    print(what, done, total, flush=True)
    time.sleep(0.5)

Screening.open(sys.argv[1]).judge(Share.parse(sys.argv[2]), n_jobs=1, progress=say)
"""


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def pieces(folder: Path) -> set[str]:
    return {path.name for path in (folder / "pieces").glob("*.parquet")}


def druse(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "druse", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_file(tmp_path_factory.mktemp("source") / "many.parquet", 60)


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Screening:
    screening = Screening.begin(tmp_path_factory.mktemp("screens") / "a", [source], RULES, piece=8)
    screening.finish(n_jobs=1)
    return screening


def test_three_tasks_one_of_them_killed_and_a_last_call_make_the_files_of_one_process(
    finished: Screening, source: Path, tmp_path: Path
) -> None:
    """60 entries, in pieces of 8: tasks 1 and 2 have three pieces each (the last one shorter), task 3 two."""
    place, rules = tmp_path / "shared", tmp_path / "rules.toml"
    rules.write_text(TOML)
    screen = ["screen", source, "--rules", rules, "--out", place, "--piece", 8, "--jobs", 1, "--shard"]
    first = druse(*screen, "1/3")
    assert first.returncode == 0, first.stderr
    assert first.stdout.replace("\n", " ").startswith(
        f"share 1/3: its 24 of 60 entries are judged, each by itself; when all shares are, druse resume {place} does"
    )
    assert pieces(place) == {f"{8 * k:09d}.parquet" for k in (0, 3, 6)}
    with subprocess.Popen([sys.executable, "-c", SLOWLY, place, "2/3"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "judging 0 20\n"
        assert child.stdout.readline() == "judging 8 20\n"
        child.kill()
    assert pieces(place) == {f"{8 * k:09d}.parquet" for k in (0, 1, 3, 6)}
    third = druse(*screen, "3/3", "--json")
    assert json.loads(third.stdout) == {"screening": str(place), "share": "3/3", "judged": 16, "entries": 60}
    again = druse("resume", place, "--shard", "2/3", "--threads", 1)
    assert again.returncode == 0, again.stderr
    assert len(pieces(place)) == 8
    assert not (place / "survivors.parquet").exists()
    last = druse("resume", place, "--json", "--threads", 1)
    assert last.returncode == 0, last.stderr
    assert contents(place) == contents(finished.path)
    late = druse(*screen, "2/3", "--json")
    assert json.loads(late.stdout)["judged"] == 20
    assert not (place / "pieces").exists()


def test_a_call_without_a_share_judges_what_is_missing(finished: Screening, source: Path, tmp_path: Path) -> None:
    screening = Screening.begin(tmp_path / "s", [source], RULES, piece=8)
    assert screening.judge(Share(3, 3), n_jobs=1) == 16
    assert screening.finish(n_jobs=1) == finished.funnel
    assert contents(screening.path) == contents(finished.path)


def test_tasks_and_the_whole_screening_do_not_work_at_once(source: Path, tmp_path: Path) -> None:
    screening = Screening.begin(tmp_path / "s", [source], RULES, piece=8)
    with working(screening.path, Share(1, 2)):
        with pytest.raises(InputError, match=r"another process writes to .*; wait for it, or stop it"):
            screening.finish(n_jobs=1)
        with pytest.raises(InputError, match=r"another process writes to share 1/2 of .*; wait for it, or stop it"):
            screening.judge(Share(1, 2), n_jobs=1)
        assert screening.judge(Share(2, 2), n_jobs=1) == 28
    with working(screening.path, None), pytest.raises(InputError, match="another process writes to"):
        screening.judge(Share(1, 2), n_jobs=1)


def test_a_task_leaves_what_others_are_writing(source: Path, tmp_path: Path) -> None:
    screening = Screening.begin(tmp_path / "s", [source], RULES, piece=8)
    (screening.path / "pieces").mkdir()
    parts = [screening.path / "pieces" / f".{8 * k:09d}.parquet.77.part" for k in range(3)]
    for part in parts:
        part.write_text("x")
    screening.judge(Share(2, 3), n_jobs=1)
    assert [part.exists() for part in parts] == [True, False, True]


def test_other_rules_are_refused_while_tasks_are_at_work(source: Path, tmp_path: Path) -> None:
    screening = Screening.begin(tmp_path / "s", [source], RULES, piece=8)
    with working(screening.path, Share(1, 2)):
        assert Screening.begin(tmp_path / "s", [source], RULES, piece=8).file == screening.file
        with pytest.raises(InputError, match="holds a screening with other "):
            Screening.begin(tmp_path / "s", [source], RULES, piece=9)


def test_ray_is_for_runs(finished: Screening) -> None:
    result = druse("resume", finished.path, "--ray", "local")
    assert result.returncode == 1
    assert result.stderr == "error: --ray is for runs; a screening is shared by --shard\n"
