"""The decoder's geometry in float64: radial basis, Legendre blocks, force sums, one edge or atom at a time."""

import numpy as np
from scipy.special import eval_legendre


def radial_basis(distance: np.ndarray, cutoff: float, n_radial: int) -> np.ndarray:
    """Gaussians on [0, 1] under the envelope 1 - 21 d^5 + 35 d^6 - 15 d^7."""
    d = distance.astype(np.float64)[:, None] / cutoff
    delta = 1 / (n_radial - 1)
    envelope = np.where(d < 1, 1 - 21 * d**5 + 35 * d**6 - 15 * d**7, 0.0)
    return envelope * np.exp(-((d - delta * np.arange(n_radial)) ** 2) / (2 * delta**2))


def incoming(dst: np.ndarray, n_atoms: int) -> list[np.ndarray]:
    """The directed edges into each atom, in ascending order."""
    return [np.flatnonzero(dst == atom) for atom in range(n_atoms)]


def legendre_block(units: np.ndarray, n_spherical: int) -> np.ndarray:
    """[i, l, j]: P_l of the cosine between ``units`` i and j, 0 for i == j."""
    cosine = units.astype(np.float64) @ units.astype(np.float64).T
    block = np.stack([eval_legendre(degree, cosine) for degree in range(n_spherical)], axis=1)
    block[np.arange(len(units)), :, np.arange(len(units))] = 0.0
    return block


def force_sum(dst: np.ndarray, unit: np.ndarray, force: np.ndarray, n_atoms: int) -> np.ndarray:
    """The sum over directed edges into each atom of force times unit vector."""
    total = np.zeros((n_atoms, 3))
    for target, direction, strength in zip(dst, unit, force, strict=True):
        total[target] += direction.astype(np.float64) * float(strength)
    return total
