"""Files of numbers that were made to harm: results of PyTorch, data bases of ASE, Parquet; as `test_hostile_files`."""

import os
import pickle
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymatgen", reason="reads CIF")
pytest.importorskip("ase", reason="reads extended XYZ")

from test_candidates import read, result_file, sample
from test_hostile_files import GOOD, SALT, assert_refused, measured

from druse import InputError
from druse.candidates import Entries, Limits, write_entries


class Evil:
    """Unpickles to a call that leaves a trace."""

    def __init__(self, trace: Path, call: Any = os.system) -> None:
        self.trace, self.call = trace, call

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (self.call, (f"touch {self.trace}" if self.call is os.system else str(self.trace),))


@pytest.mark.parametrize("call", [os.system, os.mkdir, eval])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_result_file_that_runs_code(tmp_path: Path, call: Any, protocol: int) -> None:
    trace = tmp_path / "trace"
    evil = tmp_path / "evil.pt"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": Evil(trace, call)}, protocol))
    with pytest.raises(InputError, match=r"evil\.pt is refused, and nothing in it was run: it names ") as caught:
        read(evil)
    assert call.__name__ in str(caught.value)
    assert not trace.exists()


def test_a_result_file_of_pytorch_that_runs_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes result files")
    trace, path = tmp_path / "trace", result_file(tmp_path)
    content = torch.load(path, weights_only=False)
    torch.save({**content, "more": Evil(trace)}, path)
    with pytest.raises(InputError, match=r"it names posix\.system, which is not allowed"):
        read(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # trusted, it would have: the test can fail


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


PICKLES = {
    "laughs": opcodes(
        b"(lq\0", b"".join(b"(h" + bytes([k]) * 1 + b"h" + bytes([k]) + b"lq" + bytes([k + 1]) for k in range(200))
    ),
    "memo": opcodes(b"]r\xff\xff\xff\x7f"),
    "length": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"x.",
    "bytearray": b"\x80\x05\x96" + b"\xff" * 6 + b"\x00\x00" + b"x.",
    "no end": b"\x80\x02}",
    "empty stack": opcodes(b"0000"),
    "extension": opcodes(b"\x82\x01"),
    "deep": opcodes(b"]" * 100_000, b"a" * 99_999),
    "list": opcodes(b"]"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_are_traps(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", PICKLES[name])
    with pytest.raises(InputError, match=r"a\.pt"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("shape", "strides"), [((1, 10**12, 3), (0, 0, 0)), ((1, 100, 3), (300, 3, 1)), ((1, 2, -3), (1, 1, 1))]
)
def test_tensors_that_are_more_than_their_numbers(tmp_path: Path, shape: Any, strides: Any) -> None:
    torch = pytest.importorskip("torch", reason="writes result files")
    path = result_file(tmp_path)
    content = torch.load(path, weights_only=False)
    content["frac_coords"] = torch.zeros(18).as_strided((1, 6, 3), (18, 3, 1))
    torch.save(content, path)
    rewritten(path, (1, 6, 3), (18, 3, 1), shape, strides)
    with pytest.raises(InputError, match=r"a tensor of shape|its pickle is broken"):
        read(path)


def rewritten(path: Path, shape: Any, strides: Any, new_shape: Any, new_strides: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith("data.pkl"):
                for old, new in ((shape, new_shape), (strides, new_strides)):
                    was, now = (pickle_tuple(value) for value in (old, new))
                    assert was in content
                    content = content.replace(was, now, 1)
            archive.writestr(name, content)


def pickle_tuple(values: Any) -> bytes:
    """A tuple of three as ``torch.save`` writes it, without its place in the memo."""
    return b"".join(pickle.dumps(int(value), 2)[2:-1] for value in values) + b"\x87"


def test_crystals_of_a_result_file_that_are_none(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="writes result files")
    path = result_file(tmp_path)
    content = torch.load(path, weights_only=False)
    content["lengths"][0, 0] = float("nan")
    content["angles"][0, 1] = torch.tensor([20.0, 20.0, 170.0])
    content["atom_types"][1, -1] = 0
    torch.save(content, path)
    entries = read(path)
    assert_refused(entries, [0, 1, 5], "no cell has the edges|of no element")
    content["num_atoms"][0, 0] += 1
    torch.save(content, path)
    with pytest.raises(InputError, match="do not add up"):
        read(path)
    del content["angles"]
    torch.save(content, path)
    with pytest.raises(InputError, match="has no angles; it is no result of CDVAE"):
        read(path)


def data_base(path: Path) -> Path:
    import ase.db
    from pymatgen.io.ase import AseAtomsAdaptor

    with ase.db.connect(path) as base:
        for _ in range(3):
            base.write(AseAtomsAdaptor.get_atoms(SALT))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("numbers = x'0b0000000b'", "."),
        ("numbers = NULL", "are missing"),
        ("cell = zeroblob(72)", "flat or not finite"),
        ("positions = zeroblob(24)", "1 positions of 8 atoms"),
        ("key_value_pairs = '[[['", "."),
        ("key_value_pairs = replace(hex(zeroblob(50000)), '0', '[')", "."),
        ("numbers = zeroblob(32)", "of no element"),
        ("numbers = zeroblob(40000000)", "."),
        ("data = x'8004952e'", ""),
    ],
)
def test_a_bad_row_of_a_data_base(tmp_path: Path, change: str, reason: str) -> None:
    path = data_base(tmp_path / "a.db")
    base = sqlite3.connect(path)
    with base:
        base.execute(f"UPDATE systems SET {change} WHERE id = 2")
    base.close()
    entries = read(path)
    assert_refused(entries, [1] if reason else [], reason)


def test_a_data_base_whose_table_never_ends(tmp_path: Path) -> None:
    path = data_base(tmp_path / "a.db")
    endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT * FROM n"
    base = sqlite3.connect(path)
    with base:
        base.execute("ALTER TABLE systems RENAME TO others")
        base.execute(f"CREATE VIEW systems AS {endless}")
    base.close()
    with pytest.raises(InputError, match="no data base of ASE: it has no table of systems"):
        read(path)


def test_a_data_base_with_columns_that_are_computed(tmp_path: Path) -> None:
    """One step of an expression may take hours, in which nothing can interrupt SQLite."""
    path = data_base(tmp_path / "a.db")
    base = sqlite3.connect(path)
    with base:
        base.execute("ALTER TABLE systems ADD COLUMN x AS (instr(zeroblob(1900000), zeroblob(900000) || x'01'))")
    base.close()
    with pytest.raises(InputError, match="columns that are computed"):
        read(path)


def test_a_data_base_without_a_key(tmp_path: Path) -> None:
    path = data_base(tmp_path / "a.db")
    base = sqlite3.connect(path)
    with base:
        base.execute("CREATE TABLE others AS SELECT * FROM systems")
        base.execute("DROP TABLE systems")
        base.execute("ALTER TABLE others RENAME TO systems")
    base.close()
    with pytest.raises(InputError, match="no id that is its key"):
        read(path)


def test_a_data_base_whose_pages_lead_in_a_circle(tmp_path: Path) -> None:
    path = data_base(tmp_path / "a.db")
    base = sqlite3.connect(path)
    with base:
        names = ", ".join(
            row[1] for row in base.execute("PRAGMA table_info(systems)") if row[1] not in ("id", "unique_id")
        )
        for k in range(7):
            base.execute(f"INSERT INTO systems (unique_id, {names}) SELECT unique_id || {k}, {names} FROM systems")
        (root,) = base.execute("SELECT rootpage FROM sqlite_master WHERE name = 'systems'").fetchone()
        (size,) = base.execute("PRAGMA page_size").fetchone()
    base.close()
    pages = bytearray(path.read_bytes())
    page = memoryview(pages)[(root - 1) * size : root * size]
    assert page[0] == 5, "the table has one page only"
    (n,) = struct.unpack_from(">H", page, 3)
    for (place,) in struct.iter_unpack(">H", page[12 : 12 + 2 * n]):  # each child becomes the last one
        page[place : place + 4] = page[8:12]
    path.write_bytes(pages)
    with pytest.raises(InputError, match="its rows come again and again"):
        read(path)


def test_a_table_of_rows_that_take_no_bytes(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="writes Parquet")
    from pyarrow import parquet

    table = pa.table({"cif": pa.nulls(3_000_000, pa.string())})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3_000_000, compression="zstd")
    entries = read(tmp_path / "a.parquet")
    assert_refused(entries, 0, "3,000,000 rows are made of")
    assert len(entries) == 1


def test_our_own_columns_forged(tmp_path: Path) -> None:
    entries = sample(tmp_path, 3)
    cells = entries.crystals.cells.copy()
    cells[2] = np.nan
    frac = entries.crystals.frac.copy()
    frac[0, 0] = np.inf
    write_entries(tmp_path / "a.parquet", Entries(
        0, entries.files, entries.ids, ("",) * 9, entries.crystals.replace(cells=cells, frac=frac), {}
    ))  # fmt: skip
    assert_refused(read(tmp_path / "a.parquet"), [0, 2], "not finite")
    assert_refused(read(tmp_path / "a.parquet", limits=Limits(atoms=6)), [0, 2, 3, 6], "not finite|more than 6")


def test_texts_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def table(*texts: str) -> Any:
        return pa.table({"id": [str(k) for k in range(len(texts))], "cif": texts, "list": [[1.0] * 5] * len(texts)})

    parquet.write_table(table(GOOD, "x" * 3_000_000, GOOD), tmp_path / "a.parquet")
    entries = read(tmp_path / "a.parquet")
    assert_refused(entries, 1, "longer than 2,000,000 characters")
    assert list(entries.columns) == []
    with parquet.ParquetWriter(tmp_path / "b.parquet", table(GOOD).schema) as writer:
        for texts in ([GOOD, GOOD], [GOOD, "x" * 50_000_000, GOOD], [GOOD]):
            writer.write_table(table(*texts))
    entries = read(tmp_path / "b.parquet")
    assert_refused(entries, 2, "3 rows from here on cannot be read: column cif has")
    assert len(entries) == 4
    shared = table(*["y" * 1_900_000] * 1000)  # stored once, and two gigabytes if each row had its own
    parquet.write_table(shared, tmp_path / "c.parquet", dictionary_pagesize_limit=1 << 22)
    n, bad, memory = measured(tmp_path / "c.parquet")
    assert (n, bad) == (1000, 1000)
    assert memory < 400


def test_our_own_columns_that_ask_for_too_much(tmp_path: Path) -> None:
    entries = sample(tmp_path, 1)
    columns = {"note": np.array(["x" * 20_000_000] * 3)}
    write_entries(tmp_path / "a.parquet", Entries(0, entries.files, entries.ids, ("",) * 3, entries.crystals, columns))
    with pytest.raises(InputError, match="asks for too much memory: column note has"):
        read(tmp_path / "a.parquet")
