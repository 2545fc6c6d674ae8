"""Relaxation: where ASE's own ends, whatever a calculator does, in folders that any interruption leaves whole."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import COPPER, FCC, NACL, batch, crystal, supercell

pytest.importorskip("loky", reason="starts the processes")
pytest.importorskip("pymatgen.core", reason="compares structures")

import ase.build
import ase.io
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from calculators import NUMBER

from druse import Crystals, DruseError, InputError
from druse._columns import read_columns
from druse._folders import locked
from druse.candidates import read_entries
from druse.cli import main
from druse.io import to_ase
from druse.relax import Relaxation, Relaxed, relax, relaxing

HERE = Path(__file__).parent
STRAINED = crystal(3.3 * FCC @ np.diag([1.02, 1.0, 0.97]), [29], [[0, 0, 0]])
ALUMINIUM = crystal(4.3 * FCC, [13], [[0, 0, 0]])
ALLOY = crystal(3.9 * np.eye(3), [29, 79, 79, 79], [[0, 0, 0], [0.5, 0.5, 0.02], [0.52, 0, 0.5], [0, 0.5, 0.47]])
NOTHING = crystal(4 * np.eye(3), [], [])

pytestmark = pytest.mark.usefixtures("as_users_call")


def relaxed(crystals: Crystals, calculator: str, **options: object) -> list[Relaxed]:
    return list(relax(crystals, calculator, n_jobs=1, **options))


def by_ase(one: Crystals, optimizer: type, *, cell: bool = True, fmax: float = 0.01) -> tuple[object, int]:
    (atoms,) = to_ase([one])
    atoms.calc = EMT()
    run = optimizer(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
    run.run(fmax=fmax, steps=200)
    return atoms, run.nsteps


@pytest.mark.parametrize(("optimizer", "cell"), [(FIRE, True), (BFGS, True), (FIRE, False)])
def test_ends_where_ase_does(optimizer: type, cell: bool) -> None:
    crystals = batch(STRAINED, ALLOY)
    found = relaxed(crystals, "emt", optimizer=optimizer.__name__, cell=cell, fmax=0.01, steps=200)
    for before, one in zip(crystals, found, strict=True):
        atoms, steps = by_ase(before, optimizer, cell=cell)
        assert (one.converged, one.failure, one.steps) == (True, "", steps)
        assert one.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(one.crystal.cells[0], atoms.cell[:], atol=1e-9)
        np.testing.assert_allclose(one.crystal.cart, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(one.forces, atoms.get_forces(), atol=1e-9)
        assert one.fmax < 0.01


def test_copper_has_the_lattice_constant_of_the_potential() -> None:
    (one,) = relaxed(STRAINED, "emt", fmax=1e-4)
    energies = {}
    for a in np.linspace(3.5, 3.7, 201):
        atoms = ase.build.bulk("Cu", a=a)
        atoms.calc = EMT()
        energies[a] = atoms.get_potential_energy()
    a = np.cbrt(4 * abs(np.linalg.det(one.crystal.cells[0])))
    assert a == pytest.approx(min(energies, key=energies.__getitem__), abs=2e-3)
    np.testing.assert_allclose(one.change.angles, 0.0, atol=5.0)
    assert one.change.rmsd == pytest.approx(0.0, abs=1e-6)


def test_changes_are_those_of_the_cells_as_given() -> None:
    (one,) = relaxed(ALLOY, "emt")
    lengths, angles = (
        [np.array(atoms.cell.cellpar()) for atoms in to_ase([ALLOY, one.crystal])][k][part]
        for k in (0, 1) for part in (slice(0, 3),)
    )  # fmt: skip
    np.testing.assert_allclose(one.change.lengths, np.abs(lengths - angles), atol=1e-12)
    before, after = (atoms.get_volume() for atoms in to_ase([ALLOY, one.crystal]))
    assert one.change.volume == pytest.approx(after / before - 1)
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.io.ase import AseAtomsAdaptor

    pair = [AseAtomsAdaptor.get_structure(atoms) for atoms in to_ase([ALLOY, one.crystal])]
    rmsd = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist(*pair)[0]
    assert one.change.rmsd == pytest.approx(rmsd, abs=1e-12)
    assert one.change.rmsd_angstrom == pytest.approx(rmsd * (before * after) ** (1 / 6) / 4 ** (1 / 3))


def test_pressure_makes_cells_smaller() -> None:
    free, pressed = (relaxed(ALUMINIUM, "emt", pressure=p, fmax=1e-3)[0] for p in (0.0, 10.0))
    assert pressed.change.volume < free.change.volume - 0.05
    np.testing.assert_allclose(pressed.stress * 160.21766, -10.0 * np.eye(3), atol=0.1)


def test_arguments_reach_the_calculator() -> None:
    argon = crystal(5.4 * FCC, [18], [[0, 0, 0]])
    lj = {"sigma": 3.4, "epsilon": 0.0104, "rc": 10.0, "smooth": True}
    (one,) = relaxed(argon, "lj", arguments=lj, fmax=1e-4)
    assert one.failure == ""
    a = np.cbrt(4 * abs(np.linalg.det(one.crystal.cells[0])))
    assert a / 3.4 == pytest.approx(1.54, abs=0.02)  # fcc of Lennard-Jones: 1.5424 sigma, with an infinite cutoff


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Sleeps", "not done after 1 s"),
        ("Spins", "its process ended: a crash, too little memory, or not done after 1 s"),
        ("Exits", "its process ended: a crash, too little memory, or not done after 1 s"),
        ("Raises", "RuntimeError: copper is too dear"),
        ("Unknown", "its energy, forces or stress are not finite"),
        ("Explodes", "its volume changed by more than a factor of 5"),
    ],
)
def test_the_batch_goes_on(name: str, reason: str) -> None:
    crystals = batch(ALUMINIUM, COPPER, NACL, NOTHING, supercell(ALUMINIUM))
    found = list(relax(crystals, f"calculators:{name}", n_jobs=2, seconds=1.0))
    failures = ["", reason, "NotImplementedError: No EMT-potential for Na", "it has no atoms", ""]
    assert [one.failure for one in found][:3] == failures[:3]
    assert found[3].failure
    assert found[4].converged
    if name != "Explodes":
        np.testing.assert_array_equal(found[1].crystal.cells, COPPER.cells)
        assert np.isnan(found[1].energy)
    else:
        assert 1 < found[1].change.volume < 4
    assert found[4].energy == pytest.approx(2 * found[0].energy, abs=2e-3)


@pytest.fixture
def potentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that offers batched potentials, as pip leaves it."""
    metadata = tmp_path / "offers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[druse.potentials]\nemt = calculators:Together\ncalculators = calculators:Together\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("potentials")
@pytest.mark.parametrize("options", [{}, {"cell": False}, {"pressure": 5.0}, {"steps": 7}])
def test_batches_end_where_single_crystals_do(options: dict[str, object]) -> None:
    crystals = batch(STRAINED, ALLOY, NACL, ALUMINIUM, supercell(STRAINED))
    given = {"fmax": 0.01, "steps": 200, **options}
    together = relaxing("emt", **given)
    assert together.batched
    assert not relaxing("emt", optimizer="BFGS").batched
    alone = relaxed(crystals, "emt", batched=False, **given)
    for one, other in zip(relaxed(crystals, together), alone, strict=True):
        assert (one.converged, one.steps) == (other.converged, other.steps)
        assert bool(one.failure) == bool(other.failure)
        np.testing.assert_allclose(one.crystal.cells, other.crystal.cells, atol=1e-8)
        np.testing.assert_allclose(one.crystal.frac, other.crystal.frac, atol=1e-8)
        np.testing.assert_allclose(one.energy, other.energy, atol=1e-8)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-8)
        np.testing.assert_allclose(one.change.lengths, other.change.lengths, atol=1e-8)


@pytest.mark.usefixtures("potentials")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Sleeps", "not done after 1 s"),
        ("Exits", "its process ended: a crash, too little memory, or not done after 1 s"),
        ("Unknown", "its energy, forces or stress are not finite"),
        ("Explodes", "its volume changed by more than a factor of 5"),
    ],
)
def test_one_of_a_batch_does_not_harm_it(name: str, reason: str) -> None:
    crystals = batch(ALUMINIUM, COPPER, NACL, NOTHING, supercell(ALUMINIUM))
    found = list(relax(crystals, f"calculators:{name}", batched=True, n_jobs=2, seconds=1.0))
    assert [one.failure for one in found][:3] == ["", reason, "No EMT-potential for Na"]
    assert [one.converged for one in found] == [True, False, False, False, True]


def test_fused_atoms_are_a_failure() -> None:
    pair = crystal(8 * np.eye(3), [29, 29], [[0, 0, 0], [0.05, 0, 0]])
    (one,) = relaxed(pair, "emt", steps=0)
    assert one.failure == "its atoms fused: atoms closer than 0.5 Å"


def test_a_step_limit_is_no_failure() -> None:
    (one,) = relaxed(STRAINED, "emt", steps=2, fmax=1e-6)
    assert (one.failure, one.converged, one.steps) == ("", False, 2)
    assert np.isfinite(one.energy)


@pytest.mark.parametrize(
    ("calculator", "options", "message"),
    [
        ("no_such", {}, "there is no calculator 'no_such'"),
        ("calculators:Absent", {}, "there is no calculator 'calculators:Absent' .AttributeError"),
        ("calculators:NUMBER", {}, "is no class but int"),
        ("emt", {"optimizer": "Newton"}, "`optimizer` must be one of FIRE, BFGS, LBFGS, got 'Newton'"),
        ("emt", {"fmax": 0.0}, "`fmax` must be above 0"),
        ("emt", {"pressure": 1.0, "cell": False}, "a pressure moves cells"),
        ("torchsim:a:b", {"batched": False}, "works in batches only"),
        ("emt", {"batched": True}, "no batched potential goes by the name 'emt'"),
        ("emt", {"optimizer": "BFGS", "batched": True}, "crystals in batches are relaxed by FIRE"),
        ("eam", {"arguments": {"potential": "absent.alloy"}}, "the calculator 'eam' could not be made"),
        ("lj", {"arguments": {"sigmma": 1.0}}, "'lj' has no 'sigmma', but epsilon, rc, ro, sigma, smooth"),
        ("calculators:Stressless", {}, "knows no stress, by which cells move; give --no-cell"),
    ],
)
def test_what_cannot_be_is_said(calculator: str, options: dict[str, object], message: str) -> None:
    assert NUMBER == 5
    with pytest.raises(InputError, match=message):
        relaxed(STRAINED, calculator, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """17 entries with a column, two of them no crystals."""
    rng = np.random.default_rng(1)
    rows = []
    for k in range(17):
        symbol = ("Cu", "Al", "Ni", "Pd")[k % 4]
        atoms = ase.build.bulk(symbol, cubic=k % 2 == 0)
        atoms.set_cell(atoms.cell[:] * rng.uniform(0.95, 1.05, (3, 1)), scale_atoms=True)
        atoms.rattle(0.05, seed=k)
        rows.append((f"c{k}", k / 10, atoms))
    path = tmp_path / "made.csv"
    lines = ["material_id,score,cif"]
    for name, score, atoms in rows:
        file = io.BytesIO()
        ase.io.write(file, atoms, format="cif")
        text = "nonsense" if name in ("c3", "c16") else file.getvalue().decode().replace('"', "")
        lines.append(f'{name},{score},"{text}"')
    path.write_text("\n".join(lines) + "\n")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["druse", "relax", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


FILES = ("relaxed.parquet", "relaxed.extxyz", "relaxed.cif")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "out"
    options = ("--calculator", "emt", "--jobs", 2, "--fmax", 0.02)
    assert run(monkeypatch, source, "--out", out, *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["entries"], said["relaxed"], said["converged"]) == (17, 15, 15)
    (table,) = read_entries([out / "relaxed.parquet"])
    assert table.ids == tuple(f"c{k}" for k in range(17))
    np.testing.assert_allclose(table.columns["score"], np.arange(17) / 10)
    assert [k for k in range(17) if table.failures[k]] == [3, 16]
    assert "seconds" not in table.columns
    good = table.ok
    assert (table.columns["converged"] == good).all()
    assert (table.columns["fmax"][good] < 0.02).all()
    assert np.isnan(table.columns["energy"][~good]).all()
    np.testing.assert_allclose(
        table.columns["energy_per_atom"][good], (table.columns["energy"] / table.crystals.n_atoms)[good]
    )
    for name, value in said["changes"].items():
        assert value == pytest.approx(table.columns[name][good].mean())
    assert said["rmsd"] == pytest.approx(np.nanmean(table.columns["rmsd"]))
    assert said["matched"] == np.isfinite(table.columns["rmsd"]).sum()
    images = ase.io.read(out / "relaxed.extxyz", ":")
    assert [atoms.info["id"] for atoms in images] == [table.ids[k] for k in np.flatnonzero(good)]
    for atoms, k in zip(images, np.flatnonzero(good), strict=True):
        assert atoms.get_potential_energy() == pytest.approx(table.columns["energy"][k], abs=1e-6)
        stress = atoms.get_stress()
        atoms_ = atoms.copy()
        atoms_.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(), atoms_.get_forces(), atol=1e-5)
        np.testing.assert_allclose(stress, atoms_.get_stress(), atol=1e-5)
    assert (out / "relaxed.cif").read_text().count("data_c") == 15
    assert list(read_columns(out / "seconds.parquet", "")) == ["id", "seconds"]
    assert len(list((out / "pieces").iterdir())) == 3

    before = contents(out)
    (out / "pieces" / "00001.parquet").unlink()
    (out / "relaxed.parquet").unlink()
    assert run(monkeypatch, source, "--out", out, *options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("15 of 17 crystals converged, 15 are without a failure; ")
    assert "mean absolute change of the converged ones" in printed
    assert contents(out) == before
    assert run(monkeypatch, source, "--out", tmp_path / "one", *options[:2], "--jobs", 1, "--fmax", 0.02) == 0
    assert contents(tmp_path / "one") == before
    capsys.readouterr()

    assert run(monkeypatch, source, "--out", out, *options, "--steps", 3) == 1
    assert capsys.readouterr().err == (
        f"error: {out} was begun with another value of steps; repeat its command, or give another folder\n"
    )
    assert run(monkeypatch, source, source, "--out", out, *options) == 1
    assert "begun with another list of sources" in capsys.readouterr().err
    with locked(out):
        assert run(monkeypatch, source, "--out", out, *options) == 1
    assert capsys.readouterr().err == f"error: another process writes to {out}; wait for it, or stop it\n"
    (out / "pieces" / "00001.parquet").write_bytes(b"no parquet")
    assert run(monkeypatch, source, "--out", out, *options) == 1
    assert "00001.parquet cannot be read" in capsys.readouterr().err
    (out / "pieces" / "00001.parquet").unlink()
    source.write_text(source.read_text().replace("c0,0.0", "c0,0.5"))
    assert run(monkeypatch, source, "--out", out, *options) == 1
    assert "is of other crystals than the sources hold now; give another folder" in capsys.readouterr().err


def test_limit_and_other_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, source, "--out", out, "--calculator", "emt", "--jobs", 1, "--limit", 10, "--json") == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 10
    assert Relaxation.open(out).count() == 10
    before = contents(out)
    (out / "relaxed.cif").unlink()
    monkeypatch.setattr(sys, "argv", ["druse", "resume", str(out), "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out)["entries"] == 10
    assert contents(out) == before
    assert run(monkeypatch, source, "--out", tmp_path, "--calculator", "emt") == 1
    assert capsys.readouterr().err == f"error: {tmp_path} is not an empty folder; give another one\n"
    assert run(monkeypatch, tmp_path / "absent.csv", "--out", tmp_path / "x", "--calculator", "emt") == 1
    assert "absent.csv does not exist" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert run(monkeypatch, source, "--out", tmp_path / "x", "--calculator", "emt", "--set", "a") == 1
    assert "--set must be NAME=VALUE" in capsys.readouterr().err
    with pytest.raises(DruseError, match="holds no relaxation"):
        Relaxation.open(tmp_path)


def test_killed_at_any_moment_and_begun_again(tmp_path: Path, source: Path) -> None:
    command = [sys.executable, "-c", "from druse.cli import main; main()", "relax", str(source)]
    command += ["--calculator", "calculators:Slow", "--jobs", "2", "--json", "--out"]
    environment = dict(os.environ, PYTHONPATH=str(HERE))
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    subprocess.run([*command, str(whole)], env=environment, check=True, capture_output=True, timeout=300)
    for pieces in (1, 2):
        child = subprocess.Popen([*command, str(torn)], env=environment, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while len(list(torn.glob("pieces/0*"))) < pieces and time.monotonic() < end:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (torn / "relaxed.parquet").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in torn.glob("pieces/0*")}
    assert len(kept) >= 2
    subprocess.run([*command, str(torn)], env=environment, check=True, capture_output=True, timeout=300)
    assert contents(torn) == contents(whole)
    assert {name: (torn / "pieces" / name).stat().st_mtime_ns for name in kept} == kept


def test_a_relaxation_finds_its_sources_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> None:
    monkeypatch.chdir(source.parent)
    begun = Relaxation.create(tmp_path / "relaxed", [source.name], relaxing("emt"))
    assert begun.file.sources == (str(source.resolve()),)
    with pytest.raises(InputError, match="nothing to relax"):
        Relaxation.create(tmp_path / "nothing", [], relaxing("emt"))
