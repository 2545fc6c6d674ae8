"""Duplicates: what is the same crystal, whichever cell, order and size describe it."""

import numpy as np
import pytest
from crystal_examples import BRASS, COPPER, MGO, NACL, ZINC_BLENDE, batch, crystal, rock_salt, supercell

pytest.importorskip("pymatgen", reason="compares structures")

from druse import Crystals
from druse.duplicates import duplicates


def moved(one: Crystals, seed: int) -> Crystals:
    """The same crystal: other origin, orientation, order of atoms, and a skewed cell."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(one.species))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    skew = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    frac = (one.frac[order] + rng.random(3)) @ np.linalg.inv(skew)
    return crystal(skew @ one.cells[0] @ turn, one.species[order], frac % 1)


def test_what_is_the_same() -> None:
    found = duplicates(
        batch(
            NACL,
            MGO,
            moved(NACL, 0),
            supercell(NACL),
            rock_salt(6.0, 11, 17),  # volume does not count
            crystal(NACL.cells, [11, 17], [[0, 0, 0], [0.25, 0.25, 0.25]]),  # zinc blende is another
            ZINC_BLENDE,
            supercell(moved(MGO, 1)),
            COPPER,
            BRASS,
        ),
        n_jobs=1,
    )
    np.testing.assert_array_equal(found, [0, 1, 0, 0, 0, 5, 6, 1, 8, 9])


def test_what_is_no_crystal_is_the_same_as_nothing() -> None:
    broken = crystal(np.diag([5, 5, np.nan]), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    flat = crystal(np.diag([5, 5, 0.001]), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    empty = crystal(np.eye(3), [], [])
    found = duplicates(batch(broken, NACL, broken, flat, flat, empty, empty, NACL), n_jobs=1)
    np.testing.assert_array_equal(found, [-1, 1, -1, -1, -1, -1, -1, 1])
    assert len(duplicates(batch(), n_jobs=1)) == 0


def test_large_groups_as_small_ones() -> None:
    """More crystals of one formula than a block has, by two processes: each kind is found at its first place."""
    kinds = [NACL, crystal(NACL.cells, [11, 17], [[0, 0, 0], [0.25, 0.25, 0.25]])]
    rng = np.random.default_rng(2)
    which = np.concatenate([np.zeros(40, int), rng.integers(0, 2, 40)])
    seen: list[tuple[int, int]] = []
    many = batch(*(moved(kinds[k], seed) for seed, k in enumerate(which)))
    found = duplicates(many, n_jobs=2, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(found, np.where(which == 0, 0, np.argmax(which)))
    assert seen[-1] == (80, 80)
