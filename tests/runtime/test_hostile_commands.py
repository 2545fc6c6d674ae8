"""Commands beside files and folders that were made to harm: one line and exit code 1, or a refused entry among good."""

import collections
import csv
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="reads CIF")
pytest.importorskip("smact", reason="judges compositions")
pytest.importorskip("loky", reason="works in several processes")

from crystal_examples import COPPER, NACL, batch

from druse._processes import Processes, time_limit
from druse.candidates import Entries, read_entries, write_entries
from druse.io import cif_text, write_crystals

pytestmark = pytest.mark.usefixtures("as_users_call")
Command = Callable[..., tuple[int, str, str]]
RULES = '[[rules]]\nkind = "geometry"\n'


@pytest.fixture
def druse(druse: Command) -> Command:
    """The same, and nothing that is said moves a cursor or rings a bell."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code, said, complaint = druse(*arguments)
        assert not set("\x1b\x07") & set(said + complaint)
        return code, said, complaint

    return call


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_crystals(tmp_path / "good.extxyz", batch(NACL, COPPER))
    return tmp_path / "good.extxyz"


BAD_RULES = {
    "deep": ("rules = " + "[" * 5000 + "]" * 5000, "recursion"),
    "digits": (RULES + "min_distance = " + "1" * 10_000, "digits"),
    "large": ("#" * 2_000_000, "more than 1,048,576 bytes"),
    "many": ('[[rules]]\nkind = "unique"\n' * 20_000, "20,000 rules, more than 200"),
    "escapes": (RULES + 'name = "\\u001b[31mred\\u0007"', "cannot be shown"),
    "not finite": (RULES + "min_distance = nan", "must be a finite number"),
    "device": ('[[rules]]\nkind = "novel"\nreference = "/dev/zero"', "does not exist"),
    "everything": ('[[rules]]\nkind = "novel"\nreference = "/proc"', "holds no CIF files"),
    "no file's name": ('[[rules]]\nkind = "novel"\nreference = "a\\u0000b"', "the name of no file"),
    "model": ('models = ["/dev/zero"]', "does not exist as folder or file"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_rules_that_are_hostile(druse: Command, good: Path, tmp_path: Path, name: str) -> None:
    text, reason = BAD_RULES[name]
    (tmp_path / "rules.toml").write_text(text)
    code, _, said = druse("screen", good, "--rules", tmp_path / "rules.toml", "--out", tmp_path / "s", "--jobs", 1)
    assert code == 1
    assert reason in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_pipes_and_devices_in_the_place_of_files_of_ours(druse: Command, good: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rules.toml")
    for rules in (tmp_path / "rules.toml", Path("/dev/zero")):
        code, _, said = druse("screen", good, "--rules", rules, "--out", tmp_path / "s")
        assert (code, "is not a file" in said) == (1, True)
    (tmp_path / "r").mkdir()
    os.mkfifo(tmp_path / "r" / "relax.json")
    code, _, said = druse("relax", good, "--calculator", "emt", "--out", tmp_path / "r")
    assert (code, "is not a file" in said) == (1, True)


def table_of(path: Path, n: int, columns: Callable[[int], dict[str, object]]) -> Path:
    """Lines of JSON, all of one crystal, with columns of each."""
    sites = [{"species": [{"element": "Cu", "occu": 1}], "abc": [0, 0, 0]}]
    one = {"lattice": {"matrix": (3.6 * np.eye(3)).tolist()}, "sites": sites}
    path.write_text("".join(json.dumps({**one, **columns(k)}) + "\n" for k in range(n)))
    return path


def test_more_columns_than_anybody_has(druse: Command, tmp_path: Path) -> None:
    """Those that druse adds are there nevertheless; it asked for a formula in vain."""
    (tmp_path / "rules.toml").write_text(RULES)
    source = table_of(tmp_path / "a.jsonl", 12, lambda k: {f"k{k}_{j}": j for j in range(400)})
    arguments = ("--rules", tmp_path / "rules.toml", "--piece", 4, "--jobs", 1)
    code, _, said = druse("screen", source, "--out", tmp_path / "s", *arguments)
    assert (code, said) == (0, "")
    entries = Entries.concatenate(read_entries([tmp_path / "s"]))
    assert len(entries) == 12
    assert 1000 < len(entries.columns) <= 2000
    assert {"formula", "band_gap", "nearest_distance"} <= set(entries.columns)


def test_texts_that_arrays_would_multiply(tmp_path: Path) -> None:
    """One entry with long texts in all columns, beside which each of the others would take a megabyte."""
    source = table_of(tmp_path / "a.jsonl", 64, lambda k: {f"t{j}": ("x" * 900 if k == 0 else "y") for j in range(300)})
    entries = Entries.concatenate(read_entries([source]))
    assert len(entries) == 64
    assert sum(column.nbytes for column in entries.columns.values()) < 64 * 4 * 4001
    assert "t0" in entries.columns


def test_a_folder_in_which_nothing_is_what_it_seems(druse: Command, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["a.cif", "=cmd|calc!A1.cif", "new\nline\x1b[31m.cif", "<script>\u2028.cif", os.fsdecode(b"bad\xff.cif")]
    for k, name in enumerate(names):
        (folder / name).write_text(cif_text(NACL.replace(cells=NACL.cells * (1 + 0.02 * k)), "x"))
    os.mkfifo(folder / "pipe.cif")
    for name, target in (("zero.cif", "/dev/zero"), ("loop.cif", "loop.cif"), ("out.cif", "/etc/passwd")):
        (folder / name).symlink_to(target)
    with (folder / "hollow.cif").open("wb") as file:
        file.truncate(1 << 40)
    code, out, _ = druse("predict", folder, "--out", tmp_path / "p.csv", "--jobs", 2)
    assert code == 0
    assert "10 entries" in out
    assert "5 of which could not be read" in out
    with (tmp_path / "p.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())
    assert {"it is longer than what is stored of it"} == {r["failure"] for r in rows if r["id"] == "hollow"}
    code, out, _ = druse("screen", folder, "--out", tmp_path / "s", "--jobs", 2)
    assert code == 0
    code, _, _ = druse("report", tmp_path / "s", "--out", tmp_path / "r.html", "--jobs", 1)
    assert code == 0
    page = (tmp_path / "r.html").read_text()
    assert "<script>\u2028" not in page


@pytest.mark.parametrize("calculator", ["subprocess:Popen", "vasp"])
def test_a_relaxation_whose_calculator_runs_code(druse: Command, good: Path, tmp_path: Path, calculator: str) -> None:
    made = tmp_path / "made"
    folder = tmp_path / "r"
    assert druse("relax", good, "--calculator", "emt", "--out", folder, "--limit", 1, "--jobs", 1)[0] == 0
    asked = json.loads((folder / "relax.json").read_text())
    asked["how"] |= {"calculator": calculator, "arguments": {"args": ["touch", str(made)], "command": f"touch {made}"}}
    (folder / "relax.json").write_text(json.dumps(asked))
    for path in (folder / "pieces").iterdir():
        path.unlink()
    code, _, said = druse("resume", folder, "--threads", 1)
    assert (code, "is taken from nobody's file" in said) == (1, True)
    assert not made.exists()


def test_a_piece_that_is_none(druse: Command, good: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    arguments = ("screen", good, "--rules", tmp_path / "rules.toml", "--out", tmp_path / "s", "--jobs", 1)
    assert druse(*arguments)[0] == 0
    (tmp_path / "s" / "verdicts.parquet").unlink()
    other = Entries(0, ("f",), ("a",), ("",), NACL, {"rule": np.zeros(1)})
    write_entries(tmp_path / "s" / "pieces" / "000000000.parquet", other)
    code, _, said = druse("resume", tmp_path / "s", "--threads", 1)
    assert (code, "is no piece of this screening" in said) == (1, True)
    for content in (b"[" * 100_000, b'{"schema": 1e999}', b"\xff\xfe", b'{"schema": "1"}'):
        (tmp_path / "s" / "screen.json").write_bytes(content)
        code, _, said = druse("resume", tmp_path / "s", "--threads", 1)
        assert (code, "cannot be used" in said, len(said.splitlines())) == (1, True, 1)


def take(n: int) -> str:
    """So many bytes."""
    try:
        return f"{len(bytearray(n)):,} bytes"
    except MemoryError:
        return "too much"


def test_too_much_memory_is_one_entrys_failure() -> None:
    with Processes(1, purpose="testing", isolated=True) as processes:
        found = list(processes.map(take, [1000, 20 << 30, 1000]))
    assert found == ["1,000 bytes", "too much", "1,000 bytes"]


def spin(seconds: float) -> str:
    """Native code that does not come back, where no signal arrives."""
    with time_limit(seconds):
        if seconds < 1:
            collections.deque(itertools.repeat(0), maxlen=0)
        time.sleep(0)
    return "done"


def test_native_code_that_does_not_come_back_ends_its_process() -> None:
    with Processes(1, purpose="testing", isolated=True) as processes:
        found = list(processes.map(spin, [5.0, 0.1, 5.0], killed=lambda _: "killed"))
    assert found == ["done", "killed", "done"]
