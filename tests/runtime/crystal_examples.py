"""Textbook crystals in small cells, as batches of one."""

import numpy as np

from druse import Crystals

FCC = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])


def crystal(cell: object, species: object, frac: object) -> Crystals:
    numbers = np.array(species, np.int32)
    cells = np.array(cell, np.float64).reshape(1, 3, 3)
    return Crystals(np.array(frac, np.float64).reshape(-1, 3), cells, np.array([0, len(numbers)]), numbers)


def batch(*crystals: Crystals) -> Crystals:
    return Crystals.concatenate(crystals)


def rock_salt(a: float, cation: int, anion: int) -> Crystals:
    return crystal(a * FCC, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def supercell(one: Crystals) -> Crystals:
    """Twice the crystal, along its first edge."""
    frac = np.concatenate([one.frac / [2, 1, 1], one.frac / [2, 1, 1] + [0.5, 0, 0]])
    return crystal(one.cells[0] * [[2], [1], [1]], np.tile(one.species, 2), frac)


NACL = rock_salt(5.64, 11, 17)
MGO = rock_salt(4.21, 12, 8)
COPPER = crystal(3.61 * FCC, [29], [[0, 0, 0]])
BRASS = crystal(2.95 * np.eye(3), [29, 30], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = crystal(4.12 * np.eye(3), [55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
ZINC_BLENDE = crystal(5.41 * FCC, [30, 16], [[0, 0, 0], [0.25, 0.25, 0.25]])
