"""Inputs of VASP, read back by pymatgen."""

import csv
import gzip
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crystal_examples import COPPER, FCC, MGO, NACL, ZINC_BLENDE, batch, crystal
from vasp_results import END, entries, index_of, no_setting, potcar, source, vasprun  # noqa: F401  a fixture

pytest.importorskip("pymatgen.io.vasp", reason="reads VASP's files and knows the Materials Project's choices")

from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Incar, Kpoints, Poscar, VaspInput
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from druse import InputError
from druse._fingerprints import as_structure
from druse._vasp_inputs import folder_name, incar, k_mesh, n_kpoints, ordered
from druse.dft import Settings, write_vasp
from druse.lattice import cells_from_parameters

ROCKY = crystal(
    cells_from_parameters([[3.1, 4.2, 5.3]], [[80.0, 95.0, 101.0]]),
    [8, 26, 15, 8, 3, 8, 8],
    [[0.1, 0.1, 0.1], [0.6, 0.5, 0.9], [0.4, 0.4, 0.4], [0.7, 0.1, 0.5], [0.0, 0.6, 0.1], [0.2, 0.9, 0.7],
     [0.9, 0.4, 0.6]],
)  # fmt: skip
"""A cell without symmetry, of the composition of LiFePO4."""


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
