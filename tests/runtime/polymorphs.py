"""Prototypes of several structures of one formula, and crystals made of others that are barely, or hardly, the same."""

import numpy as np
from crystal_examples import FCC, crystal, rock_salt, supercell

from druse import Crystals
from druse.lattice import volumes

BCC = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])


def hexagonal(a: float, c: float) -> np.ndarray:
    return np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]])


def zinc_blende(a: float, cation: int, anion: int) -> Crystals:
    return crystal(a * FCC, [cation, anion], [[0, 0, 0], [0.25, 0.25, 0.25]])


def wurtzite(a: float, cation: int, anion: int) -> Crystals:
    frac = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]]
    return crystal(hexagonal(a, a * 8**0.5 / 3**0.5), [cation, cation, anion, anion], frac)


def anatase() -> Crystals:
    z = 0.2081
    titanium = [[0, 0, 0], [0, 0.5, 0.25], [0.5, 0.5, 0.5], [0.5, 0, 0.75]]
    frac = titanium + [[x, y, height + s * z] for x, y, height in titanium for s in (1, -1)]
    return crystal(np.diag([3.785, 3.785, 9.514]), [22] * 4 + [8] * 8, frac)


IRON = [
    crystal(2.87 * BCC, [26], [[0, 0, 0]]),
    crystal(3.6 * FCC, [26], [[0, 0, 0]]),
    crystal(hexagonal(2.5, 4.1), [26, 26], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    # double hexagonal
    crystal(hexagonal(2.5, 8.2), [26] * 4, [[0, 0, 0], [1 / 3, 2 / 3, 0.25], [0, 0, 0.5], [2 / 3, 1 / 3, 0.75]]),
    crystal(2.5 * np.eye(3), [26], [[0, 0, 0]]),
]
ZINC_SULPHIDE = [zinc_blende(5.41, 30, 16), wurtzite(3.82, 30, 16), rock_salt(5.1, 30, 16)]
CARBON = [
    crystal(3.57 * FCC, [6, 6], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    crystal(hexagonal(2.46, 6.7), [6] * 4, [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25], [0, 0, 0.75], [2 / 3, 1 / 3, 0.75]]),
]
TITANIA = [
    crystal(
        np.diag([4.594, 4.594, 2.959]),
        [22, 22, 8, 8, 8, 8],
        [[0, 0, 0], [0.5] * 3, [0.305, 0.305, 0], [0.695, 0.695, 0], [0.195, 0.805, 0.5], [0.805, 0.195, 0.5]],
    ),
    anatase(),
    crystal(4.8 * FCC, [22, 8, 8], [[0, 0, 0], [0.25] * 3, [0.75] * 3]),  # fluorite's
    crystal(hexagonal(2.93, 4.6), [22, 8, 8], [[0, 0, 0], [1 / 3, 2 / 3, 0.22], [2 / 3, 1 / 3, 0.78]]),  # layers
]
POLYMORPHS = IRON + ZINC_SULPHIDE + CARBON + TITANIA


def any_crystal(rng: np.random.Generator) -> Crystals:
    """Any cell, long, flat, skewed or right-angled, with one to seven atoms of one to three elements."""
    n = int(rng.integers(1, 8))
    cell = rng.normal(size=(3, 3))
    if abs(np.linalg.det(cell)) < 0.05:
        cell += 2 * np.eye(3)
    if rng.random() < 0.3:
        cell[2] *= rng.uniform(1, 6)
    if rng.random() < 0.3:
        cell = np.diag(rng.uniform(0.4, 3, 3))
    return crystal(3 * cell, rng.integers(1, 1 + rng.integers(1, 4), n), rng.random((n, 3)))


def changed(one: Crystals, rng: np.random.Generator) -> Crystals:
    """One near the limits of StructureMatcher: edges a fifth longer or shorter, strains, atoms 0.3 (V / N)^(1/3) away.

    And always: another size, orientation, handedness, origin, order of atoms; at times a skewed cell, or two cells.
    """
    cell, frac, species = one.cells[0], one.frac, one.species
    size = (volumes(one.cells)[0] / len(species)) ** (1 / 3)
    kind = rng.integers(0, 4)
    if kind == 0:
        limit = np.exp(rng.choice([-1, 0, 1], 3) * np.log(1.2) * rng.choice([0.7, 0.9, 1, 1, 1.1, 1.35]))
        cell = cell * limit[:, None] * (1 + rng.choice([0, 1e-3, -1e-3, 1e-7, -1e-7, 1e-10, -1e-10]))
    elif kind == 1:
        strain = rng.uniform(-0.25, 0.25, (3, 3)) * rng.random()
        cell = cell @ (np.eye(3) + (strain + strain.T) / 2)
    elif kind == 2:
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        cell = cell @ (axes * np.exp(rng.uniform(-0.3, 0.3, 3))) @ axes.T
    moves = rng.normal(size=frac.shape)
    moves *= rng.choice([0, 0.1, 0.25, 0.3, 0.32, 0.4]) * size / np.linalg.norm(moves, axis=1)[:, None]
    moves *= rng.random((len(frac), 1)) if rng.random() < 0.5 else rng.uniform(0.9, 1.05)
    frac = frac + moves @ np.linalg.inv(cell)
    if rng.random() < 0.3:
        frac = -frac
    if rng.random() < 0.5:
        skew = np.zeros((3, 3))
        while abs(round(np.linalg.det(skew))) != 1:
            skew = rng.integers(-1, 2, (3, 3)).astype(float)
        cell, frac = skew @ cell, frac @ np.linalg.inv(skew)
    order = rng.permutation(len(species))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    made = crystal(cell @ turn * rng.uniform(0.5, 2), species[order], frac[order] + rng.random(3))
    return supercell(made) if rng.random() < 0.2 else made
