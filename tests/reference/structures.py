"""Crystals for tests: a few real ones, random ones, and Hypothesis's.

The real ones are from Wyckoff, Crystal Structures, 2nd edition, volumes 1 and 2 (1963, 1964).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


class Structure(NamedTuple):
    """One crystal: fractional coordinates and a cell of row vectors in Angstrom."""

    name: str
    frac: np.ndarray
    cell: np.ndarray


def _structure(name: str, frac: Sequence[Sequence[float]], cell: Sequence[Sequence[float]] | np.ndarray) -> Structure:
    return Structure(name, np.array(frac, np.float64), np.array(cell, np.float64))


_FACE_CENTRED = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]

FCC = _structure("Cu, fcc, primitive", [[0, 0, 0]], 3.61496 * np.array(_FACE_CENTRED))
FCC_CONVENTIONAL = _structure("Cu, fcc, conventional", [[0, 0, 0], *_FACE_CENTRED], 3.61496 * np.eye(3))
BCC = _structure("Fe, bcc, conventional", [[0, 0, 0], [0.5, 0.5, 0.5]], 2.8664 * np.eye(3))
ROCK_SALT = _structure("NaCl, primitive", [[0, 0, 0], [0.5, 0.5, 0.5]], 5.64056 * np.array(_FACE_CENTRED))
PEROVSKITE = _structure("SrTiO3", [[0, 0, 0], [0.5, 0.5, 0.5], *_FACE_CENTRED], 3.9051 * np.eye(3))
DIAMOND = _structure("C, diamond", [[0, 0, 0], [0.25, 0.25, 0.25]], 3.56679 * np.array(_FACE_CENTRED))
HCP = _structure(
    "Mg, hcp",
    [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
    [[3.2095, 0, 0], [-3.2095 / 2, 3.2095 * np.sqrt(3) / 2, 0], [0, 0, 5.2107]],
)
REAL = (FCC, FCC_CONVENTIONAL, BCC, ROCK_SALT, PEROVSKITE, DIAMOND, HCP)


class Batch(NamedTuple):
    """Crystals in CSR form, in the order of `druse.radius_graph`'s arguments."""

    frac: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray


def batch(structures: Sequence[Structure]) -> Batch:
    """Structures as one batch."""
    return Batch(
        np.concatenate([np.zeros((0, 3)), *(s.frac for s in structures)]),
        np.array([s.cell for s in structures], np.float64).reshape(-1, 3, 3),
        np.cumsum([0, *(len(s.frac) for s in structures)]),
    )


def cell_of_heights(heights: Sequence[float], angles: Sequence[float]) -> np.ndarray:
    """A cell of given lattice plane spacings (Angstrom) and angles (degrees) that a cell can have."""
    cos_a, cos_b, cos_c = np.cos(np.radians(angles))
    volume = np.sqrt(1 + 2 * cos_a * cos_b * cos_c - cos_a**2 - cos_b**2 - cos_c**2)
    lengths = np.array(heights) * np.sin(np.radians(angles)) / volume
    sin_c = np.sin(np.radians(angles[2]))
    third = [cos_b, (cos_a - cos_b * cos_c) / sin_c, volume / sin_c]
    return lengths[:, None] * np.array([[1, 0, 0], [cos_c, sin_c, 0], third])


def random_structures(seed: int, count: int, n_atoms: tuple[int, int] = (1, 12)) -> list[Structure]:
    """Random crystals of about 15 cubic Angstrom an atom in cells with angles of 60 to 115 degrees."""
    rng = np.random.default_rng(seed)
    found: list[Structure] = []
    for _ in range(count):
        n = int(rng.integers(n_atoms[0], n_atoms[1] + 1))
        cell = cell_of_heights(rng.uniform(2, 6, 3), rng.uniform(60, 115, 3))
        cell *= np.cbrt(15 * n / abs(np.linalg.det(cell)))
        found.append(Structure(f"random {seed}:{len(found)}", rng.random((n, 3)), cell))
    return found


@st.composite
def structures(
    draw: st.DrawFn, *, max_atoms: int = 64, heights: tuple[float, float] = (0.5, 20.0), per_atom: float = 2.0
) -> Structure:
    """Any crystal: heights and angles (15 to 165 degrees) drawn, at least ``per_atom`` cubic Angstrom an atom.

    Coordinates are either random or, where symmetry and coincidences are wanted, multiples of 1/6.
    """
    alpha, beta = draw(st.floats(15.0, 165.0)), draw(st.floats(15.0, 165.0))
    least, most = max(15.0, abs(alpha - beta) + 1), min(165.0, alpha + beta - 1, 359 - alpha - beta)
    cell = cell_of_heights(draw(st.tuples(*[st.floats(*heights)] * 3)), (alpha, beta, draw(st.floats(least, most))))
    cell *= max(1.0, np.cbrt(per_atom / abs(np.linalg.det(cell))))
    volume = abs(np.linalg.det(cell)) + 1e-9
    n = draw(st.integers(1, min(max_atoms, int(volume / per_atom))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frac = rng.integers(0, 6, (n, 3)) / 6 if draw(st.booleans()) else rng.random((n, 3))
    return Structure("Hypothesis", frac, cell)


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random proper rotation."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    q[0] *= np.sign(np.linalg.det(q))
    return q


def unimodular(rng: np.random.Generator, steps: int = 4) -> np.ndarray:
    """A random integer matrix of determinant 1 or -1."""
    u = np.eye(3, dtype=np.int64)
    for _ in range(steps):
        i, j = rng.choice(3, 2, replace=False)
        u[i] += int(rng.integers(-2, 3)) * u[j]
    return u[rng.permutation(3)]
