"""Inputs of VASP, read back by pymatgen; results of relaxations that were written here; and predictions beside them."""

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
from crystal_examples import COPPER, FCC, MGO, NACL, ZINC_BLENDE, batch, crystal
from vasp_results import END, potcar, vasprun

pytest.importorskip("pymatgen.io.vasp", reason="reads VASP's files and knows the Materials Project's choices")

from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Incar, Kpoints, Poscar, VaspInput
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from druse import Crystals, InputError, _vasprun
from druse._comparison import agreements, formation_energies, read_references
from druse._fingerprints import as_structure
from druse._vasp_inputs import folder_name, incar, k_mesh, n_kpoints, ordered
from druse.candidates import Entries, read_entries, write_entries
from druse.cli import main
from druse.dft import Collected, Settings, collect, write_vasp
from druse.lattice import cells_from_parameters

ROCKY = crystal(
    cells_from_parameters([[3.1, 4.2, 5.3]], [[80.0, 95.0, 101.0]]),
    [8, 26, 15, 8, 3, 8, 8],
    [[0.1, 0.1, 0.1], [0.6, 0.5, 0.9], [0.4, 0.4, 0.4], [0.7, 0.1, 0.5], [0.0, 0.6, 0.1], [0.2, 0.9, 0.7],
     [0.9, 0.4, 0.6]],
)  # fmt: skip
"""A cell without symmetry, of the composition of LiFePO4."""


def entries(crystals: Crystals, **columns: object) -> Entries:
    n = len(crystals)
    values = {name: np.array(column) for name, column in columns.items()}
    return Entries(0, ("made",) * n, tuple(f"c{k}" for k in range(n)), ("",) * n, crystals, values)


def source(path: Path, crystals: Crystals, **columns: object) -> Path:
    write_entries(path, entries(crystals, **columns))
    return path


def index_of(folder: Path, name: str = "index.parquet") -> Entries:
    return Entries.concatenate(read_entries([folder / name]))


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever POTCARs the person who runs the tests has."""
    from pymatgen.core import SETTINGS

    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)


# Inputs


def test_what_pymatgen_reads_back(tmp_path: Path) -> None:
    given = batch(ROCKY, NACL, COPPER)
    written = write_vasp([source(tmp_path / "a.parquet", given, band_gap=[1.0, 2.0, 3.0])], tmp_path / "dft")
    assert (written.n, written.refused, written.new) == (3, {}, True)
    index = index_of(tmp_path / "dft")
    folders = index.columns["folder"].tolist()
    assert folders == ["0000-LiFePO4", "0001-NaCl", "0002-Cu"]
    assert (tmp_path / "dft" / "folders.txt").read_text().split() == folders
    for k, name in enumerate(folders):
        folder = tmp_path / "dft" / name
        poscar = Poscar.from_file(folder / "POSCAR")
        assert poscar.structure == as_structure(ordered(given[k]))
        assert np.allclose(poscar.structure.frac_coords, index.crystals[k].frac, atol=1e-15)
        tags = Incar.from_file(folder / "INCAR")
        assert tags["SYSTEM"] == name
        tags.check_params()  # warns of names and values that VASP does not know
        assert (tags["IBRION"], tags["ISIF"], tags["EDIFFG"], tags["GGA"]) == (2, 3, -0.001, "Pe")
        assert (tags["LREAL"], tags["LASPH"], tags["ISPIN"], tags["EDIFF"]) == (False, True, 2, 1e-7)
        assert len(tags["MAGMOM"]) == len(poscar.structure)
        mesh = Kpoints.from_file(folder / "KPOINTS")
        assert mesh.style.name == "Gamma"
        assert "x".join(map(str, mesh.kpts[0])) == index.columns["k_mesh"][k]
        symbols = (folder / "POTCAR.spec").read_text().split()
        assert [symbol.split("_")[0] for symbol in symbols] == poscar.site_symbols
        assert VaspInput.from_directory(folder)["INCAR"] == tags
        assert sorted(path.name for path in folder.iterdir()) == ["INCAR", "KPOINTS", "POSCAR", "POTCAR.spec"]
    assert index.columns["band_gap"].tolist() == [1.0, 2.0, 3.0]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_published_cutoffs(tmp_path: Path) -> None:
    """1.5 times the largest ENMAX: of Li_sv, of Cl, of Cu_pv, by the VASP wiki's list."""
    given = batch(ROCKY, NACL, COPPER)
    write_vasp([source(tmp_path / "a.parquet", given)], tmp_path / "dft")
    index = index_of(tmp_path / "dft")
    assert index.columns["potcar_symbols"].tolist() == ["Li_sv Fe_pv P O", "Na_pv Cl", "Cu_pv"]
    assert index.columns["enmax"].tolist() == [499.034, 262.472, 368.648]
    assert index.columns["encut"].tolist() == [748.551, 393.708, 552.972]
    assert set(index.columns["enmax_source"]) == {"table"}
    for name, encut in zip(index.columns["folder"], index.columns["encut"], strict=True):
        assert Incar.from_file(tmp_path / "dft" / name / "INCAR")["ENCUT"] == encut
    with (tmp_path / "dft" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]
    assert [float(row["encut"]) for row in rows] == [748.551, 393.708, 552.972]


def test_every_choice_of_the_materials_project_is_in_the_table() -> None:
    """For the two newer sets, but for what a set has in another version than the list."""
    from druse._potcars import Potcars, Refusal

    missing: dict[str, set[str]] = {"PBE_54": set(), "PBE_64": set()}
    for functional, lacking in missing.items():
        potcars = Potcars(functional)
        for element in potcars._symbols:
            try:
                assert 90 < potcars.of(element).enmax < 500
            except Refusal:
                lacking.add(element)
    assert missing == {"PBE_54": {"Cs", "Eu", "Gd", "Rn"}, "PBE_64": set()}


def test_meshes_by_hand() -> None:
    """|b| / (2π 0.03): of a cube 1 / (0.03 a), of fcc √3 / (0.03 a), of a hexagon 2 / (√3 0.03 a)."""
    hexagonal = cells_from_parameters([[3.25, 3.25, 5.2]], [[90.0, 90.0, 120.0]])
    needle = np.diag([2.0, 3.0, 80.0])[None]
    cells = np.concatenate([5 * np.eye(3)[None], 4.05 * FCC[None], hexagonal, needle])
    assert k_mesh(cells, 0.03).tolist() == [[7, 7, 7], [14, 14, 14], [12, 12, 6], [17, 11, 1]]
    assert k_mesh(np.eye(3)[None] / (0.03 * 2.5), 0.03).tolist() == [[3, 3, 3]], "halves go up"


def test_meshes_against_reciprocal_lattices() -> None:
    rng = np.random.default_rng(5)
    cells = cells_from_parameters(rng.uniform(2.5, 15, (200, 3)), rng.uniform(65, 115, (200, 3)))
    for spacing in (0.03, 0.05):
        for cell, mesh in zip(cells, k_mesh(cells, spacing), strict=True):
            lengths = np.array(Lattice(cell).reciprocal_lattice.abc)
            assert mesh.tolist() == [max(1, round(x)) for x in lengths / (2 * math.pi * spacing)]


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
def test_points_that_time_reversal_leaves() -> None:
    """As spglib counts them in a crystal without symmetry, and never fewer than it has with symmetry."""
    for mesh in ([1, 1, 1], [2, 1, 1], [3, 4, 5], [6, 6, 2], [7, 5, 3]):
        triclinic = SpacegroupAnalyzer(as_structure(ROCKY)).get_ir_reciprocal_mesh(mesh)
        assert n_kpoints(mesh) == len(triclinic)
        assert n_kpoints(mesh) >= len(SpacegroupAnalyzer(as_structure(NACL)).get_ir_reciprocal_mesh(mesh))


def test_left_handed_cells_are_turned_and_no_atom_moves() -> None:
    left = crystal(ROCKY.cells[0][[1, 0, 2]], ROCKY.species, ROCKY.frac[:, [1, 0, 2]])
    assert np.linalg.det(left.cells[0]) < 0
    right = ordered(left)
    assert np.linalg.det(right.cells[0]) > 0
    before, after = as_structure(left).distance_matrix, as_structure(right).distance_matrix
    order = [left.species.tolist().index(3), left.species.tolist().index(26), left.species.tolist().index(15)]
    assert np.allclose(after[:3, :3], before[np.ix_(order, order)])
    shift = right.cart[0] - left.cart[order[0]]
    assert np.allclose(np.linalg.solve(left.cells[0].T, shift) % 1 % (1 - 1e-9), 0, atol=1e-9)


def test_atoms_of_an_element_stand_together_in_their_order() -> None:
    made = ordered(ROCKY)
    assert made.species.tolist() == [3, 26, 15, 8, 8, 8, 8]
    assert np.allclose(made.frac[3:], ROCKY.frac[ROCKY.species == 8])


def test_names_of_folders() -> None:
    hydroxide = crystal(5 * np.eye(3), [1, 20, 8, 1, 8], np.linspace(0, 0.8, 15).reshape(5, 3))
    assert folder_name(7, 4, ordered(hydroxide)) == "0007-CaH2O2"
    assert folder_name(123, 6, COPPER) == "000123-Cu"
    assert folder_name(0, 4, ordered(batch(NACL)[0])) == "0000-NaCl"


def test_spin(tmp_path: Path) -> None:
    tags = Incar.from_str(incar(ordered(ROCKY), "x", 500.0, spin="mp", extra={}))
    assert tags["MAGMOM"] == [0.6, 5.0, 0.6, 0.6, 0.6, 0.6, 0.6]
    plain = Incar.from_str(incar(ordered(ROCKY), "x", 500.0, spin="none", extra={"NCORE": "4", "NSW": "10"}))
    assert plain["ISPIN"] == 1
    assert "MAGMOM" not in plain
    assert (plain["NCORE"], plain["NSW"]) == (4, 10)


def test_primitive_cells(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    cube = crystal(4.21 * np.eye(3), [12] * 4 + [8] * 4, np.concatenate([corners, corners + 0.5]))
    place = source(tmp_path / "a.parquet", cube)
    write_vasp([place], tmp_path / "cube")
    write_vasp([place], tmp_path / "primitive", settings=Settings(primitive=True))
    assert index_of(tmp_path / "cube").columns["n_atoms"].tolist() == [8]
    assert index_of(tmp_path / "primitive").columns["n_atoms"].tolist() == [2]
    found = Structure.from_file(tmp_path / "primitive" / "0000-MgO" / "POSCAR")
    assert found.matches(as_structure(MGO))


def test_what_cannot_be_calculated_is_refused_with_its_reason(tmp_path: Path) -> None:
    close = crystal(3 * np.eye(3), [11, 17], [[0, 0, 0], [0.05, 0, 0]])
    heavy = crystal(4 * np.eye(3), [104], [[0, 0, 0]])
    empty = crystal(4 * np.eye(3), [], [])
    flat = crystal(np.diag([4.0, 4.0, 0.0]), [29], [[0, 0, 0]])
    given = batch(NACL, close, heavy, empty, flat, crystal(4 * np.eye(3), [0], [[0, 0, 0]]), COPPER)
    written = write_vasp([source(tmp_path / "a.parquet", given)], tmp_path / "dft")
    assert written.n == 2
    assert set(written.refused) == {1, 2, 3, 4, 5}
    assert "closer than 0.5" in written.refused[1]
    assert "no PBE_64 potential is chosen for Rf" in written.refused[2]
    index = index_of(tmp_path / "dft")
    assert index.columns["folder"].tolist() == ["0000-NaCl", "", "", "", "", "", "0006-Cu"]
    assert index.failures == ("", *(written.refused[k] for k in range(1, 6)), "")
    assert (tmp_path / "dft" / "folders.txt").read_text() == "0000-NaCl\n0006-Cu\n"
    with pytest.raises(InputError, match="none of 1 structures can be calculated: no PBE_64 potential"):
        write_vasp([source(tmp_path / "b.parquet", heavy)], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_columns_of_a_source_travel_and_take_no_name_of_ours(tmp_path: Path) -> None:
    place = source(tmp_path / "a.parquet", NACL, energy=[-3.0], folder=["runs/x"], target_band_gap=[2.0])
    write_vasp([place], tmp_path / "dft")
    columns = index_of(tmp_path / "dft").columns
    assert columns["folder"].tolist() == ["0000-NaCl"]
    assert columns["source_folder"].tolist() == ["runs/x"]
    assert columns["source_energy"].tolist() == [-3.0]
    assert columns["target_band_gap"].tolist() == [2.0]


def test_the_same_request_twice_changes_nothing(tmp_path: Path) -> None:
    place = source(tmp_path / "a.parquet", batch(NACL, COPPER))
    write_vasp([place], tmp_path / "dft", settings=Settings(incar={"ncore": "4"}))
    mark = tmp_path / "dft" / "0000-NaCl" / "OUTCAR"
    mark.write_text("running")
    assert not write_vasp([place], tmp_path / "dft", settings=Settings(incar={"ncore": "4"})).new
    assert mark.read_text() == "running"
    for other in ({"settings": Settings(kspacing=0.04)}, {"limit": 1}, {"settings": Settings(spin="none")}):
        with pytest.raises(InputError, match="is there already, from another request"):
            write_vasp([place], tmp_path / "dft", **other)  # type: ignore[arg-type]
    assert mark.read_text() == "running"
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is no folder that druse dft vasp made"):
        write_vasp([place], tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "dft", "mine"]


@pytest.mark.parametrize("layout", ["POT_PAW_PBE_64/POTCAR.{}.gz", "POT_PAW_PBE_64/{}/POTCAR", "{}/POTCAR"])
def test_own_potcars(tmp_path: Path, layout: str) -> None:
    for symbol, enmax in (("Na_pv", 111.5), ("Cl", 222.25)):
        made = potcar(tmp_path / "made" / symbol, symbol, enmax)
        path = tmp_path / "own" / layout.format(symbol)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(made.read_bytes()) if path.suffix == ".gz" else made.read_bytes())
    place = source(tmp_path / "a.parquet", batch(NACL, COPPER))
    written = write_vasp([place], tmp_path / "dft", potcars=tmp_path / "own", write_potcar=True)
    assert written.refused == {1: "there is no POTCAR of Cu_pv in the folder given"}
    columns = index_of(tmp_path / "dft").columns
    assert (columns["enmax"][0], columns["encut"][0], columns["enmax_source"][0]) == (222.25, 333.375, "POTCAR")
    joined = (tmp_path / "dft" / "0000-NaCl" / "POTCAR").read_text()
    assert [line.split()[3] for line in joined.splitlines() if "TITEL" in line] == ["Na_pv", "Cl"]


def test_pymatgens_setting_and_the_table_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymatgen.core import SETTINGS

    potcar(tmp_path / "own" / "POT_PAW_PBE_64" / "Cl", "Cl", 222.25)
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", str(tmp_path / "own"))
    write_vasp([source(tmp_path / "a.parquet", batch(NACL, COPPER))], tmp_path / "dft")
    assert index_of(tmp_path / "dft").columns["enmax"].tolist() == [259.561, 368.648]
    assert index_of(tmp_path / "dft").columns["enmax_source"].tolist() == ["POTCAR+table", "table"]
    assert not list((tmp_path / "dft").glob("*/POTCAR"))


def test_potcars_of_something_else_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    potcar(own / "Cu_pv", "Cu", 300.0)
    potcar(own / "Na_pv", "Na_pv", 300.0, kind="PAW")
    (own / "Mg_pv").mkdir()
    (own / "Mg_pv" / "POTCAR").write_bytes(b"\x00" * 100)
    (own / "POTCAR.Zn.gz").write_bytes(b"no gzip")
    place = source(tmp_path / "a.parquet", batch(COPPER, NACL, MGO, ZINC_BLENDE))
    with pytest.raises(InputError, match="none of 4 structures can be calculated: the POTCAR of Cu_pv is another"):
        write_vasp([place], tmp_path / "dft", potcars=own)
    potcar(own / "Cu_pv", "Cu_pv", 300.0)
    refused = write_vasp([place], tmp_path / "dft", potcars=own).refused
    assert "is another: PAW Na_pv" in refused[1]
    assert "no POTCAR of O" in refused[2] or "no TITEL" in refused[2]
    assert "POTCAR.Zn.gz cannot be read" in refused[3] or "no POTCAR of S" in refused[3]


def test_other_potentials(tmp_path: Path) -> None:
    place = source(tmp_path / "a.parquet", batch(COPPER))
    write_vasp([place], tmp_path / "dft", settings=Settings(symbols={"Cu": "Cu"}))
    assert index_of(tmp_path / "dft").columns["enmax"].tolist() == [295.446]
    with pytest.raises(InputError, match="must be its symbol or such as Fe_pv, got 'Fe'"):
        write_vasp([place], tmp_path / "x", settings=Settings(symbols={"Cu": "Fe"}))
    with pytest.raises(InputError, match=r"must be its symbol or such as Fe_pv, got '\.\./Cu'"):
        write_vasp([place], tmp_path / "x", settings=Settings(symbols={"Cu": "../Cu"}))
    with pytest.raises(InputError, match="ENMAX of Cu_pv in the set PBE is not known; give a folder of POTCARs"):
        write_vasp([place], tmp_path / "x", settings=Settings(functional="PBE"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kspacing": 0.0}, "`kspacing` must be from 0.001 to 1, got 0"),
        ({"encut_factor": math.nan}, "`encut_factor` must be from 0.5 to 5, got nan"),
        ({"spin": "up"}, "`spin` must be mp or none, got 'up'"),
        ({"command": "a\nb"}, "`command` must be one line"),
        ({"functional": "LDA"}, "`functional` must be one of PBE, PBE_52, PBE_54, PBE_64, got 'LDA'"),
        ({"incar": {"NCORE": "4\nISIF = 2"}}, "the INCAR tag NCORE must have a value of one line"),
        ({"incar": {"N CORE": "4"}}, "an INCAR tag must be a word such as NCORE"),
        ({"incar": {"NCORE": "4; ISIF = 2"}}, "the INCAR tag NCORE must have a value of one line"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    place = source(tmp_path / "a.parquet", batch(COPPER))
    with pytest.raises(InputError, match=message):
        write_vasp([place], tmp_path / "dft", settings=Settings(**change))
    assert not (tmp_path / "dft").exists()


def test_the_array_script(tmp_path: Path) -> None:
    command = 'echo "$(basename $PWD) $(wc -l < POTCAR)" >> ../said'
    place = source(tmp_path / "a.parquet", batch(NACL, COPPER))
    write_vasp([place], tmp_path / "dft", settings=Settings(command=command))
    script = tmp_path / "dft" / "array.sh"
    assert "#SBATCH --array=0-1\n" in script.read_text()
    for symbol in ("Na_pv", "Cl", "Cu_pv"):
        potcar(tmp_path / "own" / symbol, symbol, 300.0)

    def task(number: int, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), **environment}
        return subprocess.run(["bash", "array.sh"], cwd=tmp_path / "dft", env=variables, capture_output=True, text=True)

    lost = task(0)
    assert lost.returncode != 0
    assert "there is no POTCAR in 0000-NaCl; set POTCARS" in lost.stderr
    assert not (tmp_path / "dft" / "0000-NaCl" / "POTCAR").exists()
    for number in (0, 1):
        assert task(number, POTCARS=str(tmp_path / "own")).returncode == 0
    (tmp_path / "dft" / "0001-Cu" / "vasprun.xml").write_text("<modeling>\n" + END)
    assert "0001-Cu is finished" in task(1).stdout
    assert (tmp_path / "dft" / "said").read_text().splitlines() == ["0000-NaCl 10", "0001-Cu 5"]


# Results


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
