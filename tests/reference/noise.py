"""Philox4x32-10 in Python's integers, and what is drawn from it, in float64.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Ten rounds on four 32-bit words."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & MASK, (first >> 32) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def _rows(seed: int, purpose: int, step: int, crystal_id: int, n_rows: int, width: int) -> Iterator[list[int]]:
    blocks = -(-width // 4)
    for row in range(n_rows):
        words: list[int] = []
        for block in range(row * blocks, (row + 1) * blocks):
            counter = [crystal_id & MASK, crystal_id >> 32, step, purpose << 24 | block]
            words += philox4x32(counter, [seed & MASK, seed >> 32])
        yield words


def uniform(seed: int, purpose: int, step: int, crystal_id: int, n_rows: int, width: int) -> np.ndarray:
    """Middles of 2^32 equal intervals of (0, 1)."""
    rows = _rows(seed, purpose, step, crystal_id, n_rows, width)
    return np.array([[(word + 0.5) / 2**32 for word in words[:width]] for words in rows])


def normal(seed: int, purpose: int, step: int, crystal_id: int, n_rows: int, width: int) -> np.ndarray:
    """Box-Muller: of two words the first gives the radius, the second the angle."""
    drawn = []
    for words in _rows(seed, purpose, step, crystal_id, n_rows, width):
        row: list[float] = []
        for first, second in zip(words[::2], words[1::2], strict=True):
            radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
            angle = 2 * math.pi * second / 2**32
            row += [radius * math.cos(angle), radius * math.sin(angle)]
        drawn.append(row[:width])
    return np.array(drawn)


def gumbel(seed: int, purpose: int, step: int, crystal_id: int, n_rows: int, width: int) -> np.ndarray:
    """The inverse of the distribution function exp(-exp(-x)), at 1 less a uniform number."""
    drawn = uniform(seed, purpose, step, crystal_id, n_rows, width)
    return -np.log(-np.log1p(-drawn))
