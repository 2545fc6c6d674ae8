"""Rows of a data set before they are understood: an id, a structure as text, and columns."""

import csv
import gzip
import itertools
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from druse._dependencies import require
from druse.errors import InputError

_ID_COLUMNS = ("material_id", "entry_id", "id", "name")
_CIF_COLUMNS = ("cif", "cif_str", "structure_cif", "unit_cell", "structure")


class Row(NamedTuple):
    """One entry: ``text`` is a CIF, or one frame of extended XYZ."""

    id: str
    text: str
    format: str
    columns: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV (also gzipped) or Parquet file with a CIF column, of an extended XYZ file, or of a folder of CIF.

    Raises:
        InputError: the file is missing, of an unknown kind, broken, or lacks a column of structures.
    """
    path = Path(path)
    if path.is_file() and path.name.lower().endswith((".extxyz", ".xyz")):
        return _xyz_rows(path)
    names, records = read_records(path)
    cif = _column(path, names, _CIF_COLUMNS, "structures")
    key = next((name for name in _ID_COLUMNS if name in names), None)
    return _rows(names, records, cif, key)


def read_records(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    """The columns and the rows of a table, as they are; a folder of CIF is a table of ``material_id`` and ``cif``.

    Raises:
        InputError: the file is missing, of a kind that is no table, or broken.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.cif"))
        if not files:
            raise InputError(f"the folder {path} holds no CIF files (*.cif)")
        return ["material_id", "cif"], ([file.stem, file.read_text(errors="replace")] for file in files)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a CSV, Parquet or extended XYZ file, or a folder of CIF files")
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        lines = _csv_lines(path)
        return next(lines, []), lines
    if name.endswith(".parquet"):
        return _parquet_records(path)
    raise InputError(f"{path.name} is of no known kind; known are .csv, .csv.gz, .parquet, .extxyz and folders of .cif")


def _column(path: Path, present: list[str], wanted: tuple[str, ...], what: str) -> str:
    for name in wanted:
        if name in present:
            return name
    raise InputError(
        f"{path.name} has no column of {what} ({', '.join(wanted)}); it has {', '.join(map(str, present)) or 'none'}"
    )


def _rows(names: list[str], records: Iterator[list[Any]], cif: str, key: str | None) -> Iterator[Row]:
    """Rows of a table; the number of a row, which pandas writes without a name, is no property."""
    for place, record in enumerate(records):
        found = dict(itertools.zip_longest(names, record[: len(names)]))
        identity = str(found[key]) if key is not None and found[key] not in (None, "") else f"row {place}"
        columns = {k: v for k, v in found.items() if k not in (cif, key, "") and not k.startswith("Unnamed: ")}
        yield Row(identity, str(found[cif] or ""), "cif", columns)


def _csv_lines(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rt", newline="", encoding="utf-8-sig") as file:
            yield from filter(None, csv.reader(file))
    except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path.name} is broken, or no CSV: {error}") from error


def _parquet_records(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    require("pyarrow.parquet", purpose="reading Parquet", extra="evaluate")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path.name} is broken, or no Parquet: {error}") from error
    names = list(file.schema_arrow.names)
    return names, ([record[name] for name in names] for batch in file.iter_batches() for record in batch.to_pylist())


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
