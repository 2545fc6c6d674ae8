"""Data sets: reading, reducing, caching and filtering tables of crystals."""

from druse_export.data.rows import Row, read_rows
from druse_export.data.table import CrystalTable, Rejected, load_table

__all__ = ["CrystalTable", "Rejected", "Row", "load_table", "read_rows"]
