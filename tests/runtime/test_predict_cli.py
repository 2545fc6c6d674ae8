"""`druse predict`: columns for any crystals, as Parquet that is a source again, as CSV, and as a table of means."""

import csv
import json
import sys
from pathlib import Path

import bundles
import numpy as np
import pytest
from crystal_examples import COPPER, NACL, crystal

from druse import Bundle, Crystals
from druse._columns import read_columns, read_facts
from druse.candidates import Entries, write_entries
from druse.cli import main
from druse.properties import PropertyModels

pytestmark = pytest.mark.usefixtures("as_users_call")
HEAVY = crystal(4 * np.eye(3), [103], [[0, 0, 0]])
EMPTY = crystal(np.eye(3), [], np.zeros((0, 3)))
CRYSTALS = Crystals.concatenate([NACL, EMPTY, HEAVY, COPPER])
ENERGY = "formation_energy_per_atom"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.parquet"
    columns = {ENERGY: np.array([-2.0, np.nan, 1.0, 0.0])}
    names = ("salt", "torn", "heavy", "copper")
    write_entries(path, Entries(0, ("f",) * 4, names, ("", "no atoms in it", "", ""), CRYSTALS, columns))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["druse", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_parquet_is_a_source_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path
) -> None:
    first, second = tmp_path / "one.parquet", tmp_path / "two.parquet"
    assert run(monkeypatch, source, "--out", first, "--threads", 1, "--jobs", 1, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["entries"], printed["unread"]) == (4, 1)
    expected = PropertyModels.open(n_threads=1).columns(CRYSTALS)
    assert list(printed["columns"]) == list(expected)
    gap = printed["columns"]["band_gap"]
    assert (gap["unit"], gap["count"]) == ("eV", 2)
    assert gap["mean"] == pytest.approx(np.nanmean(expected["band_gap"]))
    written = read_columns(first, "")
    assert all(written[name].tobytes() == values.tobytes() for name, values in expected.items())
    assert written[f"source_{ENERGY}"].tolist()[0] == -2.0
    assert np.isnan(written[ENERGY][[1, 2]]).all()
    facts = read_facts(first, "")
    assert (facts[ENERGY], facts["band_gap_class"]) == ("eV/atom", "P(>0 eV)")
    assert run(monkeypatch, first, "--out", second, "--threads", 1, "--jobs", 1, "--json") == 0
    capsys.readouterr()
    assert second.read_bytes() == first.read_bytes()


def test_csv_and_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "new" / "out.csv"
    assert run(monkeypatch, source, source, "--out", out, "--threads", 1, "--jobs", 1) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "8 entries in" in printed.out
    assert "2 of which could not be read" in printed.out
    assert [line.split()[:2] for line in printed.out.splitlines()[1:3]] == [[ENERGY, "eV/atom"], ["band_gap", "eV"]]
    assert "|" not in printed.out, "the only model of a property has no line beside it"
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["salt", "torn", "heavy", "copper"] * 2
    assert [row["formula"] for row in rows[:4]] == ["NaCl", "", "Lr", "Cu"]
    assert [row["band_gap"] == "" for row in rows[:4]] == [False, True, True, False]
    assert float(rows[0]["band_gap"]) == PropertyModels.open(n_threads=1).columns(NACL)["band_gap"][0]


def test_models_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path
) -> None:
    own = bundles.put("zip", tmp_path, bundles.with_manifest(bundles.cgcnn_files()))
    assert (
        run(monkeypatch, source, "--model", own, "--out", tmp_path / "a.csv", "--threads", 1, "--jobs", 1, "--json")
        == 0
    )
    assert list(json.loads(capsys.readouterr().out)["columns"]) == ["energy|tiny|1|eV/atom", "energy"]
    both = ("--model", own, "--embedded")
    assert run(monkeypatch, source, *both, "--out", tmp_path / "a.csv", "--threads", 1, "--jobs", 1, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["columns"]) == 10


def test_mistakes_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path
) -> None:
    generator = tmp_path / "generator.zip"
    Bundle.embedded().write_zip(generator)
    for arguments, says in (
        ((source, "--out", "out.txt"), "--out must end with .parquet or .csv, got out.txt"),
        ((tmp_path / "none", "--out", "out.csv"), "does not exist"),
        ((source, "--out", "out.csv", "--model", "none.zip"), "none.zip does not exist as folder or file"),
        ((source, "--out", "out.csv", "--model", generator), "give the bundle of a property model instead"),
        ((source, "--out", "out.csv", "--backend", "none"), "none"),
    ):
        assert run(monkeypatch, *arguments, "--jobs", 1) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert says in printed.err
        assert len(printed.err.splitlines()) == 1
