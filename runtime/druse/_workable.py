"""Which crystals other programs would take minutes over, told beforehand by the shape of the cell and its atoms.

spglib and moyo look for symmetries of a lattice within angles of some degrees. In a cell much longer than wide such an
angle leads from one lattice point past the next, far more symmetries fit than a lattice can have, and they try smaller
and smaller tolerances (a crystal of one atom, fourteen times as long as wide: a minute). pymatgen lists all lattice
points within the longest edge of the reduced cell, and for the primitive cell compares all sublattices with all vectors
between atoms that lie on one another within its tolerance of 0.25 Angstrom.

Of 12,409 published crystals none is near a bound: with one atom they are up to 9.9 times as long as wide, the longest
of all 32 times with sixteen atoms and more, with up to 4,908 lattice points;
the densest has 2.4 cubic Angstrom an atom. Bounds grow with the atoms, so that a row of cells stays within them.
"""

import numpy as np

from druse.crystals import Crystals
from druse.lattice import plane_spacings, volumes

_LONG, _LONG_BY_ATOM = 10.0, 3.0
_POINTS, _POINTS_BY_ATOMS = 20_000, 8  # of the second the square of the atoms
_CROWD, _DENSE = 50, 1.0  # atoms, cubic Angstrom for each


def unworkable(crystal: Crystals) -> str:
    """Why a crystal is left alone; empty where it is not.

    Args:
        crystal: a batch of one, with atoms and a volume.
    """
    n, volume = len(crystal.species), float(volumes(crystal.cells)[0])
    if n > _CROWD and volume < _DENSE * n:
        return f"more than {_CROWD} atoms with less than {_DENSE:g} Å³ each"
    longest = float(np.linalg.norm(crystal.cells[0], axis=1).max())
    # no lattice vector is shorter than the least distance of lattice planes, and a reduced cell has no longer edges
    if _is_fine(n, volume, longest, float(plane_spacings(crystal.cells).min())):
        return ""
    from ase.geometry import minkowski_reduce

    try:
        edges = np.linalg.norm(minkowski_reduce(crystal.cells[0])[0], axis=1)
    except RuntimeError:  # it does not end
        return "its cell cannot be reduced"
    shortest, longest = float(edges.min()), float(edges.max())
    return (
        "" if _is_fine(n, volume, longest, shortest) else f"its cell is {longest / shortest:.0f} times as long as wide"
    )


def _is_fine(n: int, volume: float, longest: float, shortest: float) -> bool:
    long = longest > (_LONG + _LONG_BY_ATOM * n) * shortest
    return not long and 4 / 3 * np.pi * longest**3 <= (_POINTS + _POINTS_BY_ATOMS * n**2) * volume
