"""Druse: crystal structures in bulk, to property targets.

Public modules, each to be imported by name, in the order in which they build on one another: `errors`, `lattice`,
`crystals`, `elements`, `conditions`, `graphs`, `basis`, `noise`, `sampling`, `doctor`.
"""

from druse.crystals import Crystals
from druse.errors import (
    DeviceError,
    DownloadError,
    DruseError,
    InputError,
    MissingDependencyError,
    NativeLibraryError,
)
from druse.graphs import Graph, GraphBuffers, radius_graph

__version__ = "0.1.0"

__all__ = [
    "Crystals",
    "DeviceError",
    "DownloadError",
    "DruseError",
    "Graph",
    "GraphBuffers",
    "InputError",
    "MissingDependencyError",
    "NativeLibraryError",
    "__version__",
    "radius_graph",
]
