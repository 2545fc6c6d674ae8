"""Lattices made to obey a crystal system.

A reduced cell of a symmetric lattice has a metric tensor in one of 44 linear families, the lattice characters. A cell
is brought into a system by the least change of its metric that puts it into one of the system's families; its volume
stays. Only the lattice is constrained: which symmetry the atoms keep is another matter.

Reference: de Wolff, "Reduced bases", International Tables for Crystallography A, section 3.1.3.
"""

import functools
import re
from importlib import resources
from typing import Any

import numpy as np

from druse._arrays import Cells, Float64, as_array
from druse.conditions import CRYSTAL_SYSTEMS
from druse.errors import InputError
from druse.lattice import cells_from_parameters, volumes

__all__ = ["constrain"]

_TERM = re.compile(r"([+-]?)(\d*)([A-F])(?:/(\d))?")
_OFF_DIAGONAL = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]) ** 0.5  # each stands twice in the metric tensor
_COVERS = {"trigonal": ("trigonal", "hexagonal")}  # a trigonal crystal can have either lattice


def constrain(cells: Any, system: str) -> tuple[Cells, Float64[np.ndarray, "crystals"]]:
    """Cells of the nearest lattices of a crystal system.

    Args:
        cells: ``[crystals, 3, 3]`` Angstrom, about Niggli-reduced.
        system: one of `druse.conditions.CRYSTAL_SYSTEMS`. Triclinic lattices are free.

    Returns:
        Cells with c along z and a in the x-z plane, of the same volumes; and how far each metric tensor was from it,
        as a share of itself (Frobenius norm).

    Raises:
        InputError: no system has this name, or a cell is flat.
    """
    cells_: Cells = as_array("cells", cells, np.float64, "crystals", 3, 3, hint="wrap a single cell as cells[None]")
    if system not in CRYSTAL_SYSTEMS:
        raise InputError(f"`crystal_system` must be one of {', '.join(CRYSTAL_SYSTEMS)}, got {system!r}")
    metric = _metric(cells_)
    nearest, change = metric, np.zeros(len(cells_))
    if system != "triclinic":
        change = np.full(len(cells_), np.inf)
        for projector in _projectors(system):
            candidate = np.sum(metric[:, None, :] * projector, axis=2)  # not by BLAS: a row alone gives the same bytes
            distance = np.linalg.norm((candidate - metric) * _OFF_DIAGONAL, axis=1)
            distance /= np.linalg.norm(metric * _OFF_DIAGONAL, axis=1)
            better = (distance < change) & (np.linalg.eigvalsh(_tensor(candidate))[:, 0] > 0)
            nearest = np.where(better[:, None], candidate, nearest)
            change = np.where(better, distance, change)
    if not np.isfinite(change).all():
        raise InputError(f"cell {int(np.argmin(np.isfinite(change)))} is flat: no {system} lattice is near it")
    lengths = np.sqrt(nearest[:, :3])
    products = lengths[:, [1, 0, 0]] * lengths[:, [2, 2, 1]]
    made = cells_from_parameters(lengths, np.degrees(np.arccos(nearest[:, 3:] / products)))
    return made * np.cbrt(volumes(cells_) / volumes(made))[:, None, None], change


def _metric(cells: Cells) -> np.ndarray:
    """``[crystals, 6]``: a.a, b.b, c.c, b.c, a.c, a.b."""
    first, second = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    return np.sum(cells[:, first] * cells[:, second], axis=2)  # type: ignore[no-any-return]


def _tensor(metric: np.ndarray) -> np.ndarray:
    return metric[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]


@functools.cache
def _projectors(system: str) -> tuple[np.ndarray, ...]:
    """Orthogonal projections on the families of a system, in the Frobenius norm of the metric tensor."""
    found = []
    for family in _families().get(system, ()) + sum((_families()[s] for s in _COVERS.get(system, ())[1:]), ()):
        basis, _ = np.linalg.qr(family * _OFF_DIAGONAL[:, None])
        found.append(basis @ basis.T * _OFF_DIAGONAL / _OFF_DIAGONAL[:, None])
    return tuple(found)


@functools.cache
def _families() -> dict[str, tuple[np.ndarray, ...]]:
    """By system the families as ``[6, free numbers]``: what each part of the metric is made of."""
    text = resources.files("druse").joinpath("data", "lattice_characters.txt").read_text("ascii")
    families: dict[str, tuple[np.ndarray, ...]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        _, system, *parts = line.split()
        matrix = np.zeros((6, 6))
        for row, part in enumerate(parts):
            for sign, factor, letter, divisor in _TERM.findall(part):
                value = float(factor or 1) / float(divisor or 1)
                matrix[row, "ABCDEF".index(letter)] += -value if sign == "-" else value
        families[system] = (*families.get(system, ()), matrix[:, matrix.any(axis=0)])
    return families
