"""Data sets: fetching, reading, reducing, caching, filtering, splitting and describing tables of crystals."""

from druse._rows import Row, read_rows
from druse.tables import CrystalTable, Rejected, default_cache, load_table
from druse_export.data.describe import Description, Summary, describe
from druse_export.data.fetch import FetchedFile, fetch_dataset
from druse_export.data.split import split_file, split_table

__all__ = [
    "CrystalTable",
    "Description",
    "FetchedFile",
    "Rejected",
    "Row",
    "Summary",
    "default_cache",
    "describe",
    "fetch_dataset",
    "load_table",
    "read_rows",
    "split_file",
    "split_table",
]
