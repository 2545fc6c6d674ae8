"""Columns of arrays as Parquet, and back: one row for each crystal."""

import io
import itertools
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._dependencies import require
from druse._files import whole_file
from druse._limits import LIMITS, Limits
from druse.errors import InputError

_FREE = 1 << 24
_ROWS = 4096
"""Rows of a group in a file, which a reader may take one at a time."""


class Ragged(NamedTuple):
    """A column whose rows have several lengths: row b is ``values[offsets[b]:offsets[b + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray


def write_columns(path: Path, columns: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """A Parquet file that appears whole or not at all; columns and facts as of `parquet_of`."""
    content = parquet_of(columns, facts)
    with whole_file(path, "wb") as file:
        file.write(content)


def parquet_of(columns: Mapping[str, Any], facts: Mapping[str, str]) -> memoryview:
    """The bytes of a Parquet file.

    Args:
        columns: arrays of one axis (numbers, booleans, text) or two (numbers), or `Ragged`, all of the same length.
        facts: kept beside the columns.
    """
    require("pyarrow.parquet", purpose="writing Parquet", extra="cpu")
    import pyarrow as pa
    from pyarrow import parquet

    arrays: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            arrays[name] = pa.LargeListArray.from_arrays(column.offsets, pa.array(np.ascontiguousarray(column.values)))
        elif column.ndim == 2:
            flat = pa.array(np.ascontiguousarray(column).reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
        else:
            arrays[name] = _flat(column)
    buffer = io.BytesIO()
    table = pa.table(arrays).replace_schema_metadata({key.encode(): text.encode() for key, text in facts.items()})
    parquet.write_table(table, buffer, compression="zstd", row_group_size=_ROWS)
    return buffer.getbuffer()


def _flat(column: np.ndarray) -> Any:
    """A column of one axis for a file; of text also where there are no rows."""
    import pyarrow as pa

    return (
        pa.array(column.tolist(), pa.string()) if column.dtype.kind == "U" else pa.array(np.ascontiguousarray(column))
    )


def append_columns(path: Path, parts: Iterable[Mapping[str, np.ndarray]]) -> None:
    """A Parquet file of many parts, which appears whole or not at all; one part at a time is in memory.

    Args:
        path: of the file.
        parts: columns of one axis: whole numbers, float64, or text. A column that some parts lack is missing there; one
            that is text in some is text in all, and one of float64 in some is that in all. Parts are gone through once,
            and kept on disk in between; the file does not show where one ends.
    """
    require("pyarrow.parquet", purpose="writing Parquet", extra="cpu")
    import pyarrow as pa
    from pyarrow import feather, parquet

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".part") as folder:
        places, fields = [], dict[str, Any]()
        for place, part in zip(map(Path(folder).joinpath, map(str, itertools.count())), parts, strict=False):
            table = pa.table({name: _flat(column) for name, column in part.items()})
            for field in table.schema:
                if field.name not in fields and len(fields) >= 2 * LIMITS.columns:
                    continue  # each part may have brought new ones
                fields[field.name] = max(field.type, fields.get(field.name, field.type), key=_breadth)
            feather.write_feather(table, place, compression="zstd")
            places.append(place)
        schema = pa.schema(list(fields.items()))
        with whole_file(path, "wb") as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            waiting = [schema.empty_table()]
            for place in places:
                table = feather.read_table(place, memory_map=False)
                there = frozenset(table.column_names)
                columns = [_filled(table, name, kind, name in there) for name, kind in fields.items()]
                waiting.append(pa.table(columns, schema=schema))
                length = sum(map(len, waiting))
                if whole := length - length % _ROWS:
                    joined = pa.concat_tables(waiting)
                    writer.write_table(joined.slice(0, whole), row_group_size=_ROWS)
                    waiting = [joined.slice(whole)]
            writer.write_table(pa.concat_tables(waiting))


def _breadth(kind: Any) -> int:
    """Which of two types of a column can hold the other's values: the one with the greater number."""
    import pyarrow as pa

    return 2 if pa.types.is_string(kind) else int(pa.types.is_floating(kind))


def _filled(table: Any, name: str, kind: Any, there: bool) -> Any:
    """A column of a part as the whole file has it."""
    import pyarrow as pa

    if not there:
        return pa.array([""] * len(table), kind) if kind == pa.string() else pa.nulls(len(table), kind)
    column = table.column(name)
    if column.type != kind and kind != pa.string():
        return column.cast(kind)
    if column.type != kind:  # numbers where other parts have text
        return pa.array(["" if value is None or value != value else str(value) for value in column.to_pylist()], kind)
    return column


def read_columns(path: Path, advice: str) -> dict[str, Any]:
    """What `write_columns` wrote.

    Args:
        path: of the file.
        advice: what to do where it cannot be read.

    Raises:
        InputError: it is damaged, no such file, or asks for more memory than it should.
    """
    return _whole(path, str(path), advice)


def columns_in(content: bytes, name: str, advice: str) -> dict[str, Any]:
    """As `read_columns`, of a file that is in memory; errors give it this name."""
    return _whole(io.BytesIO(content), name, advice)


def _whole(source: Any, name: str, advice: str) -> dict[str, Any]:
    require("pyarrow.parquet", purpose="reading Parquet", extra="cpu")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if isinstance(source, Path):
            _check_file(source)
        with parquet.ParquetFile(source) as file:
            fault = next(filter(None, (group_fault(group, LIMITS) for group in _groups(file))), "")
            if not fault:
                table = file.read()
                return _arrays(table.column_names, table.columns, LIMITS)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(name, error, advice) from error
    raise InputError(f"{name} asks for too much memory: {fault}; {advice}")


def group_fault(group: Any, limits: Limits) -> str:
    """Why a row group of a Parquet file, by its metadata, asks for more memory or time than it should; else empty."""
    columns = [group.column(k) for k in range(group.num_columns)]
    stored = sum(column.total_compressed_size for column in columns)
    if group.num_rows > _ROWS + stored:  # of rows that are all the same any number takes a few bytes
        return f"{group.num_rows:,} rows are made of {stored:,} bytes"
    for column in columns:
        size = column.total_uncompressed_size
        if size > _FREE + min(limits.text * group.num_rows, limits.expansion * column.total_compressed_size):
            return f"column {column.path_in_schema} has {size:,} bytes in {group.num_rows} rows"
    return ""


def _check_file(path: Path) -> None:
    """OSError for what is no file, as a pipe, which nobody may ever write to."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a file")


def read_column_batches(path: Path, size: int, advice: str, limits: Limits) -> Iterator[dict[str, Any]]:
    """As `read_columns`, at most ``size`` rows at a time."""
    require("pyarrow.parquet", purpose="reading Parquet", extra="cpu")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        _check_file(path)
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            fault = next(filter(None, (group_fault(group, limits) for group in _groups(file))), "")
            for batch in () if fault else file.iter_batches(size):
                yield _arrays(batch.schema.names, batch.columns, limits)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error, advice) from error
    if fault:
        raise InputError(f"{path} asks for too much memory: {fault}")


def _groups(file: Any) -> Iterator[Any]:
    return (file.metadata.row_group(k) for k in range(file.num_row_groups))


def column_names(path: Path, advice: str) -> list[str]:
    """The names of the columns that `write_columns` wrote; arguments and errors as of `read_columns`."""
    require("pyarrow.parquet", purpose="reading Parquet", extra="cpu")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        _check_file(path)
        return list(parquet.read_schema(path, memory_map=False).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error, advice) from error


def read_facts(path: Path, advice: str) -> dict[str, str]:
    """The facts that `write_columns` wrote beside the columns; arguments and errors as of `read_columns`."""
    require("pyarrow.parquet", purpose="reading Parquet", extra="cpu")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        _check_file(path)
        facts = parquet.read_schema(path, memory_map=False).metadata or {}
        return {key.decode(): text.decode() for key, text in facts.items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error, advice) from error


def _unreadable(path: Path | str, error: Exception, advice: str) -> InputError:
    text = str(error).strip().splitlines()
    return InputError(f"{path} cannot be read ({text[0] if text else 'no reason given'}); {advice}")


def _arrays(names: Sequence[str], columns: Sequence[Any], limits: Limits) -> dict[str, Any]:
    """Columns, but for texts beyond what an entry may have; in an array all are as long as the longest."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left, found = 2 * limits.texts, dict[str, Any]()
    for name, column in itertools.islice(zip(names, columns, strict=True), 2 * limits.columns):
        if pa.types.is_string(column.type):
            length = pc.max(pc.utf8_length(column)).as_py() or 0
            if length > left:
                continue
            left -= length
        found[name] = _array(column)
    return found


def _array(column: Any) -> Any:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    if pa.types.is_large_list(column.type):
        offsets = column.offsets.to_numpy()
        return Ragged(column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0])
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), str)
    return column.to_numpy(zero_copy_only=False)
