"""``druse generate``, ``resume`` and ``export`` as a person meets them; and every mistake in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

pytest.importorskip("torch", reason="bundles are made with PyTorch")

from druse.elements import formula_of
from druse.runs import Run


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> str:
    return str(bundle_path)


def druse(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "druse", *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip


def test_generate_resume_export(bundle: str, tmp_path: Path) -> None:
    options = ["--bundle", bundle, "--count", "8", "--oversample", "2", "--seed", "3", "--batch", "3"]
    control = ["--formula", "LiO2", "--z", "2"]
    made = druse("generate", "--target", "band_gap=2", *options, *control, "--out", "a/run", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    run = Run.open(tmp_path / "a" / "run")
    assert run.request.targets == {"band_gap": 2.0}
    assert run.request.control.formula == "LiO2"
    atoms = ase.io.read(run.path / "crystals.extxyz", index=":")
    assert len(atoms) == len(ase.io.read(run.path / "crystals.cif", index=":"))
    assert {formula_of(entry.numbers) for entry in atoms} == {"Li2O4"}
    assert atoms[0].info["target_band_gap"] == 2
    for text in (f"{len(atoms)} good", "mean predicted band_gap", "composition in", "crystals.extxyz"):
        assert text in made.stdout
    again = druse("resume", "a/run", "--json", cwd=tmp_path)
    content = json.loads(again.stdout)
    assert content["finished"] == 8
    assert content["good"] == len(atoms)
    for name in ("b.csv", "b.zip", "b.cif", "b.xyz"):
        out = druse("export", "a/run", "--out", name, cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        assert out.stdout.strip() == f"{len(atoms)} crystals in {name}"
    assert (tmp_path / "b.cif").read_bytes() == (run.path / "crystals.cif").read_bytes()
    assert json.loads(druse("export", "a/run", "--format", "csv", "--out", "b.txt", "--json", cwd=tmp_path).stdout) == {
        "crystals": len(atoms),
        "left_out": 8 - len(atoms),
        "unfinished": 0,
        "file": "b.txt",
    }


def test_several_devices(bundle: str, tmp_path: Path) -> None:
    options = ["--bundle", bundle, "--count", "6", "--oversample", "2", "--batch", "3", "--backend", "ort-host"]
    for out, devices in (("one", []), ("two", ["--devices", "host:0, host:1"])):
        made = druse("generate", *options, *devices, "--out", out, "--json", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    first, second = (Run.open(tmp_path / out).crystals() for out in ("one", "two"))
    assert first.frac.tobytes() == second.frac.tobytes()
    again = druse("resume", "two", "--devices", "cuda:0", cwd=tmp_path)
    assert again.returncode == 1
    assert "`devices` of ort-host must be" in again.stderr


def test_a_target_outside_of_the_range_warns(bundle: str, tmp_path: Path) -> None:
    options = ["--bundle", bundle, "--count", "1", "--oversample", "1", "--out", "run", "--json"]
    made = druse("generate", "--target", "band_gap=9", *options, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stderr == "warning: the model was trained for band_gap from 0 to 8 eV; 9 is outside\n"
    assert json.loads(made.stdout)["finished"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--backend", "ort-host", "--devices", "host:0,host:0"], "`devices` of ort-host must be different ones"),
        (["--devices", "gpu"], "`devices` of ort-cuda must be different ones such as cuda:0 and cuda:1, got gpu"),
        (["--bundle", "nowhere"], "nowhere does not exist as folder or file; give the folder or .zip of a bundle"),
        (["--target", "band_gap=wide"], "`band_gap` must be a number, got 'wide'; write band_gap=0"),
        (["--target", "band_gap=nan"], "`band_gap` must be finite in float32, got nan"),
        (["--target", "band_gap"], "--target must be NAME=VALUE, such as formation_energy_per_atom=-2; got 'band_gap'"),
        (["--target", "band_gap=1", "--target", "band_gap=2"], "--target band_gap is given twice"),
        (["--target", "colour=1"], "no target 'colour'; this model knows band_gap (0 to 8 eV), crystal_system (cubic|"),
        (["--count", "0"], "`count` must be a whole number from 1 up, got 0"),
        (["--count", "-3"], "`count` must be a whole number from 1 up, got -3"),
        (["--oversample", "0"], "`oversample` must be a whole number from 1 up, got 0"),
        (["--seed", "-1"], "`seed` must be a whole number from 0 to 2^64 - 1, got -1"),
        (["--formula", "LiFePO4", "--z", "2"], "`formula` LiFePO4 has 14 atoms with z = 2; no whole number of"),
        (["--formula", "Li(("], "cannot read 'Li((' as a formula"),
        (["--formula", "Qq2"], "cannot read 'Qq2' as a formula: no element at 'Qq2'"),
        (["--elements", "Li,Xq"], "`elements` must be symbols of elements such as Li, Fe and O, got 'Xq'"),
        (["--n-atoms", "4-"], "--n-atoms must be a number or a range such as 4-12, got '4-'"),
        (["--n-atoms", "30"], "`n_atoms` must be at most 8, which the model was trained for, got 30"),
        (["--crystal-system", "round"], "`crystal_system` must be one of triclinic, trigonal"),
        (["--schedule", "quick"], "`schedule` must be one of faithful"),
        (["--strategy", "full"], "no strategy fits the targets (full: it needs crystal_system, n_atom too)"),
        (["--backend", "abacus"], "`backend` must be auto or one of ort-cpu"),
        (["--out", "file"], "file is not an empty folder; give another one"),
        (["--out", "file/run"], "file/run"),
        (["--out", "/proc/run"], "/proc/run"),
    ],
)
def test_mistakes_end_in_one_line(bundle: str, tmp_path: Path, options: list[str], sentence: str) -> None:
    (tmp_path / "file").write_text("mine")
    given = dict(zip(options[::2], options[1::2], strict=True))
    every = ["--bundle", bundle, "--count", "2", "--oversample", "1", "--target", "band_gap=2", "--out", "run"]
    kept = [text for k in range(0, len(every), 2) if every[k] not in given for text in every[k : k + 2]]
    made = druse("generate", *kept, *options, cwd=tmp_path)
    assert made.returncode == 1
    assert made.stdout == ""
    lines = made.stderr.strip().splitlines()
    assert len(lines) == 1, made.stderr
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    options = ["--bundle", bundle, "--count", "1", "--target", "band_gap=2"]
    made = druse("generate", *options, "--out", "locked/run", cwd=tmp_path)
    assert made.returncode == 1
    assert "locked/run: permission denied; choose a place where you may write" in made.stderr


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["resume", "none"], "none holds no run (run.json); make one with druse generate --out none"),
        (["export", "none", "--out", "x.cif"], "none does not exist; give a file or folder of crystals"),
    ],
)
def test_commands_on_no_run(tmp_path: Path, command: list[str], sentence: str) -> None:
    made = druse(*command, cwd=tmp_path)
    assert made.returncode == 1
    assert made.stderr.startswith(f"error: {sentence}")
    assert list(tmp_path.iterdir()) == []
