"""Random draws that are named, not consumed: Philox4x32-10 keyed by run, crystal, step, atom and purpose.

A draw depends on its name alone. So crystal 17 of a run sees the same noise in any batch, on any device, in any shard,
and after a resume. The bytes are the same on every processor: logarithm, sine and cosine are part of Druse.

========  =====================================================================================
word      holds
========  =====================================================================================
key       the run's seed, 64 bits
counter   the crystal's id, 64 bits; the step, 32 bits; the purpose, 8 bits; the block, 24 bits
========  =====================================================================================

A block is four words. A row of ``width`` values takes ``ceil(width / 4)`` blocks; the rows of a crystal follow one
another.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import enum
from typing import Any

import numpy as np

from druse import _native
from druse._arrays import CrystalIds, Float32, Float64, Offsets, as_array, as_offsets, number, output
from druse.errors import InputError

__all__ = ["Purpose", "gumbel", "normal", "uniform"]


class Purpose(enum.IntEnum):
    """What a draw is for. Draws for different purposes are independent; the numbers are part of a run's identity."""

    LATENT_START = 1
    LATENT_STEP = 2
    CONDITION = 3
    COMPOSITION = 4
    COORDINATES = 5
    LANGEVIN = 6
    CORRECTOR = 7
    TYPES = 8


def _key(seed: int, purpose: int, step: int, crystal_ids: Any) -> tuple[_native.NoiseKey, CrystalIds]:
    seed = number("seed", seed, "a whole number from 0 to 2^64 - 1", lambda v: 0 <= v < 2**64, integer=True)
    purpose = number("purpose", purpose, "a Purpose, or a number from 0 to 255", lambda v: 0 <= v < 256, integer=True)
    step = number("step", step, "a whole number from 0 to 2^32 - 1", lambda v: 0 <= v < 2**32, integer=True)
    ids: CrystalIds = as_array("crystal_ids", crystal_ids, np.uint64, "crystals")
    return _native.noise_key(seed, purpose, step, ids), ids


def _rows(offsets: Any | None, n_crystals: int) -> tuple[Offsets | None, int]:
    if offsets is None:
        return None, n_crystals
    given = np.asarray(offsets).ravel()
    total = given[-1] if given.size and given.dtype.kind in "iu" else 0
    checked = as_offsets("offsets", offsets, int(total), "rows")
    if len(checked) != n_crystals + 1:
        raise InputError(
            f"`offsets` must have {n_crystals + 1} entries for {n_crystals} crystal ids, got {len(checked)}"
        )
    return checked, int(checked[-1])


def _draw(function: str, dtype: type, seed: int, purpose: int, step: int, crystal_ids: Any, width: int,
          offsets: Any | None, out: Any | None, n_threads: int, isa: str) -> Any:  # fmt: skip
    key, ids = _key(seed, purpose, step, crystal_ids)
    width = number("width", width, "a whole number from 1 to 2^26", lambda v: 1 <= v <= 2**26, integer=True)
    rows, n_rows = _rows(offsets, len(ids))
    drawn = output("out", out, dtype, n_rows, width)
    if rows is not None and len(ids) and int(np.diff(rows).max()) * ((width + 3) // 4) > 2**24:
        raise InputError("a crystal can have at most 2^24 blocks of four draws; draw fewer rows or a smaller `width`")
    exec_ = _native.cpu(n_threads, isa)
    _native.call(function, exec_, key, len(ids), _native.pointer(rows), width, _native.pointer(drawn))
    return drawn


def normal(
    seed: int,
    purpose: int,
    step: int,
    crystal_ids: Any,
    *,
    width: int,
    offsets: Any | None = None,
    out: Float32[np.ndarray, "rows width"] | None = None,
    n_threads: int = 1,
    isa: str = "best",
) -> Float32[np.ndarray, "rows width"]:
    """Standard normal draws (Box-Muller, 32-bit words, largest magnitude 6.77).

    Args:
        seed: the run's, 0 to 2^64 - 1.
        purpose: what the draws are for.
        step: of the sampler.
        crystal_ids: ``[crystals]``, each crystal's number in the run.
        width: values a row.
        offsets: ``[crystals + 1]`` rows of each crystal (its atoms, say); None: one row each.
        out: array to write into.
        n_threads: 0 for every core.
        isa: instruction set, for tests.

    Returns:
        ``[rows, width]`` float32.

    Raises:
        InputError: an argument out of range.
    """
    return _draw("druse_normal", np.float32, seed, purpose, step, crystal_ids, width, offsets, out, n_threads, isa)  # type: ignore[no-any-return]


def uniform(
    seed: int,
    purpose: int,
    step: int,
    crystal_ids: Any,
    *,
    width: int,
    offsets: Any | None = None,
    out: Float64[np.ndarray, "rows width"] | None = None,
    n_threads: int = 1,
) -> Float64[np.ndarray, "rows width"]:
    """Uniform draws in (0, 1), both ends excluded: multiples of 2^-32 plus 2^-33.

    Arguments and errors are those of `normal`.

    Returns:
        ``[rows, width]`` float64.
    """
    return _draw("druse_uniform", np.float64, seed, purpose, step, crystal_ids, width, offsets, out, n_threads, "best")  # type: ignore[no-any-return]


def gumbel(
    seed: int,
    purpose: int,
    step: int,
    crystal_ids: Any,
    *,
    width: int,
    offsets: Any | None = None,
    out: Float32[np.ndarray, "rows width"] | None = None,
    n_threads: int = 1,
) -> Float32[np.ndarray, "rows width"]:
    """Standard Gumbel draws, from -3.14 to 22.9: the largest of logits plus draws is index k with softmax probability.

    Arguments and errors are those of `normal`.

    Returns:
        ``[rows, width]`` float32.
    """
    return _draw("druse_gumbel", np.float32, seed, purpose, step, crystal_ids, width, offsets, out, n_threads, "best")  # type: ignore[no-any-return]
