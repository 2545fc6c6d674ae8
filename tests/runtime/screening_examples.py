"""Crystals to screen: many of few kinds, in a file with facts."""

from pathlib import Path

import numpy as np
from crystal_examples import BRASS, COPPER, CSCL, MGO, NACL, ZINC_BLENDE, crystal, rock_salt

from druse import Crystals
from druse.candidates import Entries, write_entries

KINDS = (NACL, MGO, COPPER, BRASS, CSCL, ZINC_BLENDE, rock_salt(4.8, 20, 8), rock_salt(5.2, 12, 16))


def many(n: int, seed: int = 0) -> Crystals:
    """Crystals of `KINDS`, stretched and shaken; every tenth has two atoms on top of one another."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        one = KINDS[int(rng.integers(len(KINDS)))]
        cell = one.cells[0] * (1 + 0.05 * rng.normal())
        frac = one.frac + 0.01 * rng.normal(size=one.frac.shape)
        species = one.species
        if k % 10 == 9:
            frac, species = np.concatenate([frac, frac[:1] + 0.01]), np.append(species, species[:1])
        found.append(crystal(cell, species, frac))
    return Crystals.concatenate(found)


def many_file(path: Path, n: int, seed: int = 0) -> Path:
    """`many` as Parquet, with names, and the columns ``gap``, which some lack, and ``target_gap``."""
    rng = np.random.default_rng(seed)
    gap = np.where(np.arange(n) % 7 > 0, rng.uniform(0, 5, n), np.nan)
    columns = {"gap": gap, "target_gap": np.full(n, 2.0)}
    entries = Entries(0, ("made here",) * n, tuple(f"c{k}" for k in range(n)), ("",) * n, many(n, seed), columns)
    write_entries(path, entries)
    return path
