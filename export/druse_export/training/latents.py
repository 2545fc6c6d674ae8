"""Latents of a data set as a table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from druse._files import whole_file
from druse_export.data import CrystalTable
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.training.batches import usable
from druse_export.training.prior import encode_table


def write_latents(
    model: ConCDVAE, table: CrystalTable, path: Path, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write ``id``, the properties, ``mu`` and ``log_var`` of each crystal that the model can take, as Parquet.

    Returns:
        How many.
    """
    table = usable(table, (), model.config)
    latents = encode_table(model, table, progress=progress)

    def rows(values: np.ndarray) -> pa.FixedSizeListArray:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    columns = {"id": pa.array(table.ids), **{name: pa.array(v) for name, v in table.properties.items()}}
    columns |= {"mu": rows(latents.mu), "log_var": rows(latents.log_var)}
    with whole_file(path, "wb") as file:
        parquet.write_table(pa.table(columns), file)
    return len(table)
