"""Rows of a data set before they are understood: an id, a structure as text, and columns."""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from druse._archives import members
from druse._columns import group_fault
from druse._dependencies import require
from druse._json_parts import Part, json_parts
from druse._limits import LIMITS, Limits, Row, broken
from druse._texts import Expands, cif_blocks, next_line, opened
from druse.errors import InputError

__all__ = ["KINDS", "Row", "folder_files", "read_records", "read_rows"]

KINDS = (
    ".csv, .parquet, .extxyz, .xyz, .cif, POSCAR, .vasp, .json, .jsonl (each but Parquet also .gz), .zip, and folders "
    "of .cif and POSCAR"
)
_ID_COLUMNS = ("material_id", "entry_id", "id", "name")
_CIF_COLUMNS = ("cif", "cif_str", "structure_cif", "unit_cell", "structure")
_BATCH = 64
_MOST = 1_000_000  # atoms of a frame that is passed over; a greater number is no count of lines
_PARTS_OF_ONE = {"@module", "@class", "lattice", "sites", "structure"}
_NO_ENTRIES = {"ids", "nextid", "metadata"}  # of ASE's data base in JSON


def read_rows(path: Path, limits: Limits = LIMITS) -> Iterator[Row]:
    """Rows of a source: one of `KINDS`, a table with a column of CIF.

    What cannot be cut out is a row of the format ``broken``, and the rest goes on where it can.

    Raises:
        InputError: the file is missing, of an unknown kind, broken, or lacks a column of structures.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_rows(path, limits)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file or folder of crystals: {KINDS}")
    name = path.name.lower()
    kind = name.removesuffix(".gz")
    if kind.endswith(".csv"):
        return _until_bomb(path, _csv_rows(path, limits))
    if name.endswith(".parquet"):
        return _parquet_rows(path, limits)
    if name.endswith(".zip"):
        return _zip_rows(path, limits)
    if kind.endswith((".extxyz", ".xyz")):
        return _until_bomb(path, _xyz_rows(path, limits))
    if kind.endswith((".jsonl", ".ndjson")):
        return _until_bomb(path, _json_lines(path, limits))
    if kind.endswith(".json"):
        return _until_bomb(path, _json_rows(path, limits))
    if kind.endswith(".cif") or _is_poscar(kind):
        return _until_bomb(path, _text_rows(path, limits))
    raise InputError(f"{path.name} is of no known kind; known are {KINDS}")


def _until_bomb(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except Expands as error:
        yield broken(path.name, f"{error}; the rest is not read")


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
        raise InputError(f"{path} does not exist; give a CSV or Parquet file, or a folder of CIF files")
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        lines = (record for record, _ in _csv_records(path, LIMITS, "strict"))
        return next(lines, []), lines
    if name.endswith(".parquet"):
        file = _parquet(path)
        names = list(file.schema_arrow.names)
        return names, ([one[k] for k in names] for batch in file.iter_batches(_BATCH) for one in batch.to_pylist())
    raise InputError(f"{path.name} is of no known kind of table; known are .csv, .csv.gz, .parquet and folders of .cif")


def _column(path: Path, present: list[str], wanted: tuple[str, ...], what: str) -> str:
    for name in wanted:
        if name in present:
            return name
    raise InputError(
        f"{path.name} has no column of {what} ({', '.join(wanted)}); it has {', '.join(map(str, present)) or 'none'}"
    )


def _row(place: int, found: dict[str, Any], cif: str, key: str | None, limits: Limits) -> Row:
    """A row of a table; the number of a row, which pandas writes without a name, is no property."""
    identity = str(found[key]) if key is not None and found[key] not in (None, "") else f"row {place}"
    text = str(found[cif] or "")
    if len(text) > limits.text:
        return broken(identity, f"longer than {limits.text:,} characters")
    columns = {k: v for k, v in found.items() if k not in (cif, key, "") and not k.startswith("Unnamed: ")}
    return Row(identity, text, "json" if text.lstrip()[:1] == "{" else "cif", columns)


class _Record:
    """Lines for `csv.reader`, of which a record that grows too long keeps nothing but its quotes."""

    def __init__(self, file: io.TextIOBase, limit: int) -> None:
        self._file, self._limit = file, limit
        self.size = 0
        self.too_long = False

    def __iter__(self) -> "_Record":
        return self

    def __next__(self) -> str:
        text = self._file.readline(self._limit + 1)
        if not text:
            raise StopIteration
        self.size += len(text)
        if self.size <= self._limit:
            return text
        self.too_long = True
        quotes = text.count('"')
        while not text.endswith("\n") and (text := self._file.readline(self._limit)):
            quotes += text.count('"')
        return '"' if quotes % 2 else ""


def _csv_records(path: Path, limits: Limits, errors: str = "replace") -> Iterator[tuple[list[str], bool]]:
    """Records that are not empty, and whether one was too long to keep; the first is the header."""
    csv.field_size_limit(max(csv.field_size_limit(), limits.text + 1))
    with opened(path, limits, newline="", errors=errors) as file:
        lines = _Record(file, limits.text)
        try:
            for record in csv.reader(lines):
                if record or lines.too_long:
                    yield record, lines.too_long
                lines.size, lines.too_long = 0, False
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path.name} is broken, or no CSV: {error}") from error


def _csv_rows(path: Path, limits: Limits) -> Iterator[Row]:
    records = _csv_records(path, limits)
    names, _ = next(records, ([], False))
    cif = _column(path, names, _CIF_COLUMNS, "structures")
    key = next((name for name in _ID_COLUMNS if name in names), None)
    kept = set(itertools.islice(dict.fromkeys(names), limits.columns)) | {cif, key}
    for place, (record, too_long) in enumerate(records):
        if too_long:
            first = record[0] if record and key is not None and names.index(key) == 0 and len(record[0]) < 100 else ""
            yield broken(first or f"row {place}", f"longer than {limits.text:,} characters")
            continue
        found = itertools.zip_longest(names, record[: len(names)])
        yield _row(place, {name: value for name, value in found if name in kept}, cif, key, limits)


def _parquet(path: Path) -> Any:
    require("pyarrow.parquet", purpose="reading Parquet", extra="evaluate")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        texts = [
            one.name for one in file.schema_arrow if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)
        ]
        # a text that many rows share is in memory once
        return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, read_dictionary=texts)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path.name} is broken, or no Parquet: {error}") from error


def _parquet_rows(path: Path, limits: Limits) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    file = _parquet(path)
    schema = file.schema_arrow
    cif = _column(path, schema.names, _CIF_COLUMNS, "structures")
    key = next((name for name in _ID_COLUMNS if name in schema.names), None)
    simple = [field.name for field in schema if not pa.types.is_nested(field.type)]
    names = list(dict.fromkeys([cif, *([key] if key else []), *simple[: limits.columns]]))
    place = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        try:
            if fault := group_fault(file.metadata.row_group(group), limits):
                raise pa.ArrowInvalid(fault)
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=names):
                lengths = [
                    pc.take(pc.binary_length(column.dictionary), column.indices).to_pylist()
                    for column in batch.columns
                    if pa.types.is_dictionary(column.type) and not pa.types.is_primitive(column.type.value_type)
                ]
                for k in range(batch.num_rows):
                    if any((column[k] or 0) > limits.text for column in lengths):
                        yield broken(f"row {place + k}", f"longer than {limits.text:,} characters")
                    else:
                        found = {name: batch.column(name)[k].as_py() for name in names}
                        yield _row(place + k, found, cif, key, limits)
                place += batch.num_rows
                rows -= batch.num_rows
        except (pa.ArrowException, OSError) as error:
            yield broken(f"row {place}", f"{rows} rows from here on cannot be read: {_first_line(error)}")
            place += rows


def _xyz_rows(path: Path, limits: Limits) -> Iterator[Row]:
    with opened(path, limits) as file:
        place = 0
        while (first := next_line(file, limits.text)).text:
            if not first.text.strip():
                continue
            name = f"frame {place}"
            place += 1
            try:
                n_atoms = int(first.text[:20])
            except ValueError:
                n_atoms = -1
            if n_atoms < 0:
                begins = first.text.strip()[:40]
                yield broken(name, f"it must begin with its number of atoms, got {begins!r}; the rest is not read")
                return
            if n_atoms > _MOST:
                yield broken(name, f"{n_atoms:,} atoms, more than {limits.atoms}; the rest is not read")
                return
            lines, size, missing = [first.text], 0, n_atoms + 1
            while missing and (line := next_line(file, limits.text)).text:
                missing -= 1
                size += len(line.text)
                if size <= limits.text and n_atoms <= limits.atoms:
                    lines.append(line.text)
            if missing:
                yield broken(name, f"the file ends before the last {min(missing, n_atoms):,} of its {n_atoms:,} atoms")
            elif n_atoms > limits.atoms:
                yield broken(name, f"{n_atoms:,} atoms, more than {limits.atoms}")
            elif size > limits.text:
                yield broken(name, f"longer than {limits.text:,} characters")
            else:
                yield Row(name, "".join(lines), "extxyz", {})


def _after(head: str, file: io.TextIOBase) -> Callable[[int], str]:
    """Reads a file whose beginning was read already."""
    first = io.StringIO(head)
    return lambda size: first.read(size) or file.read(size)


def _json_rows(path: Path, limits: Limits) -> Iterator[Row]:
    """A structure, or a list or an object of them."""
    with opened(path, limits) as file:
        head = file.read(limits.text + 1)
        if len(head) <= limits.text and _is_one(head):
            yield Row(_stem(path.name), head, "json", {})
            return
        n_parts = 0
        for place, part in enumerate(json_parts(_after(head, file), limits)):
            n_parts += 1
            if part.key in _PARTS_OF_ONE:
                yield broken(_stem(path.name), f"longer than {limits.text:,} characters")
                return
            if part.key not in _NO_ENTRIES:
                yield _json_row(part, part.key or f"entry {place}")
        if not n_parts:
            raise InputError(f"{path.name} holds no list or object of structures")


def _is_one(text: str) -> bool:
    """Whether an object is a structure itself."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not _PARTS_OF_ONE.isdisjoint(found)


def _json_row(part: Part, name: str) -> Row:
    return broken(name, part.fault) if part.fault else Row(name, part.text, "json", {})


def _json_lines(path: Path, limits: Limits) -> Iterator[Row]:
    """A structure a line; in a file of OPTIMADE the header and what is no structure are passed over."""
    optimade = False
    with opened(path, limits) as file:
        for place in itertools.count():
            line = next_line(file, limits.text)
            if not line.text:
                return
            if not line.whole:
                yield broken(f"line {place}", f"longer than {limits.text:,} characters")
                continue
            if place == 0 and _member(line.text, "x-optimade") is not None:
                optimade = True
            elif line.text.strip() and not (optimade and _member(line.text, "type") in ("info", "references", "files")):
                yield Row(f"line {place}", line.text, "json", {})


def _member(text: str, key: str) -> Any:
    """What an object of JSON has under a key; None where it has nothing, or is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found.get(key) if isinstance(found, dict) else None


def _text_rows(path: Path, limits: Limits) -> Iterator[Row]:
    with opened(path, limits) as file:
        yield from _structures(file, path.name, _stem(path.name), "", limits)


def _structures(file: io.TextIOBase, name: str, stem: str, before: str, limits: Limits) -> Iterator[Row]:
    """The entries of a file of CIF or POSCAR: one by its stem, or several by the names of their blocks."""
    if _is_poscar(name.lower().removesuffix(".gz")):
        text = file.read(limits.text + 1)
        too_long = len(text) > limits.text
        yield broken(stem, f"longer than {limits.text:,} characters") if too_long else Row(stem, text, "poscar", {})
        return
    blocks = cif_blocks(file, limits)
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        yield broken(stem, "it has no block of CIF (data_...) with a cell and atoms")
    elif second is None:
        yield _cif_row(stem, first.text, limits)
    else:
        for block in itertools.chain((first, second), blocks):
            yield _cif_row(before + block.name, block.text, limits)


def _cif_row(name: str, text: str, limits: Limits) -> Row:
    return Row(name, text, "cif", {}) if text else broken(name, f"longer than {limits.text:,} characters")


def _stem(name: str) -> str:
    plain = name[:-3] if name.lower().endswith(".gz") else name
    return plain.rpartition(".")[0] if plain.lower().endswith((".cif", ".vasp", ".poscar", ".json")) else plain


def _is_poscar(name: str) -> bool:
    return name.lower().endswith((".vasp", ".poscar")) or name.upper().startswith(("POSCAR", "CONTCAR"))


def _folder_rows(folder: Path, limits: Limits) -> Iterator[Row]:
    files = folder_files(folder)
    if not files:
        raise InputError(f"the folder {folder} holds no CIF files (*.cif), and none of POSCAR")
    return _file_rows(folder, files, limits)


def folder_files(folder: Path) -> list[str]:
    """Names of a folder's CIF and POSCAR files, and of the file POSCAR in each folder that it holds, in order."""
    names = [entry.name for entry in os.scandir(folder)]
    found = {name for name in names if name.lower().endswith(".cif") or _is_poscar(name)}
    inner = {f"{name}/POSCAR" for name in names if name not in found}
    return sorted(found | {name for name in inner if os.path.isfile(folder / name)})  # noqa: PTH113


def _file_rows(folder: Path, files: list[str], limits: Limits) -> Iterator[Row]:
    root = folder.resolve()
    for name in files:
        place = folder / name
        parent, _, plain = name.rpartition("/")
        stem = parent or _stem(plain)
        if not Path(os.path.realpath(place)).is_relative_to(root):
            yield broken(stem, "a link that leads out of the folder is not followed")
            continue
        try:
            with opened(place, limits) as file:
                yield from _structures(file, plain, stem, f"{stem}:", limits)
        except (InputError, Expands) as error:
            yield broken(stem, str(error))


def _zip_rows(path: Path, limits: Limits) -> Iterator[Row]:
    """Of the members that are CIF or POSCAR."""

    def wanted(name: str) -> bool:
        plain = name.replace("\\", "/").rpartition("/")[2]
        return not plain.startswith("._") and (plain.lower().endswith(".cif") or _is_poscar(plain))

    n_members = 0
    for member in members(path, wanted, limits):
        n_members += 1
        stem, plain = _stem(member.name), member.name.rpartition("/")[2]
        if member.fault:
            yield broken(stem, member.fault)
        else:
            file = io.StringIO(member.content.decode("utf-8-sig", "replace"))
            yield from _structures(file, plain, stem, f"{stem}:", limits)
    if not n_members:
        raise InputError(f"{path.name} holds no CIF files (*.cif), and none of POSCAR")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
