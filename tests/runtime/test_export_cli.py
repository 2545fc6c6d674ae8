"""``druse export``: any source to any format, and what it says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import NACL, batch, rock_salt

from druse.candidates import Entries, read_entries, write_entries
from druse.cli import main
from druse.io import write_crystals

pytestmark = pytest.mark.usefixtures("as_users_call")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["druse", "export", *map(str, arguments)])
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture
def short_list(tmp_path: Path) -> Path:
    """A folder as druse screen leaves it, with an entry that is no crystal and a name that comes twice."""
    crystals = batch(NACL, rock_salt(4.2, 12, 8), rock_salt(4.8, 20, 8))
    columns = {"score": np.array([3.0, 2.0, 1.0]), "band_gap": np.array([5.0, np.nan, 4.0])}
    entries = Entries(0, ("made.csv",) * 3, ("a", "b", "a"), ("", "torn", ""), crystals, columns)
    folder = tmp_path / "screens"
    folder.mkdir()
    (folder / "screen.json").write_text("{}")
    write_entries(folder / "survivors.parquet", entries)
    return folder


@pytest.mark.parametrize("name", ["x.extxyz", "x.cif", "x.zip", "x.db", "x.jsonl", "x.csv", "x.poscar.zip", "poscars"])
def test_a_short_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, short_list: Path, name: str
) -> None:
    out = tmp_path / name
    options = ("--format", "poscar") if "poscar" in name else ()
    assert run(monkeypatch, short_list, "--out", out, "--jobs", 1, *options) == 0
    said = capsys.readouterr()
    assert said.out == f"2 crystals in {out}\n"
    assert said.err == "1 entries that are no crystals are left out\n"
    read = Entries.concatenate(read_entries([out]))
    found = [sorted(one.species.tolist()) for one in read.crystals]
    assert found == ([[8, 20], [11, 17]] if name == "poscars" else [[11, 17], [8, 20]])  # a folder is read by name
    if name in ("x.zip", "poscars", "x.jsonl"):
        assert sorted(read.ids) == ["a", "a-2"]


def test_json_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, short_list: Path
) -> None:
    write_crystals(tmp_path / "more.cif", NACL)
    out = tmp_path / "all.db"
    assert run(monkeypatch, short_list, tmp_path / "more.cif", "--out", out, "--jobs", 1, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"file": str(out), "crystals": 3, "left_out": 1, "unfinished": 0}
    for arguments, says in (
        ((short_list, "--out", tmp_path / "x.pdb"), "`format` must be one of extxyz, cif, poscar, db, jsonl, csv"),
        ((tmp_path / "absent", "--out", tmp_path / "x.cif"), "does not exist"),
        ((short_list, "--out", tmp_path, "--format", "poscar"), "give the name of a new folder"),
    ):
        assert run(monkeypatch, *arguments, "--jobs", 1) == 1
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
