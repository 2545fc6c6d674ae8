"""Files of crystals, read back by ASE and pymatgen."""

import csv
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.io.cif import CifParser
from pymatgen.io.optimade import OptimadeStructureAdapter

from druse import Crystals
from druse.candidates import Entries, export, read_entries
from druse.elements import formula_of
from druse.errors import InputError
from druse.io import FORMATS, to_ase, to_pymatgen, write_ase_db, write_cif, write_crystals, write_csv, write_extxyz
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


def test_csv_of_long_texts_and_of_facts_that_come_late(tmp_path: Path) -> None:
    """The CIF of 3,000 atoms is longer than a field that Python's reader of CSV takes."""
    frac, offsets = np.random.default_rng(0).random((3000, 3)), np.array([0, 3000])
    large = Crystals(frac, np.eye(3)[None] * 60, offsets, np.full(3000, 6, np.int32))
    said: list[dict[str, Any]] = [{"note": 'a "b",\r\n c'}, {"late": None, "energy": 0.1}]
    write_csv(tmp_path / "large.csv", Crystals.concatenate([large, large]), said)
    before = csv.field_size_limit(1 << 20)
    with (tmp_path / "large.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    csv.field_size_limit(before)
    assert [*first] == ["note", "formula", "n_atoms", "cif", "late", "energy"]
    assert (first["note"], first["energy"], second["note"], second["energy"]) == ('a "b",\r\n c', "", "", "0.1")
    assert first["cif"].count("\n") > 3000


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
    write_crystals(tmp_path / "x.db", Crystals.concatenate([]))
    assert len(ase.db.connect(tmp_path / "x.db")) == 0
    write_crystals(tmp_path / "x.jsonl", Crystals.concatenate([]))
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2
    write_crystals(tmp_path / "x", Crystals.concatenate([]), format="poscar")
    assert list((tmp_path / "x").iterdir()) == []


def test_unknown_formats_are_refused(crystals: Crystals, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`format` must be one of extxyz, cif, poscar, db, jsonl, csv, got 'pdb'"):
        write_crystals(tmp_path / "x.pdb", crystals)
    with pytest.raises(InputError, match="got 'x'"):
        write_crystals(tmp_path / "x", crystals)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_half_way_leaves_what_was_there(crystals: Crystals, tmp_path: Path) -> None:
    for suffix in ("csv", "cif", "db", "jsonl", "zip"):
        path = tmp_path / f"x.{suffix}"
        path.write_text("before")
        with pytest.raises(ValueError, match="zip"):
            write_crystals(path, crystals, [{"id": 0}])
        assert path.read_text() == "before"
        assert [one.name for one in tmp_path.iterdir()] == [path.name]
        path.unlink()
    with pytest.raises(ValueError, match="zip"):
        write_crystals(tmp_path / "folder", crystals, [{"id": 0}], format="poscar")
    assert list(tmp_path.iterdir()) == []


def same(structure: Structure, wanted: Structure, tolerance: float = 1e-8) -> bool:
    """Whether two crystals have one cell and the same atoms, in whatever order elements stand."""
    order = np.argsort(wanted.atomic_numbers, kind="stable")
    frac = structure.frac_coords[np.argsort(structure.atomic_numbers, kind="stable")] - wanted.frac_coords[order]
    return (
        structure.composition == wanted.composition
        and np.allclose(structure.lattice.matrix, wanted.lattice.matrix, atol=tolerance)
        and np.abs(frac - np.round(frac)).max() < tolerance
    )


@pytest.mark.parametrize("name", ["folder", "archive.zip"])
def test_poscar(crystals: Crystals, facts: list[dict[str, Any]], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_crystals(path, crystals, facts, format="poscar")
    folder = path
    if path.suffix:
        folder = tmp_path / "unpacked"
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{40 + k:06d}.vasp" for k in range(len(crystals))]
    for file, wanted, crystal in zip(files, to_pymatgen(crystals), crystals, strict=True):
        assert same(Structure.from_file(file), wanted)
        assert sorted(ase.io.read(file).numbers) == sorted(crystal.species)
    (read,) = read_entries([path])
    assert read.ok.all()
    assert read.ids == tuple(f"{40 + k:06d}" for k in range(len(crystals)))
    if not path.suffix:
        with pytest.raises(InputError, match="give the name of a new folder"):
            write_crystals(path, crystals, format="poscar")


def test_a_left_handed_poscar_is_turned_about(crystals: Crystals, tmp_path: Path) -> None:
    turned = crystals.replace(cells=-crystals.cells)
    assert (np.linalg.det(turned.cells) < 0).all()
    write_crystals(tmp_path / "x.zip", turned, format="poscar")
    (read,) = read_entries([tmp_path / "x.zip"])
    assert (np.linalg.det(read.crystals.cells) > 0).all()
    for a, b in zip(to_pymatgen(read.crystals), to_pymatgen(turned), strict=True):
        order = np.argsort(b.atomic_numbers, kind="stable")
        assert np.abs(a.distance_matrix - b.distance_matrix[order][:, order]).max() < 1e-8


def test_data_base_of_ase(crystals: Crystals, tmp_path: Path) -> None:
    facts: list[dict[str, Any]] = [
        {"id": f"a{k}", "energy": -1.5 * k, "fmax": 0.1, "band_gap|m|1|eV": 0.5, "text": "12", "rule": "x", "Si": 2.0,
         "truth": "True", "none": "", "nan": float("nan"), "1st": 1, "whole": k}
        for k in range(len(crystals))
    ]  # fmt: skip
    write_crystals(tmp_path / "x.db", crystals, facts)
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]
    rows = list(ase.db.connect(tmp_path / "x.db").select())
    for k, (row, crystal) in enumerate(zip(rows, crystals, strict=True)):
        atoms = row.toatoms()
        assert atoms.numbers.tolist() == crystal.species.tolist()
        assert atoms.pbc.all()
        assert np.allclose(atoms.cell[:], crystal.cells[0], atol=1e-12)
        assert np.allclose(atoms.positions, crystal.cart, atol=1e-10)
        assert row.energy == -1.5 * k
        assert row.key_value_pairs == {
            "druse_id": f"a{k}", "druse_fmax": 0.1, "band_gap_m_1_eV": 0.5, "text": 12, "rule": "x", "druse_Si": 2.0,
            "truth": True, "druse_1st": 1, "whole": k,
        }  # fmt: skip
    (read,) = read_entries([tmp_path / "x.db"])
    assert read.ok.all()
    assert read.columns["energy"].tolist() == [-1.5 * k for k in range(len(crystals))]


def test_a_fact_without_a_name_in_a_data_base_of_ase(crystals: Crystals, tmp_path: Path) -> None:
    """pandas writes its index as such a column."""
    write_ase_db(tmp_path / "some.db", crystals[0], [{"": 7, "é": 8}])
    (row,) = ase.db.connect(tmp_path / "some.db").select()
    assert row.key_value_pairs == {"druse__": 7}


def test_optimade(crystals: Crystals, tmp_path: Path) -> None:
    facts: list[dict[str, Any]] = [
        {"id": "same", "A b|eV": 1.5, "a_b_ev": 2.5, "empty": float("nan"), "why": "none", "n": k}
        for k in range(len(crystals))
    ]
    write_crystals(tmp_path / "x.jsonl", crystals, facts)
    head, info, *entries = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert head == {"x-optimade": {"meta": {"api_version": "1.1.0"}}}
    assert info["properties"]["_druse_a_b_ev"] == {"description": "A b|eV", "type": "float"}
    assert info["properties"]["_druse_a_b_ev_2"] == {"description": "a_b_ev", "type": "float"}
    assert [entry["id"] for entry in entries] == ["same", "same-2", "same-3", "same-4", "same-5"]
    for entry, wanted in zip(entries, to_pymatgen(crystals), strict=True):
        assert same(OptimadeStructureAdapter.get_structure(entry), wanted)
        said, composition = entry["attributes"], wanted.composition
        assert said["elements"] == sorted(map(str, composition))
        assert said["nelements"] == len(composition)
        assert np.allclose(said["elements_ratios"], [composition.get_atomic_fraction(e) for e in said["elements"]])
        assert said["chemical_formula_hill"] == composition.hill_formula.replace(" ", "")
        assert (said["_druse_a_b_ev_2"], said["_druse_empty"], said["_druse_why"]) == (2.5, None, "none")
    (read,) = read_entries([tmp_path / "x.jsonl"])
    assert read.ok.all()
    assert read.ids == tuple(entry["id"] for entry in entries)
    assert read.columns["n"].tolist() == [0, 1, 2, 3, 4]
    assert read.columns["why"].tolist() == ["none"] * 5
    for a, b in zip(to_pymatgen(read.crystals), to_pymatgen(crystals), strict=True):
        assert same(a, b)


def test_formulas_of_optimade(tmp_path: Path) -> None:
    """The examples of the specification, and more elements than letters."""
    water = Crystals(np.zeros((6, 3)), np.eye(3)[None] * 9, np.array([0, 6]), np.array([8, 1, 1, 8, 1, 1], np.int32))
    ethanol = Crystals(np.zeros((9, 3)), water.cells, np.array([0, 9]), np.array([6, 6, 8, *[1] * 6], np.int32))
    many = Crystals(np.zeros((55, 3)), water.cells, np.array([0, 55]), np.array([1, *range(1, 55)], np.int32))
    write_crystals(tmp_path / "x.jsonl", [water, ethanol, many])
    said = [json.loads(line)["attributes"] for line in (tmp_path / "x.jsonl").read_text().splitlines()[2:]]
    assert [one["chemical_formula_reduced"] for one in said[:2]] == ["H2O", "C2H6O"]
    assert [one["chemical_formula_hill"] for one in said[:2]] == ["H4O2", "C2H6O"]
    assert [one["chemical_formula_anonymous"] for one in said[:2]] == ["A2B", "A6B2C"]
    assert said[2]["chemical_formula_anonymous"].startswith("A2BC")
    assert said[2]["chemical_formula_anonymous"].endswith("YZAaBaCaDaEaFaGaHaIaJaKaLaMaNaOaPaQaRaSaTaUaVaWaXaYaZaAbBb")


@pytest.mark.parametrize("change", [{"dimension_types": [1, 1, 0]}, {"species": "half"}, {"lattice_vectors": [[1]]}])
def test_structures_of_optimade_that_are_none(crystals: Crystals, tmp_path: Path, change: dict[str, Any]) -> None:
    write_crystals(tmp_path / "x.jsonl", crystals)
    *head, first, second, _, _, _ = (tmp_path / "x.jsonl").read_text().splitlines()
    entry = json.loads(first)
    if change.get("species") == "half":
        change = {"species": [{**one, "concentration": [0.5]} for one in entry["attributes"]["species"]]}
    entry["attributes"] |= change
    reference = json.dumps({"type": "references", "id": "r", "attributes": {}})
    (tmp_path / "y.jsonl").write_text("\n".join([*head, json.dumps(entry), reference, second]))
    (read,) = read_entries([tmp_path / "y.jsonl"])
    assert read.ok.tolist() == [False, True]


@pytest.mark.parametrize("name", ["x.extxyz", "x.cif", "x.zip", "x.db", "x.jsonl", "x.csv", "folder"])
def test_any_source_can_be_exported_to_what_is_a_source(crystals: Crystals, tmp_path: Path, name: str) -> None:
    write_crystals(tmp_path / "a.extxyz", crystals, [{"id": "a", "band_gap": 1.0 + k} for k in range(5)])
    write_crystals(tmp_path / "b.cif", crystals[1], [{"id": "b"}])
    (tmp_path / "c.cif").write_text("data_c\n_cell_length_a 1\n")
    format_ = "" if "." in name else "poscar"
    found = export([tmp_path / "a.extxyz", tmp_path / "b.cif", tmp_path / "c.cif"], tmp_path / name, format=format_)
    assert found == (6, 1, 0)
    read = Entries.concatenate(read_entries([tmp_path / name]))
    assert read.ok.all()
    assert len(read) == 6
    if name in ("x.extxyz", "x.db", "x.jsonl", "x.csv"):
        assert np.array_equal(read.columns["band_gap"], [1, 2, 3, 4, 5, np.nan], equal_nan=True)
    sums = sorted(int(one.species.sum()) for one in read.crystals)
    assert sums == sorted([*(int(one.species.sum()) for one in crystals), int(crystals[1].species.sum())])


def test_every_format_has_a_writer() -> None:
    assert list(FORMATS) == ["extxyz", "cif", "poscar", "db", "jsonl", "csv"]
