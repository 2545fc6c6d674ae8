"""Druse: crystal structures in bulk, to property targets.

```python
import druse

for crystals in druse.Generator().generate({"formation_energy_per_atom": -2.0}, count=32):
    print(crystals.ids, crystals.species, crystals.frac)
```

Public modules, each to be imported by name, in the order in which they build on one another: `errors`, `lattice`,
`crystals`, `elements`, `conditions`, `tables`, `bravais`, `control`, `bundle`, `strategies`, `graphs`, `basis`,
`backends`, `schedules`, `noise`, `sampling`, `samplers`, `model`, `generate`, `io`, `runs`, `candidates`, `properties`,
`verify`, `bench`, `validity`, `symmetry`, `duplicates`, `novelty`, `evaluate`, `rules`, `screening`, `relax`, `dft`,
`report`, `campaign`, `doctor`.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from druse.bundle import Bundle
    from druse.control import Control
    from druse.generate import Generated, Generator, Request
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

_LATER = {
    "Bundle": "bundle",
    "Control": "control",
    "Generated": "generate",
    "Generator": "generate",
    "Model": "model",
    "Request": "generate",
    "Run": "runs",
    "SCHEDULES": "schedules",
    "SamplingSchedule": "schedules",
}
"""What is imported when it is asked for: half of the time that `import druse` would take."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'druse' has no attribute {name!r}")
    return getattr(importlib.import_module(f"druse.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
