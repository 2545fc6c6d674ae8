"""`druse evaluate`: files of every kind, a table for people and JSON for programs, and errors of one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import MGO, NACL, ZINC_BLENDE, crystal, supercell

pytest.importorskip("matminer", reason="makes the fingerprints")
pytest.importorskip("smact", reason="knows the oxidation states")

from druse import Crystals
from druse._fingerprints import as_structure
from druse.cli import main

pytestmark = pytest.mark.usefixtures("as_users_call")


def write_csv(path: Path, **crystals: Crystals | str) -> Path:
    texts = {name: one if isinstance(one, str) else as_structure(one).to(fmt="cif") for name, one in crystals.items()}
    path.write_text("material_id,cif\n" + "".join(f'{name},"{text}"\n' for name, text in texts.items()))
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "real.csv", salt=NACL, periclase=MGO, blende=ZINC_BLENDE, torn="data_x")


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    charged = crystal(6 * np.eye(3), [12, 17, 17, 17], [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0.5, 0.5, 0.5]])
    return write_csv(tmp_path / "made.csv", a=NACL, b="nonsense", c=supercell(NACL), d=charged)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["druse", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_json(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    generated: Path,
    reference: Path,
) -> None:
    options = ("--reference", reference, "--jobs", 1, "--cache", tmp_path / "cache", "--json")
    assert run(monkeypatch, generated, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_crystals"], found["n_reference"], found["n_reference_rejected"]) == (4, 3, 1)
    assert found["structural"]["share"] == 0.75
    assert found["valid"]["count"] == 2
    assert found["unique"] == {"share": 0.5, "count": 2, "total": 4}
    assert [one["id"] for one in found["invalid"]] == ["d", "b"]
    assert found["invalid"][0]["reason"] == "no oxidation states make it neutral"
    assert found["invalid"][1]["reason"].startswith("could not be read: ")
    assert found["cutoffs"] == {"structure": 0.4, "composition": 10.0}
    assert len(list((tmp_path / "cache" / "fingerprints").iterdir())) == 1
    assert run(monkeypatch, generated, *options, "--cutoffs", "perov5", "--no-unique", "--coverage", 1) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["unique"] is None
    assert again["precision"]["total"] == 1
    assert again["cutoffs"] == {"structure": 0.2, "composition": 4.0}


def test_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    generated: Path,
    reference: Path,
) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.cif").write_text(as_structure(NACL).to(fmt="cif"))
    assert run(monkeypatch, folder, "--reference", reference, "--jobs", 1, "--no-cache") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "2 crystals beside 3 real ones"
    rows = {line[:20].strip(): line[20:].split("  ") for line in out.splitlines()[1:]}
    values = {name: [cell for cell in map(str.strip, cells) if cell][:2] for name, cells in rows.items() if name}
    assert values["structures valid"] == ["100.0 %", "34.2 to 100.0"]
    assert values["unique"][0] == "50.0 %"
    assert values["coverage, precision"][0] == "100.0 %"
    assert values["number of elements"][0] == "0.000"
    assert "not valid" not in out
    assert err == "rows of the reference that could not be read: 1\n"
    assert run(monkeypatch, generated, "--reference", reference, "--jobs", 1, "--no-cache") == 0
    assert "2 are not valid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "none.csv",
            None,
            "none.csv does not exist; give a file or folder of crystals",
        ),
        (
            "made.txt",
            "x",
            "made.txt is of no known kind; known are .csv, .parquet, .extxyz",
        ),
        ("run/run.json", "{}", "run.json cannot be used"),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, reference: Path, name: str,
    content: str | None, message: str,
) -> None:  # fmt: skip
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_text(content)
    place = path.parent if name.startswith("run/") else path
    assert run(monkeypatch, place, "--reference", reference, "--no-cache", "--jobs", 1) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], generated: Path, reference: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matminer", None)
    assert run(monkeypatch, generated, "--reference", reference, "--no-cache", "--jobs", 1) == 1
    assert capsys.readouterr().err == "error: evaluating crystals needs matminer; pip install 'druse[evaluate]'\n"
