"""A batch of crystals, the value that everything passes around."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from druse._arrays import Cells, Counts, Frac, Offsets, Species, as_array, as_batch
from druse.errors import InputError

__all__ = ["Crystals"]


@dataclasses.dataclass(frozen=True, eq=False)
class Crystals:
    """A batch of crystals in CSR form; one crystal is a batch of one. Its arrays are read-only.

    Attributes:
        frac: ``[atoms, 3]`` float64 fractional coordinates.
        cells: ``[crystals, 3, 3]`` float64 row vectors in Angstrom: ``cart = frac @ cell``.
        offsets: ``[crystals + 1]``; crystal b owns atoms ``offsets[b]:offsets[b + 1]``.
        species: ``[atoms]`` atomic numbers.

    Raises:
        InputError: shapes that do not fit together, or atomic numbers outside 0 to 118.
    """

    frac: Frac
    cells: Cells
    offsets: Offsets
    species: Species

    def __post_init__(self) -> None:
        frac, cells, offsets = as_batch(self.frac, self.cells, self.offsets)
        species = as_array("species", self.species, np.int32, len(frac))
        if len(species) and not (species.min() >= 0 and species.max() <= 118):
            raise InputError(f"`species` must be atomic numbers, got {species.min()} to {species.max()}")
        for name, value in (("frac", frac), ("cells", cells), ("offsets", offsets), ("species", species)):
            read_only = value.view()
            read_only.flags.writeable = False
            object.__setattr__(self, name, read_only)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self):,} crystals, {len(self.frac):,} atoms>"

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, b: int) -> "Crystals":
        """Crystal ``b`` as a batch of one."""
        if not -len(self) <= b < len(self):
            raise IndexError(f"crystal {b} of a batch of {len(self)}")
        b %= len(self)
        atoms = slice(self.offsets[b], self.offsets[b + 1])
        return Crystals(
            self.frac[atoms], self.cells[b : b + 1], np.array([0, atoms.stop - atoms.start]), self.species[atoms]
        )

    def __iter__(self) -> Iterator["Crystals"]:
        return (self[b] for b in range(len(self)))

    @property
    def n_atoms(self) -> Counts:
        """``[crystals]`` atoms of each crystal."""
        return np.diff(self.offsets)

    @property
    def cart(self) -> Frac:
        """``[atoms, 3]`` Cartesian coordinates in Angstrom."""
        return np.einsum("ni,nij->nj", self.frac, np.repeat(self.cells, self.n_atoms, axis=0))  # type: ignore[no-any-return]

    def take(self, indices: Any) -> "Crystals":
        """The crystals of an array of indices, in that order; an index may come more than once."""
        chosen = as_array("indices", indices, np.int64, "chosen")
        if len(chosen) and not (-len(self) <= chosen.min() and chosen.max() < len(self)):
            raise IndexError(f"crystals {chosen.min()} to {chosen.max()} of a batch of {len(self)}")
        sizes = self.n_atoms[chosen]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        atoms = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], sizes)
        return Crystals(self.frac[atoms], self.cells[chosen], offsets, self.species[atoms])

    def replace(self, **changes: Any) -> "Crystals":
        """The same crystals with some arrays changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def concatenate(cls, batches: Iterable["Crystals"]) -> "Crystals":
        """One batch of several, in order."""
        parts = list(batches)
        if not parts:
            return cls(np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros(1, np.int64), np.zeros(0, np.int32))
        n_atoms = np.concatenate([part.n_atoms for part in parts])
        return cls(
            np.concatenate([part.frac for part in parts]),
            np.concatenate([part.cells for part in parts]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(n_atoms)]),
            np.concatenate([part.species for part in parts]),
        )
