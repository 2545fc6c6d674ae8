"""Splitting: every row once, as it was, the same for the same seed, and nothing overwritten by accident."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from druse import Crystals, InputError
from druse.tables import CrystalTable
from druse_export.data.split import NAMES, split_file, split_indices, split_table

HEADER = ["", "material_id", "note", "cif"]
ROWS = [[str(k), f"m-{k}", 'a "b", c' if k % 2 else "", f"data_{k}\n_cell\n"] for k in range(57)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *ROWS])
    return path


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_every_row_once_as_it_was(table: Path, tmp_path: Path) -> None:
    counts = split_file(table, tmp_path / "parts", seed=5)
    assert list(counts.values()) == [46, 5, 6]
    parts = [read(tmp_path / "parts" / name) for name in NAMES]
    assert [len(part) - 1 for part in parts] == [46, 5, 6]
    assert all(part[0] == HEADER for part in parts)
    assert sorted(row for part in parts for row in part[1:]) == sorted(ROWS)
    for part, indices in zip(parts, split_indices(57, 5), strict=True):
        assert part[1:] == [ROWS[k] for k in indices]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == sorted(NAMES)


def test_the_seed_says_it_all(table: Path, tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        split_file(table, tmp_path / folder, seed=seed)
    texts = [[(tmp_path / folder / name).read_text() for name in NAMES] for folder in "abc"]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_shares() -> None:
    parts = split_indices(100, 0, (0.5, 0.25, 0.25))
    assert [len(part) for part in parts] == [50, 25, 25]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))


def test_parts_of_a_table() -> None:
    one = Crystals(np.zeros((1, 3)), np.eye(3)[None] * 3, np.array([0, 1]), np.array([29], np.int32))
    table = CrystalTable(Crystals.concatenate([one] * 100), tuple(map(str, range(100))), {"place": np.arange(100.0)})
    parts = split_table(table, 3)
    assert [len(part) for part in parts] == [80, 10, 10]
    for part, indices in zip(parts, split_indices(100, 3), strict=True):
        np.testing.assert_array_equal(part.properties["place"], indices)
        assert part.ids == tuple(map(str, indices))


def test_nothing_is_replaced_unasked(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "val.csv").write_text("mine")
    with pytest.raises(InputError, match=r"val\.csv is there already; .*--force"):
        split_file(table, folder)
    assert (folder / "val.csv").read_text() == "mine"
    split_file(table, folder, force=True)
    assert len(read(folder / "val.csv")) == 6
    table.rename(tmp_path / "train.csv")
    with pytest.raises(InputError, match="a part of itself"):
        split_file(tmp_path / "train.csv", tmp_path, force=True)
    assert len(read(tmp_path / "train.csv")) == 58


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"material_id,cif\n" + b"a,b\n" * 30 + b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"table\.csv is broken, or no CSV"):
        split_file(path, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_too_few_rows(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("material_id,cif\na,b\nc,d\n")
    with pytest.raises(InputError, match=r"has 2 rows, too few"):
        split_file(path, tmp_path / "parts")


def test_parquet_and_folders_of_cif(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="writes Parquet")
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"cif": [f"data_{k}" for k in range(20)], "gap": [None, *range(19)]}), tmp_path / "a.parquet"
    )
    assert split_file(tmp_path / "a.parquet", tmp_path / "a") == dict(zip(NAMES, (16, 2, 2), strict=True))
    assert read(tmp_path / "a" / "val.csv")[0] == ["cif", "gap"]
    folder = tmp_path / "cifs"
    folder.mkdir()
    for k in range(20):
        (folder / f"m{k}.cif").write_text(f"data_{k}\n")
    split_file(folder, tmp_path / "b")
    assert read(tmp_path / "b" / "test.csv")[0] == ["material_id", "cif"]
    with pytest.raises(InputError, match="of no known kind"):
        split_file(Path(__file__), tmp_path / "c")


def test_the_command(table: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "druse", "data", "split", str(table), "--out", str(tmp_path / "parts")]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(result.stdout)["rows"] == {"train.csv": 46, "val.csv": 5, "test.csv": 6}
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
