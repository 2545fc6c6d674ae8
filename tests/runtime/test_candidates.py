"""Crystals from anywhere: every kind of source gives what the library that wrote it had, in order and in pieces."""

import csv
import functools
import gzip
import json
import os
import pickle
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="writes and reads CIF")
pytest.importorskip("ase", reason="writes and reads extended XYZ")

import ase.db
import ase.io
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp import Poscar

from druse import Crystals, InputError
from druse._processes import Processes
from druse.candidates import Entries, Piece, pieces, read_entries, understand, understood, write_entries
from druse.io import write_cif, write_extxyz

# textbook structures in conventional cells, and one that is skewed and left-handed
STRUCTURES = {
    "salt": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "rutile": Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    ),
    "skewed": Structure(
        [[4.2, 0.1, 0], [1.4, 4.2, 0.3], [0.2, 4.1, -4.2]], ["Cs", "Cl"], [[0.11, 0.22, 0.33], [0.61, 0.72, 0.87]]
    ),
}
NAMES = list(STRUCTURES)


def read(*sources: Any, **options: Any) -> Entries:
    return Entries.concatenate(read_entries(sources, **options))


def folded(frac: np.ndarray) -> np.ndarray:
    return frac - np.round(frac)


def assert_same(entries: Entries, structures: list[Structure], *, atol: float, oriented: bool = True) -> None:
    """The same crystals in the same cells; sites in any order, for CIF sorts them."""
    assert entries.failures == ("",) * len(structures)
    for crystal, structure in zip(entries.crystals, structures, strict=True):
        lattice = Lattice(crystal.cells[0])
        if oriented:
            np.testing.assert_allclose(crystal.cells[0], structure.lattice.matrix, atol=atol)
        np.testing.assert_allclose(lattice.parameters, structure.lattice.parameters, atol=10 * atol)
        assert sorted(crystal.species.tolist()) == sorted(structure.atomic_numbers)
        places, frac = list(range(len(structure))), np.array(structure.frac_coords)
        for z, position in zip(crystal.species, crystal.frac, strict=True):
            distances = [
                np.abs(folded(frac[k] - position)).max() if structure.atomic_numbers[k] == z else 9.0 for k in places
            ]
            assert min(distances) < atol
            places.pop(int(np.argmin(distances)))


def everything() -> list[Structure]:
    return list(STRUCTURES.values())


def write_table(path: Path) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "material_id", "bandgap", "note", "cif"])
        for k, (name, structure) in enumerate(STRUCTURES.items()):
            writer.writerow([k, name, k + 0.5 if k else "", 'a "quoted",\nword', structure.to(fmt="cif")])
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "table.parquet"])
def test_tables_with_a_column_of_cif(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        with write_table(tmp_path / "table.csv").open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row["bandgap"] = float(row["bandgap"]) if row["bandgap"] else None
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=2)
    else:
        write_table(tmp_path / name)
    entries = read(tmp_path / name)
    assert_same(entries, everything(), atol=1e-6, oriented=False)
    assert entries.ids == tuple(NAMES)
    assert entries.files == (str(tmp_path / name),) * 3
    assert list(entries.columns) == ["note", "band_gap"]  # the alias by its own name
    np.testing.assert_array_equal(entries.columns["band_gap"], [np.nan, 1.5, 2.5])
    assert entries.columns["note"][1] == 'a "quoted",\nword'


def test_extended_xyz(tmp_path: Path) -> None:
    frames = [AseAtomsAdaptor.get_atoms(structure) for structure in everything()]
    for k, atoms in enumerate(frames):
        atoms.info = {"energy_above_hull": 0.1 * k, "origin": "a b", "stable": k == 0, "list": np.arange(3)}
    frames[1].info["id"] = "mine"
    frames[2].set_pbc([True, True, False])
    ase.io.write(tmp_path / "frames.extxyz", frames, format="extxyz")
    entries = read(tmp_path / "frames.extxyz")
    assert entries.ids == ("frame 0", "mine", "frame 2")
    assert entries.failures == ("", "", "it is not periodic in all three directions (pbc)")
    assert_same(entries.take([0, 1]), everything()[:2], atol=1e-7)
    assert set(entries.columns) == {"e_above_hull", "origin", "stable"}
    np.testing.assert_allclose(entries.columns["e_above_hull"], [0.0, 0.1, np.nan])
    assert entries.columns["origin"].tolist() == ["a b", "a b", ""]

    molecule = tmp_path / "molecule.xyz"
    molecule.write_text("2\nno cell\nH 0 0 0\nH 0 0 0.74\n")
    assert read(molecule).failures == ("it has no cell (Lattice)",)


def test_extended_xyz_as_ase_reads_it(tmp_path: Path) -> None:
    """Columns in another order, atomic numbers for symbols, forces between."""
    rng = np.random.default_rng(1)
    atoms = AseAtomsAdaptor.get_atoms(STRUCTURES["skewed"])
    atoms.arrays["magic"] = rng.normal(size=(2, 3))
    lattice = " ".join(map(repr, atoms.cell[:].ravel().tolist()))
    lines = [" ".join(map(repr, [*m, int(z), *p])) for m, z, p in zip(
        atoms.arrays["magic"].tolist(), atoms.numbers, atoms.positions.tolist(), strict=True)]  # fmt: skip
    comment = f'Properties=magic:R:3:Z:I:1:pos:R:3 Lattice="{lattice}"'
    (tmp_path / "a.extxyz").write_text("\n".join(["2", comment, *lines, ""]))
    ase.io.write(tmp_path / "b.extxyz", [atoms], format="extxyz", columns=["symbols", "positions", "magic"])
    for name in ("a.extxyz", "b.extxyz"):
        again = ase.io.read(tmp_path / name)
        entries = read(tmp_path / name)
        np.testing.assert_array_equal(entries.crystals.species, again.numbers)
        np.testing.assert_allclose(entries.crystals.cells[0], again.cell[:], atol=1e-12)
        np.testing.assert_allclose(entries.crystals.frac, again.get_scaled_positions(), atol=1e-12)


def test_cif_in_files_folders_and_archives(tmp_path: Path) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, structure in STRUCTURES.items():
        structure.to(str(folder / f"{name}.cif"), fmt="cif")
    expected = [STRUCTURES[name] for name in sorted(NAMES)]
    entries = read(folder)
    assert entries.ids == tuple(sorted(NAMES))
    assert_same(entries, expected, atol=1e-6, oriented=False)

    one = read(folder / "salt.cif")
    assert one.ids == ("salt",)
    text = "".join((folder / f"{name}.cif").read_text() for name in sorted(NAMES))
    several = tmp_path / "several.cif"
    several.write_text("# a journal's file\ndata_global\n_publ_section_title 'nothing'\n" + text)
    entries = read(several)
    assert entries.ids == ("TiO2", "NaCl", "CsCl")
    assert_same(entries, [STRUCTURES[name] for name in ("rutile", "salt", "skewed")], atol=1e-6, oriented=False)

    with zipfile.ZipFile(tmp_path / "cifs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", "no crystal")
        archive.writestr("__MACOSX/._salt.cif", b"\0\5")
        for name in NAMES:
            archive.write(folder / f"{name}.cif", f"in/{name}.cif")
        archive.writestr("several.cif", several.read_text())
    entries = read(tmp_path / "cifs.zip")
    assert entries.ids == (
        *(f"in/{name}" for name in NAMES),
        *(f"several:{name}" for name in ("TiO2", "NaCl", "CsCl")),
    )
    assert_same(entries.take([0, 1, 2]), everything(), atol=1e-6, oriented=False)
    with gzip.open(tmp_path / "salt.cif.gz", "wt") as file:
        file.write((folder / "salt.cif").read_text())
    assert read(tmp_path / "salt.cif.gz").ids == ("salt",)


def test_what_druse_writes(tmp_path: Path) -> None:
    written = read_of(everything())
    write_cif(tmp_path / "all.cif", written)
    write_cif(tmp_path / "all.zip", written)
    write_extxyz(tmp_path / "all.extxyz", written, [{"id": k, "x": k / 2} for k in range(3)])
    for name in ("all.cif", "all.zip", "all.extxyz"):
        entries = read(tmp_path / name)
        assert_same(entries, everything(), atol=1e-7, oriented=name == "all.extxyz")
        assert entries.ids == (("0", "1", "2") if name == "all.extxyz" else ("000000", "000001", "000002"))


def read_of(structures: list[Structure]) -> Crystals:
    return Crystals(
        np.concatenate([structure.frac_coords for structure in structures]),
        np.stack([structure.lattice.matrix for structure in structures]),
        np.cumsum([0, *map(len, structures)]),
        np.concatenate([structure.atomic_numbers for structure in structures]).astype(np.int32),
    )


@pytest.mark.parametrize("direct", [True, False])
def test_poscar_of_ase(tmp_path: Path, direct: bool) -> None:
    for name, structure in STRUCTURES.items():
        atoms = AseAtomsAdaptor.get_atoms(structure)
        ase.io.write(tmp_path / f"{name}.vasp", atoms, format="vasp", direct=direct)
    entries = read(tmp_path)
    assert entries.ids == tuple(sorted(NAMES))
    assert_same(entries, [STRUCTURES[name] for name in sorted(NAMES)], atol=1e-9)


def test_poscar_of_pymatgen_and_by_hand(tmp_path: Path) -> None:
    rutile = STRUCTURES["rutile"]
    Poscar(rutile, selective_dynamics=[[True, False, True]] * 6).write_file(
        str(tmp_path / "POSCAR"), significant_figures=12
    )
    (tmp_path / "job").mkdir()
    Poscar(STRUCTURES["salt"]).write_file(str(tmp_path / "job" / "POSCAR"), significant_figures=12)
    old = Poscar(rutile).get_str().replace("Ti O\n", "", 1)  # VASP 4, but with symbols behind the coordinates
    (tmp_path / "POSCAR_old").write_text(old)
    entries = read(tmp_path)
    assert entries.ids == ("POSCAR", "POSCAR_old", "job")
    assert_same(entries, [rutile, rutile, STRUCTURES["salt"]], atol=1e-5)

    lines = ["scaled", "-100.0", "1 0 0", "0 1 0", "0 0 2", "Fe_pv O/9f", "1 1", "Selective dynamics", "Cartesian"]
    (tmp_path / "x.poscar").write_text(
        "\n".join([*lines, "0 0 0 T T T", "0.5 0.5 1.0 F F F", "", "0 0 0", "0 0 0", ""])
    )
    entries = read(tmp_path / "x.poscar")
    edge = (100 / 2) ** (1 / 3)
    np.testing.assert_allclose(entries.crystals.cells[0], np.diag([edge, edge, 2 * edge]))
    np.testing.assert_allclose(entries.crystals.frac, [[0, 0, 0], [0.5, 0.5, 0.5]], atol=1e-12)
    assert entries.crystals.species.tolist() == [26, 8]
    (tmp_path / "CONTCAR").write_text("\n".join([*lines[:5], "1 1", "Direct", "0 0 0", "0.5 0.5 0.5", ""]))
    assert "VASP 4" in read(tmp_path / "CONTCAR").failures[0]


def test_json_of_pymatgen(tmp_path: Path) -> None:
    entries_ = [
        ComputedStructureEntry(structure, -1.5 * k, entry_id=f"mp-{k}", data={"energy_above_hull": 0.25})
        for k, structure in enumerate(everything())
    ]
    documents = {
        "list.json": json.dumps([structure.as_dict() for structure in everything()], indent=1),
        "object.json": json.dumps({name: structure.as_dict() for name, structure in STRUCTURES.items()}),
        "entries.json": json.dumps([entry.as_dict() for entry in entries_]),
        "lines.jsonl": "\n".join(json.dumps(entry.as_dict()) for entry in entries_) + "\n",
    }
    for name, text in documents.items():
        (tmp_path / name).write_text(text)
        with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
            file.write(text)
        for source in (tmp_path / name, tmp_path / f"{name}.gz"):
            entries = read(source)
            assert_same(entries, everything(), atol=1e-12)
            if name == "object.json":
                assert entries.ids == tuple(NAMES)
            elif name != "list.json":
                assert entries.ids == ("mp-0", "mp-1", "mp-2")
                np.testing.assert_array_equal(entries.columns["e_above_hull"], [0.25] * 3)
                np.testing.assert_array_equal(entries.columns["energy"], [0.0, -1.5, -3.0])
    (tmp_path / "one.json").write_text(json.dumps(STRUCTURES["skewed"].as_dict()))
    assert_same(read(tmp_path / "one.json"), [STRUCTURES["skewed"]], atol=1e-12)
    (tmp_path / "entry.json").write_text(json.dumps(entries_[2].as_dict()))
    assert read(tmp_path / "entry.json").ids == ("mp-2",)
    with (tmp_path / "table.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["id", "structure"], ["x", json.dumps(STRUCTURES["salt"].as_dict())]])
    assert_same(read(tmp_path / "table.csv"), [STRUCTURES["salt"]], atol=1e-12)


@pytest.mark.parametrize("name", ["base.db", "base.json"])
def test_data_base_of_ase(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with ase.db.connect(path) as base:
        for k, structure in enumerate(everything()):
            atoms = AseAtomsAdaptor.get_atoms(structure)
            base.write(atoms, key_value_pairs={"hull": 0.5 * k, "kind": "test"}, data={"big": np.zeros(10)})
        base.write(ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]))
        base.write(AseAtomsAdaptor.get_atoms(STRUCTURES["salt"]))
    if name == "base.db":
        del ase.db.connect(path)[1]
    before = path.read_bytes()
    entries = read(path, size=2)
    kept = everything()[1:] if name == "base.db" else everything()
    assert entries.ids == (("2", "3", "4", "5") if name == "base.db" else ("1", "2", "3", "4", "5"))
    assert [bool(failure) for failure in entries.failures] == [False] * len(kept) + [True, False]
    assert_same(entries.take(np.flatnonzero(entries.ok)), [*kept, STRUCTURES["salt"]], atol=1e-12)
    np.testing.assert_array_equal(entries.columns["hull"][: len(kept)], [0.0, 0.5, 1.0][-len(kept) :])
    assert entries.columns["kind"][0] == "test"
    assert path.read_bytes() == before


def result_file(folder: Path, *, leading: bool = True, name: str = "eval_gen.pt") -> Path:
    """As the scripts of CDVAE and Con-CDVAE save it: two evaluations of the three crystals."""
    torch = pytest.importorskip("torch", reason="writes result files")
    import argparse

    crystals = read_of(everything())
    lattices = [structure.lattice for structure in everything()]
    values = {
        "frac_coords": torch.tensor(crystals.frac, dtype=torch.float32),
        "num_atoms": torch.tensor(crystals.n_atoms),
        "atom_types": torch.tensor(crystals.species.astype(np.int64)),
        "lengths": torch.tensor([lattice.lengths for lattice in lattices], dtype=torch.float32),
        "angles": torch.tensor([lattice.angles for lattice in lattices], dtype=torch.float32),
        "spgs": torch.tensor([225.0, 136.0, 1.0]),
    }
    if leading:
        values = {key: torch.stack([value, value]) for key, value in values.items()}
    more = {"eval_setting": argparse.Namespace(label="x"), "all_frac_coords_stack": [], "time": 1.5}
    torch.save({**more, **values}, folder / name)
    return folder / name


@pytest.mark.parametrize("leading", [True, False])
def test_result_files_of_upstream(tmp_path: Path, leading: bool) -> None:
    entries = read(result_file(tmp_path, leading=leading), size=2)
    n = 2 if leading else 1
    assert entries.ids == tuple(f"{e}.{b}" for e in range(n) for b in range(3))
    assert_same(entries, everything() * n, atol=1e-6, oriented=False)
    np.testing.assert_array_equal(entries.columns["spgs"], [225.0, 136.0, 1.0] * n)


def sample(folder: Path, n: int = 20) -> Entries:
    written = Crystals.concatenate([read_of(everything())] * n)
    failures = [""] * len(written)
    failures[len(written) // 2] = "for a test"
    return Entries(
        0,
        tuple(f"f{k}" for k in range(len(written))),
        tuple(map(str, range(len(written)))),
        tuple(failures),
        written,
        {
            "energy": np.arange(len(written)) / 7,
            "formula": np.array(["x"] * len(written)),
            "id": np.zeros(len(written)),
        },
    )


def test_what_write_entries_wrote_comes_back(tmp_path: Path) -> None:
    from pyarrow import parquet

    entries = sample(tmp_path, 2000)
    write_entries(tmp_path / "own.parquet", entries)
    assert parquet.ParquetFile(tmp_path / "own.parquet").num_row_groups == 2
    again = read(tmp_path / "own.parquet", size=1000)
    assert (again.ids, again.files, again.failures) == (entries.ids, entries.files, entries.failures)
    assert list(again.columns) == ["energy", "formula"]
    np.testing.assert_array_equal(again.columns["energy"], entries.columns["energy"])
    good = np.flatnonzero(entries.ok)
    np.testing.assert_array_equal(again.take(good).crystals.frac, entries.take(good).crystals.frac)
    np.testing.assert_array_equal(again.take(good).crystals.cells, entries.take(good).crystals.cells)
    assert len(again.crystals[3000].species) == 0


@pytest.mark.parametrize(
    ("told", "name"),
    [("screen.json", "survivors.parquet"), ("relax.json", "relaxed.parquet"), ("dft.json", "dft.parquet")],
)
def test_folders_of_commands(tmp_path: Path, told: str, name: str) -> None:
    (tmp_path / told).write_text("{}")
    with pytest.raises(InputError, match=f"has no {name} yet; druse"):
        read(tmp_path)
    write_entries(tmp_path / name, sample(tmp_path, 1))
    assert read(tmp_path).ids == ("0", "1", "2")


def all_sources(folder: Path) -> list[Path]:
    write_table(folder / "a.csv")
    frames = [AseAtomsAdaptor.get_atoms(structure) for structure in everything()]
    ase.io.write(folder / "b.extxyz", frames, format="extxyz")
    write_entries(folder / "c.parquet", sample(folder, 3))
    (folder / "d.json").write_text(json.dumps([structure.as_dict() for structure in everything()]))
    return [folder / name for name in ("a.csv", "b.extxyz", "c.parquet", "d.json")]


def test_none_of_them_can_be_taken() -> None:
    copper = Crystals(np.zeros((1, 3)), np.eye(3)[None], np.array([0, 1]), np.array([29], np.int32))
    structures = Entries(0, ("a",), ("b",), ("",), copper, {})
    for none in ([], range(0), np.zeros(0), np.zeros(1, bool)):
        assert len(structures.take(none)) == 0


def test_pieces_are_the_same_each_time_and_travel(tmp_path: Path) -> None:
    sources = all_sources(tmp_path)
    first, second = list(pieces(sources, size=2)), list(pieces(sources, size=2))
    assert [piece.first for piece in first] == [0, 2, 3, 5, 6, 8, 10, 12, 14, 15, 17]
    assert [pickle.dumps(piece) for piece in first] == [pickle.dumps(piece) for piece in second]
    whole = read(*sources)
    assert whole.ids == read(*sources, size=5, n_jobs=2).ids
    parts = Entries.concatenate(
        understand(part) for piece in first for part in pickle.loads(pickle.dumps(piece)).split()
    )
    for entries in (parts, read(*sources, size=2, n_jobs=2)):
        assert (entries.ids, entries.failures, list(entries.columns)) == (
            whole.ids,
            whole.failures,
            list(whole.columns),
        )
        np.testing.assert_array_equal(entries.crystals.frac, whole.crystals.frac)
        np.testing.assert_array_equal(entries.crystals.cells, whole.crystals.cells)


def count(entries: Entries, *, poison: str) -> list[tuple[str, str]]:
    if poison in entries.ids and not entries.failures[entries.ids.index(poison)]:
        os.kill(os.getpid(), signal.SIGKILL)
    return list(zip(entries.ids, entries.failures, strict=True))


def joined(parts: Any) -> list[tuple[str, str]]:
    return [one for part in parts for one in part]


def test_only_the_entry_that_kills_its_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([structure.as_dict() for structure in everything()] * 4))
    cut = list(pieces([tmp_path / "d.json"], size=5))
    with Processes(2, purpose="testing") as processes:
        found = list(understood(cut, processes, functools.partial(count, poison="entry 6"), join=joined))
        again = list(understood(cut, processes))
    assert [len(part) for part in found] == [5, 5, 2]
    reasons = dict(joined(found))
    assert reasons.pop("entry 6") == "the process that worked on it was killed"
    assert set(reasons.values()) == {""}
    assert [entries.first for entries in again] == [0, 5, 10]
    assert Entries.concatenate(again).failures == ("",) * 12


def test_a_piece_is_a_bounded_stream(tmp_path: Path) -> None:
    """Of a source with a hundred thousand entries, no more is read than what was asked for."""
    salt = STRUCTURES["salt"].to(fmt="cif")
    with (tmp_path / "long.csv").open("w") as file:
        file.write("id,cif\n")
        file.writelines(f'{k},"{salt}"\n' for k in range(2000))
    stream: Iterator[Piece] = pieces([tmp_path / "long.csv", tmp_path / "none.csv"], size=10)
    assert next(stream).rows[9].id == "9"
    assert [piece.first for piece in zip(stream, range(2), strict=False) for piece in piece[:1]] == [10, 20]
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        list(stream)


def test_real_data(shared: Path) -> None:
    """A hundred crystals of the Materials Project, beside what pymatgen makes of them."""
    path = shared / "data" / "mp20" / "val.csv.gz"
    stream = pieces([path], size=100)
    entries = understand(next(stream))
    with gzip.open(path, "rt", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(100), strict=False)]
    assert entries.ids == tuple(row["material_id"] for row in rows)
    from pymatgen.io.cif import CifParser

    with pytest.warns(UserWarning, match="Issues encountered"):
        expected = [CifParser.from_str(row["cif"]).parse_structures(primitive=False)[0] for row in rows]
    assert_same(entries, expected, atol=1e-12)
    np.testing.assert_allclose(entries.columns["band_gap"], [float(row["band_gap"]) for row in rows])
