"""How much room crystals get on a device: shapes of buckets, and bins that fill them.

Edges follow from atoms by what samplings have met; a crystal that needs more goes again, in a bucket with more room.
"""

import math
from typing import NamedTuple

import numpy as np

from druse._graph import DEGREE_OVERFLOW, EDGE_OVERFLOW
from druse._score import grouped, network_bytes
from druse.bundle import ConCDVAEManifest

OVERFLOW = EDGE_OVERFLOW | DEGREE_OVERFLOW

LARGEST = 2**17
"""Half edges in a bucket, at most: about 1,000 crystals of 10 atoms. With 128 channels a stream of both directions is
134 MB, and a product of all edges has 2,000 tiles of 128 rows, where the largest GPUs work on some hundred at once."""

_PER_ATOM = 0.55
"""Half edges of an atom, as a share of the neighbours that it chooses: two atoms mostly choose one another. Over a
whole sampling with K = 20: 0.529 on average, with a deviation from crystal to crystal of 0.012; 0.594 in the one that
has most, of 8 atoms. Beyond that a bucket has room for two whole neighbourhoods, which is what a few crystals need."""

_DEGREE = 1.6
"""Edges into an atom, likewise: of 2,400 crystals, the most in any was 1.6."""


class Room(NamedTuple):
    """How much more room than usual a bin gets.

    Attributes:
        edges: how many times the usual.
        crowded: how many times by a quarter more edges into an atom, whose squares are work.
    """

    edges: int = 1
    crowded: int = 0

    def more(self, status: np.ndarray) -> "Room":
        """More of what was too little, by status words."""
        return Room(
            self.edges * (2 if (status & EDGE_OVERFLOW).any() else 1),
            self.crowded + (1 if (status & DEGREE_OVERFLOW).any() else 0),
        )

    @property
    def is_last(self) -> bool:
        """Whether more would help no crystal that makes sense."""
        return self.edges >= 64 or self.crowded >= 20


class Shape(NamedTuple):
    """What a bucket has room for, one crystal, atom and edge of which are never used.

    There are eight sizes of atoms between two powers of two, so an eighth of a bucket stays empty at most. Edges follow
    from the atoms, and crystals, which cost next to nothing, are a power of two.
    """

    crystals: int
    atoms: int
    edges: int
    degree: int

    @classmethod
    def of(cls, n_crystals: int, n_atoms: int, manifest: ConCDVAEManifest, room: Room) -> "Shape":
        """For a bin."""
        atoms = _multiple(n_atoms + 1, _step(n_atoms))
        return cls(
            max(8, 1 << n_crystals.bit_length()),
            atoms,
            _edges(atoms, manifest) * room.edges,
            _multiple(math.ceil(_degree(manifest) * 1.25**room.crowded), 8),
        )

    @property
    def lengths(self) -> dict[str, int]:
        """By the names that a manifest gives them."""
        return {**self._asdict(), "directed": 2 * self.edges}


_TILE = 64
"""Atoms and half edges are multiples of this, which suits tensor cores."""


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


def _step(n_atoms: int) -> int:
    """Between this size of a bucket and the next: an eighth of the power of two below."""
    return max(_TILE, 1 << max(0, n_atoms.bit_length() - 4))


def _edges(atoms: int, manifest: ConCDVAEManifest) -> int:
    """Half edges in a bucket of so many atoms."""
    k = manifest.graph.max_neighbors
    return _multiple(math.ceil(_PER_ATOM * k * atoms) + 2 * k + 1, _TILE)


def _degree(manifest: ConCDVAEManifest) -> int:
    return _multiple(math.ceil(_DEGREE * manifest.graph.max_neighbors), 8)


def bins(n_atoms: np.ndarray, manifest: ConCDVAEManifest, memory: int) -> list[range]:
    """Crystals in order, in bins for a device with so much free memory.

    There are as few bins as can be, and each but the last fills the smallest bucket that makes so few.
    """
    total, largest, most = int(n_atoms.sum()), int(n_atoms.max(initial=1)), most_atoms(manifest, memory) - 1
    least = math.ceil(total / max(1, math.ceil(total / max(1, most - largest)))) + largest
    return grouped(n_atoms, float(min(most, _multiple(least + 1, _step(least)) - 1)))


def most_atoms(manifest: ConCDVAEManifest, memory: int) -> int:
    """Atoms in the largest bucket of `LARGEST` half edges at most that half of the free memory holds."""
    k, spherical, degree = manifest.graph.max_neighbors, manifest.graph.n_spherical, _degree(manifest)
    per_atom = _PER_ATOM * k * (network_bytes(manifest) + 64) + 4 * degree * spherical * (degree + 2 * 64)
    n = int(min((LARGEST - 2 * k - _TILE) / (_PER_ATOM * k), 0.5 * memory / per_atom))
    return max(_TILE, n // _step(n) * _step(n))
