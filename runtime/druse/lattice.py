"""Lattices: cells from lengths and angles and back, volumes, lattice plane spacings, wrapping.

Cells are row vectors in Angstrom, ``cart = frac @ cell``; angles are in degrees, alpha between b and c. A cell from
parameters has c along z and a in the x-z plane, as in pymatgen and CDVAE.
"""

from typing import Any

import numpy as np

from druse._arrays import Cells, Float64, Frac, as_array
from druse.errors import InputError

__all__ = ["cells_from_parameters", "parameters_from_cells", "plane_spacings", "volumes", "wrap"]


def cells_from_parameters(lengths: Any, angles: Any) -> Cells:
    """Cells of given lengths and angles.

    Args:
        lengths: ``[crystals, 3]`` a, b, c in Angstrom, above 0.
        angles: ``[crystals, 3]`` alpha, beta, gamma in degrees, between 0 and 180.

    Returns:
        ``[crystals, 3, 3]`` right-handed row vectors.

    Raises:
        InputError: a length or angle out of range, or three angles that no cell has; names the crystals.
    """
    lengths_ = as_array("lengths", lengths, np.float64, "crystals", 3, hint="wrap one crystal as lengths[None]")
    angles_ = as_array("angles", angles, np.float64, len(lengths_), 3)
    good = np.all(lengths_ > 0, axis=1) & np.all((angles_ > 0) & (angles_ < 180), axis=1) & np.isfinite(lengths_).all(1)
    if not good.all():
        raise InputError(
            f"lengths must be above 0 and angles between 0 and 180 degrees; crystals {_first(~good)} are not so"
        )
    cosine, sine = np.cos(np.radians(angles_)), np.sin(np.radians(angles_))
    cos_gamma_star = (cosine[:, 0] * cosine[:, 1] - cosine[:, 2]) / (sine[:, 0] * sine[:, 1])
    impossible = ~(np.abs(cos_gamma_star) < 1 - 1e-12)  # the cell of angles at the limit is flat
    if impossible.any():
        raise InputError(
            f"no cell has the angles of crystals {_first(impossible)}, e.g. {angles_[impossible][0].tolist()}: each "
            "must be below the sum of the other two, and all three together below 360 degrees"
        )
    sin_gamma_star = np.sqrt(1 - cos_gamma_star**2)
    cells = np.zeros((len(lengths_), 3, 3))
    cells[:, 0, 0] = lengths_[:, 0] * sine[:, 1]
    cells[:, 0, 2] = lengths_[:, 0] * cosine[:, 1]
    cells[:, 1, 0] = -lengths_[:, 1] * sine[:, 0] * cos_gamma_star
    cells[:, 1, 1] = lengths_[:, 1] * sine[:, 0] * sin_gamma_star
    cells[:, 1, 2] = lengths_[:, 1] * cosine[:, 0]
    cells[:, 2, 2] = lengths_[:, 2]
    return cells


def _first(mask: np.ndarray) -> str:
    found = np.flatnonzero(mask)
    return ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _cells(cells: Any) -> Cells:
    return as_array("cells", cells, np.float64, "crystals", 3, 3, hint="wrap a single cell as cells[None]")  # type: ignore[no-any-return]


def parameters_from_cells(
    cells: Any,
) -> tuple[Float64[np.ndarray, "crystals 3"], Float64[np.ndarray, "crystals 3"]]:
    """Lengths (Angstrom) and angles (degrees) of ``cells`` ``[crystals, 3, 3]``, each ``[crystals, 3]``."""
    cells_ = _cells(cells)
    lengths = np.linalg.norm(cells_, axis=2)
    after, before = cells_[:, [1, 2, 0]], cells_[:, [2, 0, 1]]
    # atan2 keeps its precision near 0 and 180 degrees, where arccos loses half its digits
    angles = np.degrees(np.arctan2(np.linalg.norm(np.cross(after, before), axis=2), np.sum(after * before, axis=2)))
    return lengths, angles


def volumes(cells: Any) -> Float64[np.ndarray, "crystals"]:
    """Volumes in cubic Angstrom of ``cells`` ``[crystals, 3, 3]``; positive for either handedness."""
    cells_ = _cells(cells)
    volume: Float64[np.ndarray, "crystals"] = np.abs(
        np.sum(cells_[:, 0] * np.cross(cells_[:, 1], cells_[:, 2]), axis=1)
    )
    return volume


def plane_spacings(cells: Any) -> Float64[np.ndarray, "crystals 3"]:
    """Distances in Angstrom between the lattice planes (100), (010) and (001): the heights of the cell."""
    cells_ = _cells(cells)
    normals = np.cross(cells_[:, [1, 2, 0]], cells_[:, [2, 0, 1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        spacings: Float64[np.ndarray, "crystals 3"] = volumes(cells_)[:, None] / np.linalg.norm(normals, axis=2)
    return spacings


def wrap(frac: Any) -> Frac:
    """Fractional coordinates ``[atoms, 3]`` in [0, 1): never 1.0 after rounding, never -0.0."""
    frac_ = as_array("frac", frac, np.float64, "atoms", 3)
    wrapped = frac_ - np.floor(frac_)
    wrapped[~((wrapped > 0) & (wrapped < 1)) & np.isfinite(wrapped)] = 0.0
    return wrapped  # type: ignore[no-any-return]
