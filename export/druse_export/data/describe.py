"""What a data set holds, in numbers."""

import dataclasses
from typing import Any

import numpy as np

from druse._dependencies import require
from druse.conditions import CRYSTAL_SYSTEMS
from druse.lattice import volumes
from druse.tables import CrystalTable, Rejected

UNITS = {
    "formation_energy_per_atom": "eV/atom",
    "e_above_hull": "eV/atom",
    "band_gap": "eV",
    "dir_gap": "eV",
    "ind_gap": "eV",
    "number_density": "atoms/Å³",
}

_CODES = ("spacegroup", "crystal_system")  # numbers that are names


@dataclasses.dataclass(frozen=True)
class Summary:
    """A property over a data set; ``unit`` is empty where it is unknown, or the property is a pure number."""

    name: str
    unit: str
    count: int
    minimum: float
    mean: float
    median: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything that ``druse data describe`` shows.

    Attributes:
        n_rows: in the file.
        n_crystals: described: rows that could be read and passed the filters.
        n_filtered: rows that could be read and did not pass.
        rejected: rows that could not be read, with reasons.
        properties: summaries over the rows that have the property.
        crystal_systems: crystals in each, where space groups are known; from low to high symmetry.
        elements: crystals that contain each, by symbol, in the order of atomic numbers.
    """

    n_rows: int
    n_crystals: int
    n_filtered: int
    rejected: tuple[Rejected, ...]
    properties: tuple[Summary, ...]
    crystal_systems: dict[str, int]
    elements: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The description as plain values, for JSON."""
        return {
            **dataclasses.asdict(self),
            "rejected": [row._asdict() for row in self.rejected],
        }


def describe(table: CrystalTable, *, n_filtered: int = 0) -> Description:
    """Count and summarise.

    Args:
        table: of crystals.
        n_filtered: rows that filters took from it.

    Raises:
        MissingDependencyError: pymatgen, for the symbols of elements, is not installed.
    """
    return Description(
        n_rows=len(table) + n_filtered + len(table.rejected),
        n_crystals=len(table),
        n_filtered=n_filtered,
        rejected=table.rejected,
        properties=tuple(
            _summary(name, values)
            for name, values in {**table.properties, "number_density": number_density(table)}.items()
            if name not in _CODES and np.isfinite(values).any()
        ),
        crystal_systems=crystal_systems(table),
        elements={symbol: count for symbol, count in zip(symbols(), element_counts(table), strict=True) if count},
    )


def number_density(table: CrystalTable) -> np.ndarray:
    """Atoms per cubic Angstrom of each crystal."""
    return table.crystals.n_atoms / volumes(table.crystals.cells)


def crystal_systems(table: CrystalTable) -> dict[str, int]:
    """Crystals in each system, from low to high symmetry; empty where no space group is known."""
    codes = table.properties.get("crystal_system")
    if codes is None or not np.isfinite(codes).any():
        return {}
    order = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
    return {system: int(np.sum(codes == CRYSTAL_SYSTEMS.index(system))) for system in order}


def element_counts(table: CrystalTable) -> list[int]:
    """Crystals that contain each of the elements 1 to 118."""
    crystal = np.repeat(np.arange(len(table)), table.crystals.n_atoms)
    pairs = np.unique(np.stack([crystal, table.crystals.species]), axis=1)
    return [int(count) for count in np.bincount(pairs[1], minlength=119)[1:]]


def elements_per_crystal(table: CrystalTable) -> np.ndarray:
    """Different elements in each crystal."""
    crystal = np.repeat(np.arange(len(table)), table.crystals.n_atoms)
    pairs = np.unique(np.stack([crystal, table.crystals.species]), axis=1)
    return np.bincount(pairs[0], minlength=len(table))


def symbols() -> list[str]:
    """Of the elements 1 to 118."""
    require("pymatgen.core", purpose="naming elements")
    from pymatgen.core import Element

    return [Element.from_Z(number).symbol for number in range(1, 119)]


def _summary(name: str, values: np.ndarray) -> Summary:
    known = values[np.isfinite(values)]
    return Summary(
        name,
        UNITS.get(name, ""),
        len(known),
        float(known.min()),
        float(known.mean()),
        float(np.median(known)),
        float(known.max()),
    )
