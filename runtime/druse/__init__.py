"""Druse: crystal structures in bulk, to property targets.

```python
import druse

for crystals in druse.Generator().generate({"formation_energy_per_atom": -2.0}, count=32):
    print(crystals.ids, crystals.species, crystals.frac)
```

Public modules, each to be imported by name, in the order in which they build on one another: `errors`, `lattice`,
`crystals`, `elements`, `conditions`, `tables`, `bravais`, `control`, `bundle`, `strategies`, `graphs`, `basis`,
`backends`, `schedules`, `noise`, `sampling`, `samplers`, `model`, `generate`, `io`, `runs`, `properties`, `verify`,
`evaluate`, `doctor`.
"""

from druse.bundle import Bundle
from druse.control import Control
from druse.crystals import Crystals
from druse.errors import (
    DeviceError,
    DownloadError,
    DruseError,
    InputError,
    MissingDependencyError,
    NativeLibraryError,
)
from druse.generate import Generated, Generator, Request
from druse.graphs import Graph, GraphBuffers, radius_graph
from druse.model import Model
from druse.runs import Run
from druse.schedules import SCHEDULES, SamplingSchedule

__version__ = "0.1.0"

__all__ = [
    "SCHEDULES",
    "Bundle",
    "Control",
    "Crystals",
    "DeviceError",
    "DownloadError",
    "DruseError",
    "Generated",
    "Generator",
    "Graph",
    "GraphBuffers",
    "InputError",
    "MissingDependencyError",
    "Model",
    "NativeLibraryError",
    "Request",
    "Run",
    "SamplingSchedule",
    "__version__",
    "radius_graph",
]
