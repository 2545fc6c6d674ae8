"""A shard of a run as Parquet, and back."""

from pathlib import Path
from typing import Any

import numpy as np

from druse._arrays import as_array
from druse._columns import Ragged, parquet_of, read_columns
from druse._ranked import column_fault
from druse._request import Generated
from druse.errors import InputError


def shard_of(crystals: Generated) -> memoryview:
    """The bytes of a shard's file; the same for the same crystals."""
    columns: dict[str, Any] = {
        "id": crystals.ids,
        "status": crystals.status,
        "cell": crystals.cells.reshape(-1, 9),
        "species": Ragged(crystals.species, crystals.offsets),
        "frac": Ragged(crystals.frac.reshape(-1), 3 * crystals.offsets),
        **crystals.columns,
    }
    return parquet_of(columns, {"cell": "row vectors, Angstrom", "frac": "x y z of each atom"})


def read_shard(path: Path, rows: range, advice: str) -> Generated:
    """The crystals of a shard.

    Args:
        path: of its file.
        rows: numbers of its crystals.
        advice: what to do where it cannot be read.

    Raises:
        InputError: it is damaged, or of another run.
    """
    columns = read_columns(path, advice)
    try:
        ids, status, cell = columns.pop("id"), columns.pop("status"), columns.pop("cell")
        species, frac = columns.pop("species"), columns.pop("frac")
        if not np.array_equal(ids, np.arange(rows.start, rows.stop)):
            raise InputError(f"crystals {rows.start} to {rows.stop - 1} expected")
        if fault := column_fault(columns):
            raise InputError(fault)
        return Generated(
            frac.values.reshape(-1, 3),
            cell.reshape(-1, 3, 3),
            species.offsets,
            species.values,
            as_array("id", ids, np.uint64, len(rows)),
            as_array("status", status, np.uint32, len(rows)),
            columns,
        )
    except (KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is not this run's ({error}); {advice}") from error
