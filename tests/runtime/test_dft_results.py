"""Results of VASP that were written here, read back; and predictions beside them."""

import csv
import dataclasses
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crystal_examples import COPPER, MGO, NACL, ZINC_BLENDE, batch, crystal
from vasp_results import END, entries, index_of, no_setting, potcar, source, vasprun  # noqa: F401  a fixture

pytest.importorskip("pymatgen.io.vasp", reason="reads VASP's files and knows the Materials Project's choices")

from pymatgen.core import Lattice
from pymatgen.io.vasp import Incar

from druse import Crystals, InputError, _vasprun
from druse._comparison import agreements, formation_energies, read_references
from druse.candidates import Entries, write_entries
from druse.cli import main
from druse.dft import Collected, collect, write_vasp
from druse.lattice import cells_from_parameters


def scaled(one: Crystals, factor: float) -> Crystals:
    return one.replace(cells=one.cells * factor)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Six calculations: two elements and two compounds that relaxed, one that is running, one that has not begun."""
    sodium = crystal(4.2 * np.eye(3), [11, 11], [[0, 0, 0], [0.5, 0.5, 0.5]])
    chlorine = crystal(np.diag([6.0, 4.5, 8.0]), [17, 17], [[0, 0, 0], [0, 0, 0.25]])
    given = batch(NACL, sodium, chlorine, ZINC_BLENDE, NACL, COPPER)
    place = source(
        tmp_path / "a.parquet", given,
        formation_energy_per_atom=[-2.0, 0.1, 0.0, -1.0, -2.1, math.nan],
        predicted_band_gap=[5.0, 0.0, 2.0, math.nan, 4.0, 0.0],
        target_formation_energy_per_atom=[-2.5, -2.5, -2.5, -1.0, -1.0, -1.0],
    )  # fmt: skip
    folder = tmp_path / "dft"
    write_vasp([place], folder)
    written = index_of(folder).crystals
    still = np.zeros((2, 3))
    energies = (-6.8, -2.6, -3.6, -7.0)
    for k, energy in enumerate(energies):
        last = [(scaled(written[k], 1.01), energy + 0.1, still + 0.5), (scaled(written[k], 1.02), energy, still + 3e-4)]
        name = index_of(folder).columns["folder"][k]
        (folder / name / "vasprun.xml").write_text(vasprun(written[k], last))
    torn = vasprun(written[4], [(written[4], -6.0, still)])
    (folder / "0004-NaCl" / "vasprun.xml").write_text(torn[: len(torn) // 2])
    return folder


def test_columns_of_results(results: Path) -> None:
    found = collect(results, n_jobs=1)
    assert found.counts == {"finished": 4, "failed": 0, "unfinished": 1, "waiting": 1, "refused": 0}
    columns = found.entries.columns
    assert columns["status"].tolist() == ["finished"] * 4 + ["unfinished", "waiting"]
    assert columns["energy"][:4].tolist() == [-6.8, -2.6, -3.6, -7.0]
    assert columns["energy_per_atom"][0] == -3.4
    assert columns["n_steps"][:4].tolist() == [2] * 4
    assert columns["band_gap_dft"][:4].tolist() == [2.5] * 4
    assert np.allclose(columns["fmax"][:4], math.sqrt(3) * 3e-4)
    assert np.allclose(columns["volume_change"][:4], 1.02**3 - 1)
    assert np.allclose(columns["delta_a"][0], 0.02 * 5.64 / math.sqrt(2))
    assert np.allclose(columns["delta_alpha"][:4], 0, atol=1e-9)
    assert np.allclose(columns["rmsd"][:4], 0, atol=1e-9), "the two have the same volume first"
    assert np.isnan(columns["energy"][4:]).all()
    relaxed = index_of(results, "dft.parquet")
    assert relaxed.failures[:4] == ("",) * 4
    assert "is not complete" in relaxed.failures[4]
    assert relaxed.failures[5] == "there is no vasprun.xml yet"
    assert np.allclose(relaxed.crystals[0].cells, 1.02 * index_of(results).crystals[0].cells)
    assert len(relaxed.crystals[4].species) == 0
    for name, column in columns.items():
        assert np.array_equal(relaxed.columns[name], column, equal_nan=column.dtype.kind == "f")


def test_formation_energies_of_the_folders_own_elements(results: Path) -> None:
    """NaCl: -3.4 - (-1.3 - 1.8) / 2; ZnS has no elements here."""
    found = collect(results, n_jobs=1)
    values = found.entries.columns["formation_energy_per_atom_dft"]
    assert np.allclose(values[:3], [-3.4 + 1.55, 0, 0])
    assert np.isnan(values[3:]).all()
    assert found.references == {
        "Na": {"energy": -1.3, "source": "0001-Na"},
        "Cl": {"energy": -1.8, "source": "0002-Cl"},
    }
    assert found.missing == ("S", "Zn")


def test_given_references_are_the_only_ones(results: Path, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text("Zn = -1.0\nS = -4\nNa = -1.25\n")
    (tmp_path / "e.csv").write_text("element,energy_per_atom\nZn,-1.0\nS,-4\nNa,-1.25\n")
    for references in (tmp_path / "e.toml", tmp_path / "e.csv", {"Zn": -1.0, "S": -4.0, "Na": -1.25}):
        found = collect(results, references=references, n_jobs=1)
        values = found.entries.columns["formation_energy_per_atom_dft"]
        assert np.allclose(values[[1, 3]], [-1.3 + 1.25, -3.5 + 2.5])
        assert np.isnan(values[[0, 2]]).all(), "chlorine of the folder is not mixed with them"
        assert found.missing == ("Cl",)


@pytest.mark.parametrize("text", ["Zz = 1\n", "Na = 'x'\n", "Na = nan\n", "[Na]\nx = 1\n", "", "Na = true\n", "=\n"])
def test_references_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(InputError, match=r"must hold an energy in eV an atom|holds no energy"):
        read_references(tmp_path / "e.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_references(tmp_path / "none.toml")


def test_agreement_by_hand(results: Path) -> None:
    """Of formation energies: predicted -2.0, 0.1, 0.0 and found -1.85, 0, 0."""
    found = {one.column: one for one in collect(results, n_jobs=1).agreements}
    one = found["formation_energy_per_atom"]
    assert (one.n, one.failed, one.dft) == (3, 0, "formation_energy_per_atom_dft")
    assert one.mae == pytest.approx(0.25 / 3)
    assert one.rmse == pytest.approx(math.sqrt((0.15**2 + 0.1**2) / 3))
    assert one.r2 == pytest.approx(1 - (0.15**2 + 0.1**2) / (1.85**2 * 2 / 3))
    gap = found["predicted_band_gap"]
    assert (gap.n, gap.mae) == (3, pytest.approx((2.5 + 2.5 + 0.5) / 3))
    assert math.isnan(gap.r2), "found gaps are all equal"
    assert found["target_formation_energy_per_atom"].n == 3
    assert set(found) == {"formation_energy_per_atom", "predicted_band_gap", "target_formation_energy_per_atom"}


def test_columns_of_property_models_are_compared_too() -> None:
    columns = {
        "formation_energy_per_atom|cgcnn|1|eV/atom": np.array([-1.0, -2.0, math.nan, -3.0]),
        "formation_energy_per_atom_std": np.array([0.1] * 4),
        "band_gap_class": np.array([1.0] * 4),
        "formation_energy_per_atom_dft": np.array([-1.5, -2.5, -3.0, -3.0]),
        "band_gap_dft": np.array([0.0] * 4),
    }
    (one,) = agreements(columns, np.array([False, False, False, True]))
    assert (one.column, one.n, one.mae, one.rmse, one.failed) == (next(iter(columns)), 2, 0.5, 0.5, 1)
    assert one.r2 == pytest.approx(1 - 0.5 / 0.5)


def test_formation_energy_is_less_the_mean_of_the_elements() -> None:
    species = [np.array([22, 8, 8]), np.zeros(0, int), np.array([1])]
    found = formation_energies(species, np.array([-9.0, math.nan, -3.0]), {22: -7.8, 8: -4.9})
    assert found[0] == pytest.approx(-9.0 - (-7.8 - 9.8) / 3)
    assert np.isnan(found[1:]).all()


def test_a_second_look_finds_what_was_finished_since(results: Path) -> None:
    assert collect(results, n_jobs=1).counts["finished"] == 4
    written = index_of(results).crystals
    still = np.zeros((2, 3))
    (results / "0004-NaCl" / "vasprun.xml").unlink()
    text = vasprun(written[4], [(written[4], -6.9, still)])
    (results / "0004-NaCl" / "vasprun.xml.gz").write_bytes(gzip.compress(text.encode()))
    last = [(written[5], -3.7, still[:1])] * 3
    (results / "0005-Cu" / "vasprun.xml").write_text(vasprun(written[5], last, nsw=3, gap=None))
    found = collect(results, n_jobs=1)
    assert found.counts == {"finished": 5, "failed": 1, "unfinished": 0, "waiting": 0, "refused": 0}
    assert found.entries.failures[5] == "did not relax in 3 steps"
    assert found.entries.columns["energy"][5] == -3.7
    assert found.entries.columns["converged_ionic"].tolist() == [1, 1, 1, 1, 1, 0]
    assert {one.column: one.failed for one in found.agreements}["predicted_band_gap"] == 1
    stored = json.loads((results / "comparison.json").read_text())
    assert stored == found.to_dict()
    with (results / "dft.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 5 + ["failed"]
    assert not list(results.glob(".*"))


def outcome(tmp_path: Path, text: str | bytes, initial: Crystals = NACL, **task: Any) -> _vasprun.Outcome:
    name = task.pop("name", "vasprun.xml")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return _vasprun.read(_vasprun.Task(tmp_path, initial, None, **task))


STILL = np.zeros((2, 3))
GOOD = vasprun(NACL, [(NACL, -6.8, STILL)])
LAUGHS = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12))


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        (GOOD, "finished", ""),
        (GOOD[:-12], "unfinished", "is not complete"),
        ("", "unfinished", "is not complete"),
        (GOOD.replace("<modeling>", f'<!DOCTYPE m [<!ENTITY a0 "{"x" * 100}">{LAUGHS}]><modeling>&a11;'), "failed",
         "has a document type"),
        (GOOD.replace("<modeling>", '<!DOCTYPE m SYSTEM "file:///etc/hostname"><modeling>'), "failed", "document type"),
        (GOOD.replace("ISO-8859-1", "UTF-7"), "failed", "is no XML as VASP writes it"),
        (GOOD.encode("utf-16"), "failed", "is no XML as VASP writes it"),
        ("all done </modeling>", "failed", "is no XML as VASP writes it"),
        (GOOD.replace("</incar>", ""), "failed", "cannot be read ("),
        (GOOD.replace("<c>Na</c><c>1</c>", "<c>Qq</c><c>1</c>"), "failed", "cannot be read (ValueError"),
        (GOOD.replace("-6.80000000", "********"), "failed", "has no energy"),
        (vasprun(NACL, []), "failed", "has no ionic step"),
        (vasprun(MGO, [(MGO, -6.8, STILL)]), "failed", "is of other atoms"),
        (vasprun(NACL, [(NACL, -6.8, STILL)], nelm=3), "failed", "electrons did not converge in the last of 1 steps"),
        (vasprun(NACL, [(NACL, -6.8, STILL)], nsw=1), "finished", ""),
        (vasprun(NACL, [(NACL, -6.8, STILL)] * 2, nsw=2), "failed", "did not relax in 2 steps"),
    ],
)  # fmt: skip
def test_what_a_file_may_hold(tmp_path: Path, text: str | bytes, status: str, reason: str) -> None:
    found = outcome(tmp_path, text)
    assert found.status == status, found
    assert reason in found.reason
    assert bool(found.reason) == (status != "finished")
    assert (found.relaxed is not None) == (status == "finished")


def test_packed_files(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode())
    assert outcome(tmp_path, packed, name="vasprun.xml.gz").status == "finished"
    assert outcome(tmp_path, packed[:-200], name="vasprun.xml.gz").status == "unfinished"
    assert outcome(tmp_path, b"nothing packed", name="vasprun.xml.gz").reason.startswith("its vasprun.xml.gz cannot be")


def test_large_files_are_not_parsed(tmp_path: Path) -> None:
    """A bomb of 32 MB that takes 32 kB of disk."""
    bomb = gzip.compress(b"<modeling>" + b" " * (1 << 25) + END.encode())
    found = outcome(tmp_path, bomb, name="vasprun.xml.gz", largest=1 << 22)
    assert (found.status, found.reason) == ("failed", "its vasprun.xml.gz has more than 4 MB")


def test_no_file_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vasprun.xml")
    assert _vasprun.read(_vasprun.Task(tmp_path, NACL, None)).status == "waiting"


def test_memory_and_time_are_limited_in_other_processes(results: Path) -> None:
    """A file of three million small elements, more than the memory allowed: it fails, and the rest goes on."""
    pytest.importorskip("loky", reason="starts the processes")
    many = GOOD.replace("<modeling>", "<modeling>" + "<a/>" * 3_000_000)
    (results / "0005-Cu" / "vasprun.xml").write_text(many)
    script = (
        "import pathlib, sys; from druse import _vasprun; _vasprun._MEMORY = 1 << 27; from druse.dft import nothing;"
        "print(*_vasprun.read(_vasprun.Task(pathlib.Path(sys.argv[1]), nothing(), 60.0))[:2])"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, str(results / "0005-Cu")], capture_output=True, text=True, check=True
    )
    assert child.stdout.startswith("failed its vasprun.xml cannot be read (")
    found = collect(results, n_jobs=2, seconds=0.001)
    assert found.counts["failed"] + found.counts["unfinished"] + found.counts["finished"] == 6
    (results / "0005-Cu" / "vasprun.xml").unlink()
    again = collect(results, n_jobs=2)
    assert again.counts == collect(results, n_jobs=1).counts


def test_changes_against_the_parts() -> None:
    """Cells by pymatgen's lattices, the distance by hand: one of two atoms moved by d, so both by d / 2 of the mean."""
    moved = NACL.replace(frac=NACL.frac + np.array([[0, 0, 0], [0.02, -0.01, 0.015]]))
    d = np.linalg.norm((moved.frac - NACL.frac)[1] @ NACL.cells[0])
    found = _vasprun.changes(NACL, moved)
    assert found["rmsd_angstrom"] == pytest.approx(d / 2, rel=1e-6)
    assert found["rmsd"] == pytest.approx(d / 2 / (abs(np.linalg.det(NACL.cells[0])) / 2) ** (1 / 3), rel=1e-6)
    big = crystal(cells_from_parameters([[4.0, 4.1, 4.3]], [[58.0, 61.0, 63.0]]), NACL.species, NACL.frac)
    found = _vasprun.changes(NACL, big)
    before, after = Lattice(NACL.cells[0]), Lattice(big.cells[0])
    for k, name in enumerate("abc"):
        assert found[f"delta_{name}"] == pytest.approx(abs(after.abc[k] - before.abc[k]))
    for k, name in enumerate(("alpha", "beta", "gamma")):
        assert found[f"delta_{name}"] == pytest.approx(abs(after.angles[k] - before.angles[k]))
    assert found["volume_change"] == pytest.approx(after.volume / before.volume - 1)
    far = NACL.replace(frac=np.array([[0, 0, 0], [0.25, 0.25, 0.25]]))
    assert math.isnan(_vasprun.changes(NACL, far)["rmsd"])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder that druse dft vasp made"):
        collect(tmp_path)
    (tmp_path / "dft.json").write_text('{"request": {}}')
    for columns in ({}, {"folder": np.zeros(1)}):
        write_entries(tmp_path / "index.parquet", dataclasses.replace(entries(NACL), columns=columns))
        with pytest.raises(InputError, match="names no folders"):
            collect(tmp_path, n_jobs=1)


def test_an_index_leads_nowhere_else(results: Path, tmp_path: Path) -> None:
    index = index_of(results)
    names = np.array(["../other", "/tmp", *index.columns["folder"][2:]])
    write_entries(results / "index.parquet", Entries(
        0, index.files, index.ids, index.failures, index.crystals, {**index.columns, "folder": names},
    ))  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vasprun.xml").write_text(GOOD)
    assert collect(results, n_jobs=1).counts["refused"] == 2


def test_a_picture(results: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    collect(results, n_jobs=1)
    assert b"<svg" in (results / "comparison.svg").read_bytes()[:400]


# The command line


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["druse", "dft", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.usefixtures("as_users_call")
def test_the_commands(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "collect", results, "--jobs", 1) == 0
    said = capsys.readouterr().out
    assert "4 relaxed" in said
    assert "formation_energy_per_atom" in said
    assert "no formation energies of compounds with S, Zn" in said
    assert run(monkeypatch, "collect", results, "--jobs", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["finished"] == 4
    out = results.parent / "again"
    options = ("--limit", 3, "--incar", "NCORE=4", "--potcar", "Na=Na", "--kspacing", 0.05, "--spin", "none", "--json")
    assert run(monkeypatch, "vasp", results.parent / "a.parquet", "--out", out, *options) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(out), "n": 3, "refused": {}, "new": True}
    tags = Incar.from_file(out / "0000-NaCl" / "INCAR")
    assert (tags["NCORE"], tags["ISPIN"]) == (4, 1)
    assert (out / "0000-NaCl" / "POTCAR.spec").read_text() == "Na\nCl\n"
    assert run(monkeypatch, "vasp", results.parent / "a.parquet", "--out", out) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert run(monkeypatch, "vasp", results.parent / "a.parquet", "--out", out, "--incar", "NCORE") == 1
    assert "--incar must be NAME=VALUE, such as NCORE=4; got 'NCORE'" in capsys.readouterr().err


def test_collected_is_what_the_report_reads(results: Path) -> None:
    found = collect(results, n_jobs=1)
    assert isinstance(found, Collected)
    assert set(found.changes) == {
        "delta_a", "delta_b", "delta_c", "delta_alpha", "delta_beta", "delta_gamma", "rmsd", "rmsd_angstrom",
    }  # fmt: skip
    assert found.changes["delta_a"]["n"] == 4
