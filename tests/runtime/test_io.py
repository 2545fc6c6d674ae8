"""Files of crystals, read back by ASE and pymatgen."""

import csv
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.io.cif import CifParser

from druse import Crystals
from druse.elements import formula_of
from druse.errors import InputError
from druse.io import to_ase, to_pymatgen, write_cif, write_crystals, write_csv, write_extxyz
from druse.lattice import cells_from_parameters, wrap
from druse.tables import load_table

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pymatgen", "ignore::FutureWarning:pymatgen")


@pytest.fixture(scope="module")
def crystals() -> Crystals:
    rng = np.random.default_rng(0)
    sizes = np.array([1, 4, 9, 20, 2])
    frac = wrap(rng.uniform(-1, 2, (sizes.sum(), 3)))
    frac[0], frac[1] = 0.0, [1 - 1e-12, 0.5, 1e-12]
    cells = cells_from_parameters(rng.uniform(4, 12, (5, 3)), rng.uniform(65, 115, (5, 3)))
    return Crystals(
        frac, cells, np.concatenate([[0], np.cumsum(sizes)]), rng.integers(1, 95, sizes.sum(), dtype=np.int32)
    )


@pytest.fixture(scope="module")
def facts(crystals: Crystals) -> list[dict[str, Any]]:
    return [{"id": 40 + k, "seed": 7, "target_band_gap": 1.5, "changed": k % 2 == 0} for k in range(len(crystals))]


def distances(a: Structure, b: Structure) -> float:
    """Largest difference between the distance tables of two crystals whose atoms stand in one order."""
    return float(np.abs(a.distance_matrix - b.distance_matrix).max())


def read_cifs(text: str) -> list[Structure]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CifParser.from_str(text).parse_structures(primitive=False)


def test_extxyz(crystals: Crystals, facts: list[dict[str, Any]], tmp_path: Path) -> None:
    write_extxyz(tmp_path / "x.extxyz", crystals, facts)
    read = ase.io.read(tmp_path / "x.extxyz", index=":")
    assert len(read) == len(crystals)
    for atoms, crystal, info in zip(read, crystals, facts, strict=True):
        assert atoms.numbers.tolist() == crystal.species.tolist()
        assert np.allclose(atoms.cell[:], crystal.cells[0], atol=1e-12)
        assert np.allclose(atoms.positions, crystal.cart, atol=1e-8)
        assert atoms.pbc.all()
        assert {key: atoms.info[key] for key in info} == info


def test_cif_of_many_blocks(crystals: Crystals, facts: list[dict[str, Any]], tmp_path: Path) -> None:
    write_cif(tmp_path / "x.cif", crystals, facts)
    by_pymatgen = read_cifs((tmp_path / "x.cif").read_text())
    by_ase = ase.io.read(tmp_path / "x.cif", index=":")
    assert len(by_pymatgen) == len(by_ase) == len(crystals)
    for structure, atoms, wanted, crystal in zip(by_pymatgen, by_ase, to_pymatgen(crystals), crystals, strict=True):
        assert structure.composition == wanted.composition
        assert structure.matches(wanted, ltol=1e-4, stol=1e-4, angle_tol=0.01, scale=False, primitive_cell=False)
        assert atoms.numbers.tolist() == crystal.species.tolist()
        scaled = atoms.get_scaled_positions()
        assert np.abs(scaled - crystal.frac - np.round(scaled - crystal.frac)).max() < 1e-7
    assert "data_000040" in (tmp_path / "x.cif").read_text()
    assert "1.00000000" not in (tmp_path / "x.cif").read_text()


def test_zip_of_cif_is_the_same_each_time(crystals: Crystals, facts: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_cif(tmp_path / name, crystals, facts)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"{40 + k:06d}.cif" for k in range(len(crystals))]
        (structure,) = read_cifs(archive.read("000042.cif").decode())
    assert formula_of(structure.atomic_numbers) == formula_of(crystals[2].species)


def test_csv_can_be_read_as_a_data_set(crystals: Crystals, facts: list[dict[str, Any]], tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", crystals, facts)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [int(row["id"]) for row in rows] == [40, 41, 42, 43, 44]
    assert rows[0]["formula"] == formula_of(crystals[0].species)
    table = load_table(tmp_path / "x.csv", niggli=False, n_jobs=1)
    assert len(table) == len(crystals)
    for read, wanted in zip(to_pymatgen(table.crystals), to_pymatgen(crystals), strict=True):
        assert sorted(read.atomic_numbers) == sorted(wanted.atomic_numbers)
        assert read.volume == pytest.approx(wanted.volume, rel=1e-6)


def test_objects(crystals: Crystals, facts: list[dict[str, Any]]) -> None:
    for atoms, structure, info in zip(to_ase(crystals, facts), to_pymatgen(crystals, facts), facts, strict=True):
        assert atoms.info == info
        assert structure.properties == info
        assert np.allclose(atoms.get_all_distances(mic=True), structure.distance_matrix, atol=1e-9)


def test_names_of_blocks(crystals: Crystals, tmp_path: Path) -> None:
    write_cif(tmp_path / "x.cif", crystals, [{"id": name} for name in (7, "mp-12", "a b", "é/..", 123456789)])
    names = [line for line in (tmp_path / "x.cif").read_text().splitlines() if line.startswith("data_")]
    assert names == ["data_000007", "data_mp-12", "data_a_b", "data___..", "data_123456789"]
    nothing = crystals.replace(species=np.zeros_like(crystals.species))
    with pytest.raises(InputError, match="an atom of no element"):
        write_cif(tmp_path / "y.cif", nothing)


def test_no_crystals_make_empty_files(tmp_path: Path) -> None:
    for name in ("x.extxyz", "x.cif", "x.csv"):
        write_crystals(tmp_path / name, Crystals.concatenate([]))
        assert (tmp_path / name).read_bytes() == b""


def test_unknown_formats_are_refused(crystals: Crystals, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`format` must be one of extxyz, cif, csv, got 'pdb'"):
        write_crystals(tmp_path / "x.pdb", crystals)
    with pytest.raises(InputError, match="got 'x'"):
        write_crystals(tmp_path / "x", crystals)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_half_way_leaves_what_was_there(crystals: Crystals, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("before")
    with pytest.raises(ValueError, match="zip"):
        write_csv(tmp_path / "x.csv", crystals, [{"id": 0}])
    assert (tmp_path / "x.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
