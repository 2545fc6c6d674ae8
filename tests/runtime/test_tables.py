"""Data sets: every kind of file gives the same crystals, bad rows are reported, the cache changes nothing."""

import csv
import gzip
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="data sets are parsed by pymatgen")

from pymatgen.core import Lattice, Structure

from druse import InputError
from druse.lattice import parameters_from_cells, volumes
from druse.tables import ALIASES, load_table

# textbook structures; the second in a needlessly long cell
NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
SKEWED = Structure([[4.2, 0, 0], [8.4, 4.2, 0], [0, 4.2, 4.2]], ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def rows() -> list[dict[str, str]]:
    return [
        {
            "material_id": "salt",
            "cif": NACL.to(fmt="cif"),
            "band_gap": "5.0",
            "spacegroup.number": "225",
            "formula": "NaCl",
        },
        {
            "material_id": "broken",
            "cif": "data_nothing\n_cell_length_a oops\n",
            "band_gap": "1",
            "spacegroup.number": "1",
        },
        {"material_id": "skewed", "cif": SKEWED.to(fmt="cif"), "band_gap": "", "spacegroup.number": "221"},
        {"material_id": "empty", "cif": "", "band_gap": "2", "spacegroup.number": "2"},
    ]


def write_csv(path: Path) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, ["material_id", "cif", "band_gap", "spacegroup.number", "formula"])
        writer.writeheader()
        writer.writerows(rows())
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_good_rows_are_read_and_bad_ones_reported(tmp_path: Path, name: str) -> None:
    seen: list[tuple[int, int]] = []
    table = load_table(write_csv(tmp_path / name), n_jobs=1, progress=lambda done, total: seen.append((done, total)))
    assert table.ids == ("salt", "skewed")
    assert [row.id for row in table.rejected] == ["broken", "empty"]
    assert all(row.reason for row in table.rejected)
    assert seen[-1] == (4, 4)
    np.testing.assert_array_equal(table.properties["band_gap"], [5.0, np.nan])
    np.testing.assert_array_equal(table.properties["crystal_system"], [6, 6])
    np.testing.assert_array_equal(table.properties["n_atom"], [8, 2])
    assert "formula" not in table.properties  # no numbers


def test_cells_are_reduced_and_in_standard_orientation(tmp_path: Path) -> None:
    table = load_table(write_csv(tmp_path / "table.csv"), n_jobs=1)
    lengths, angles = parameters_from_cells(table.crystals.cells)
    np.testing.assert_allclose(lengths[1], 4.2, atol=1e-4)
    np.testing.assert_allclose(angles[1], 90, atol=1e-3)
    np.testing.assert_allclose(volumes(table.crystals.cells), [5.64**3, 4.2**3], rtol=1e-4)
    np.testing.assert_array_equal(table.crystals.cells[:, 2, :2], 0)  # c along z
    assert table.crystals.frac.min() >= 0
    assert table.crystals.frac.max() < 1


def test_other_kinds_of_files_hold_the_same_crystals(tmp_path: Path) -> None:
    pytest.importorskip("ase", reason="writes extended XYZ")
    parquet = pytest.importorskip("pyarrow.parquet", reason="writes Parquet")
    import ase.io
    import pyarrow as pa
    from pymatgen.io.ase import AseAtomsAdaptor

    expected = load_table(write_csv(tmp_path / "table.csv"), n_jobs=1)
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, structure in (("a", NACL), ("b", SKEWED)):
        structure.to(str(folder / f"{name}.cif"), fmt="cif")
    frames = [AseAtomsAdaptor.get_atoms(structure) for structure in (NACL, SKEWED)]
    ase.io.write(tmp_path / "frames.extxyz", frames, format="extxyz")
    parquet.write_table(pa.Table.from_pylist(rows()), tmp_path / "table.parquet")
    for source in (folder, tmp_path / "frames.extxyz", tmp_path / "table.parquet"):
        table = load_table(source, n_jobs=1)
        np.testing.assert_array_equal(np.sort(table.crystals.species), np.sort(expected.crystals.species))
        np.testing.assert_allclose(volumes(table.crystals.cells), volumes(expected.crystals.cells), rtol=1e-5)


def test_processes_and_cache_change_nothing(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "table.csv")
    plain = load_table(file, n_jobs=1)
    for table in (
        load_table(file, n_jobs=2),
        load_table(file, cache=tmp_path / "cache"),
        load_table(file, cache=tmp_path / "cache"),
    ):
        np.testing.assert_array_equal(table.crystals.frac, plain.crystals.frac)
        np.testing.assert_array_equal(table.crystals.cells, plain.crystals.cells)
        assert table.ids == plain.ids
        assert table.rejected == plain.rejected
        for name, values in plain.properties.items():
            np.testing.assert_array_equal(table.properties[name], values)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    load_table(file, niggli=False, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_interrupt_is_quiet_and_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C, which reaches every process of a terminal's group, ends in one KeyboardInterrupt and no tracebacks."""
    salt = NACL.to(fmt="cif")
    (tmp_path / "table.csv").write_text("id,cif\n" + "".join(f'{k},"{salt}"\n' for k in range(640)))
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom druse.tables import load_table\n"
        "try:\n"  # with no guard for the name of the module: a script may call this as it likes
        "    load_table(Path('table.csv'), n_jobs=2, progress=lambda *_: os.killpg(0, signal.SIGINT))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    (tmp_path / "script.py").write_text(script)
    child = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, start_new_session=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it is inherited as ignored
    )  # fmt: skip
    assert (child.stdout, child.stderr, child.returncode) == ("stopped\n", "", 0)


def test_a_broken_cache_is_made_anew(tmp_path: Path) -> None:
    file, cache = write_csv(tmp_path / "table.csv"), tmp_path / "cache"
    plain = load_table(file, n_jobs=1, cache=cache)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense", whole.replace(b"offsets", b"0ffsets")):
        kept.write_bytes(content)
        table = load_table(file, n_jobs=1, cache=cache)
        np.testing.assert_array_equal(table.crystals.frac, plain.crystals.frac)
        assert kept.read_bytes() == whole


def test_columns_as_other_data_bases_call_them(tmp_path: Path) -> None:
    salt = NACL.to(fmt="cif")
    (tmp_path / "oqmd.csv").write_text(
        "Unnamed: 0,entry_id,name,delta_e,stability,band_gap,unit_cell\n" + f'0,4061139,NaCl,-2.1,-0.05,5.0,"{salt}"\n'
    )
    table = load_table(tmp_path / "oqmd.csv", n_jobs=1)
    assert table.ids == ("4061139",)
    assert {name: values.tolist() for name, values in table.properties.items()} == {
        "formation_energy_per_atom": [-2.1],
        "e_above_hull": [-0.05],
        "band_gap": [5.0],
        "n_atom": [8.0],
    }
    header = "id,energy_above_hull,formation_energy,bandgap,band_gap,space_group_number,cif\n"
    (tmp_path / "other.csv").write_text(header + f'a,0.1,-1,7,,225,"{salt}"\nb,0.2,-2,8,3,x,"{salt}"\n')
    table = load_table(tmp_path / "other.csv", n_jobs=1)
    np.testing.assert_array_equal(table.properties["e_above_hull"], [0.1, 0.2])
    np.testing.assert_array_equal(table.properties["formation_energy_per_atom"], [-1, -2])
    np.testing.assert_array_equal(table.properties["band_gap"], [np.nan, 3])  # our own name before an alias
    np.testing.assert_array_equal(table.properties["spacegroup"], [225, np.nan])
    assert set(ALIASES) & set(table.properties) == set()


def test_filters(tmp_path: Path) -> None:
    table = load_table(write_csv(tmp_path / "table.csv"), n_jobs=1)
    assert table.filtered(max_gap=5.0).ids == ("skewed",)
    assert table.filtered(max_gap=5.1, max_atoms=7).ids == ("skewed",)
    assert table.filtered(min_density=0.03).ids == ("salt",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "does not exist"),
        ("table.docx", "x", "of no known kind"),
        ("table.csv", "a,b\n1,2\n", "no column of structures"),
        ("table.csv", "id,cif\nx,nonsense\n", "none of 1 rows"),
        ("table.csv", "", "no column of structures"),
        ("table.csv.gz", "id,cif\nx,nonsense\n", r"table\.csv\.gz is broken: Not a gzipped file"),
        ("table.parquet", "id,cif\nx,nonsense\n", r"table\.parquet is broken, or no Parquet"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_table(tmp_path / name, n_jobs=1)
