"""Rows of a data set before they are understood: an id, a structure as text, and columns."""

import csv
import gzip
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from druse.errors import InputError, MissingDependencyError

_ID_COLUMNS = ("material_id", "id", "name")
_CIF_COLUMNS = ("cif", "cif_str", "structure_cif")


class Row(NamedTuple):
    """One entry: ``text`` is a CIF, or one frame of extended XYZ."""

    id: str
    text: str
    format: str
    columns: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV (also gzipped) or Parquet file with a CIF column, of an extended XYZ file, or of a folder of CIF.

    Raises:
        InputError: the file is missing, of an unknown kind, or lacks a column of structures.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.cif"))
        if not files:
            raise InputError(f"the folder {path} holds no CIF files (*.cif)")
        return (Row(file.stem, file.read_text(errors="replace"), "cif", {}) for file in files)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a CSV, Parquet or extended XYZ file, or a folder of CIF files")
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return _csv_rows(path)
    if name.endswith(".parquet"):
        return _parquet_rows(path)
    if name.endswith((".extxyz", ".xyz")):
        return _xyz_rows(path)
    raise InputError(f"{path.name} is of no known kind; known are .csv, .csv.gz, .parquet, .extxyz and folders of .cif")


def _column(path: Path, present: list[str], wanted: tuple[str, ...], what: str) -> str:
    for name in wanted:
        if name in present:
            return name
    raise InputError(
        f"{path.name} has no column of {what} ({', '.join(wanted)}); it has {', '.join(map(str, present)) or 'none'}"
    )


def _tabular(path: Path, names: list[str], records: Iterator[Mapping[str, Any]]) -> Iterator[Row]:
    cif = _column(path, names, _CIF_COLUMNS, "structures")
    key = next((name for name in _ID_COLUMNS if name in names), None)
    for place, record in enumerate(records):
        identity = str(record[key]) if key is not None and record[key] not in (None, "") else f"row {place}"
        columns = {k: v for k, v in record.items() if k and k not in (cif, key)}
        yield Row(identity, str(record[cif] or ""), "cif", columns)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rt", newline="") as file:
        reader = csv.DictReader(file)
        yield from _tabular(path, list(reader.fieldnames or []), reader)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("reading Parquet needs pyarrow; pip install 'druse[export]'") from error
    file = parquet.ParquetFile(path)
    records = (record for batch in file.iter_batches() for record in batch.to_pylist())
    yield from _tabular(path, list(file.schema_arrow.names), records)


def _xyz_rows(path: Path) -> Iterator[Row]:
    with path.open() as file:
        place = 0
        while first := file.readline():
            if not first.strip():
                continue
            try:
                n_atoms = int(first)
            except ValueError as error:
                raise InputError(
                    f"{path.name}: frame {place} must begin with its number of atoms, got {first!r}"
                ) from error
            lines = [first] + [file.readline() for _ in range(n_atoms + 1)]
            yield Row(f"frame {place}", "".join(lines), "extxyz", {})
            place += 1
