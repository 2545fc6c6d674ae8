"""The updates of the two samplers, as functions of the paper's symbols.

====================  ===========================================================================
paper                 here
====================  ===========================================================================
X_t (eqs 2, 7)        ``frac`` and ``cells``: positions, updated in Cartesian Angstrom, then wrapped
alpha (step size)     ``drift`` = alpha, ``diffusion`` = sqrt(2 alpha)
s_theta               ``score`` = decoder output / sigma, in 1/Angstrom
z_t (eq. 4)           ``z``: latents
eps_theta             ``eps``: the noise that the prior's network predicts
alpha_t, alpha-bar_t  ``alpha``, ``alpha_bar``
====================  ===========================================================================
"""

from typing import Any, NamedTuple

import numpy as np

from druse import _native
from druse._arrays import (
    AtomVector,
    Float32,
    Frac,
    Latents,
    Species,
    SpeciesLogits,
    SpeciesMask,
    Status,
    as_array,
    as_batch,
    number,
)
from druse.errors import InputError
from druse.noise import Purpose, _key

__all__ = ["LangevinState", "ddpm_update", "langevin_update"]


class LangevinState(NamedTuple):
    """Coordinates and types after an update, and a status word for each crystal (see `druse.graphs`)."""

    frac: Frac
    species: Species
    status: Status


def _noise(noise: Any | None, seed: int | None, rows: int, width: int) -> Any:
    if (noise is None) == (seed is None):
        raise InputError("pass either `noise` or `seed` with `crystal_ids`, not both and not neither")
    return None if noise is None else as_array("noise", noise, np.float32, rows, width)


def langevin_update(
    frac: Any,
    cells: Any,
    offsets: Any,
    species: Any,
    score: Any,
    *,
    drift: float,
    diffusion: float,
    logits: Any | None = None,
    allowed: Any | None = None,
    noise: Any | None = None,
    seed: int | None = None,
    crystal_ids: Any | None = None,
    step: int = 0,
    purpose: int = Purpose.LANGEVIN,
    in_place: bool = False,
    n_threads: int = 1,
    isa: str = "best",
) -> LangevinState:
    """One Langevin step, x' = x + drift * score + diffusion * noise, wrapped, and the types that the logits name.

    Args:
        frac: ``[atoms, 3]`` fractional coordinates.
        cells: ``[crystals, 3, 3]`` row vectors, Angstrom.
        offsets: ``[crystals + 1]`` atoms of each crystal.
        species: ``[atoms]`` atomic numbers.
        score: ``[atoms, 3]`` Cartesian.
        drift: factor of the score (eqs 2 and 7: the step size).
        diffusion: factor of the noise (eqs 2 and 7: the square root of twice the step size).
        logits: ``[atoms, species]``; each atom becomes 1 + the index of its largest allowed logit, the first of
            equals. None: types stay.
        allowed: ``[crystals, species]``, 0 for forbidden elements. A crystal without any keeps its types.
        noise: ``[atoms, 3]`` standard normal numbers, for replays. None: drawn by the key that follows.
        seed: of the run, see `druse.noise`.
        crystal_ids: ``[crystals]``, each crystal's number in the run.
        step: of the sampler.
        purpose: what the draw is for.
        in_place: write into ``frac`` and ``species``, which must be float64 and int32 arrays.
        n_threads: 0 for every core.
        isa: instruction set, for tests.

    Returns:
        The new state. A crystal with a number that is not finite, or that would be moved beyond 1e8 cells, keeps its
        old state and says so.

    Raises:
        InputError: an argument of the wrong shape, type or range.
    """
    frac_, cells_, offsets_ = as_batch(frac, cells, offsets)
    species_: Species = as_array("species", species, np.int32, len(frac_))
    if in_place and (
        frac_ is not frac or species_ is not species or not (frac_.flags.writeable and species_.flags.writeable)
    ):
        raise InputError(
            "`in_place` needs writeable C-contiguous arrays, `frac` of float64 and `species` of int32; or leave it out"
        )
    if not in_place:
        frac_, species_ = frac_.copy(), species_.copy()
    score_: AtomVector = as_array("score", score, np.float32, len(frac_), 3)
    drift = number("drift", drift, "a finite number", lambda _: True)
    diffusion = number("diffusion", diffusion, "a finite number", lambda _: True)
    n_species, logits_, allowed_ = 0, None, None
    if logits is not None:
        chosen: SpeciesLogits = as_array("logits", logits, np.float32, len(frac_), "species")
        logits_, n_species = chosen, chosen.shape[1]
        if n_species == 0:
            raise InputError("`logits` must have at least one species, got none")
    if allowed is not None:
        if logits is None:
            raise InputError("`allowed` needs `logits`: without them types stay as they are")
        mask: SpeciesMask = as_array(
            "allowed", (np.asarray(allowed) != 0).astype(np.uint8), np.uint8, len(cells_), n_species
        )
        allowed_ = mask
    noise_ = _noise(noise, seed, len(frac_), 3)
    key, ids = _key(seed or 0, purpose, step, np.zeros(len(cells_), np.uint64) if crystal_ids is None else crystal_ids)
    _check_ids(noise_, crystal_ids, ids, len(cells_))
    status = np.zeros(len(cells_), np.uint32)
    _native.call(
        "druse_langevin",
        _native.cpu(n_threads, isa),
        key,
        len(cells_),
        *map(_native.pointer, (offsets_, cells_)),
        drift,
        diffusion,
        None,
        *map(_native.pointer, (score_, noise_)),
        n_species,
        *map(_native.pointer, (logits_, allowed_, frac_, species_, status)),
    )
    return LangevinState(frac_, species_, status)


def _check_ids(noise: Any | None, given: Any | None, ids: Any, n_crystals: int) -> None:
    if noise is None and given is None:
        raise InputError("`crystal_ids` must name each crystal when noise is drawn; pass the numbers in the run")
    if len(ids) != n_crystals:
        raise InputError(f"`crystal_ids` must have shape [{n_crystals}], got [{len(ids)}]")


def ddpm_update(
    z: Any,
    eps: Any,
    *,
    alpha: float,
    alpha_bar: float,
    noise_scale: float,
    noise: Any | None = None,
    seed: int | None = None,
    crystal_ids: Any | None = None,
    step: int = 0,
    purpose: int = Purpose.LATENT_STEP,
    in_place: bool = False,
    n_threads: int = 1,
    isa: str = "best",
) -> tuple[Latents, Status]:
    """One reverse step of the DDPM (eq. 4): z' = (z - (1 - alpha) / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + noise.

    Args:
        z: ``[crystals, latent]`` latents at this step.
        eps: ``[crystals, latent]`` predicted noise.
        alpha: 1 - beta of this step, above 0 and at most 1.
        alpha_bar: product of alpha up to this step, from 0 and below 1.
        noise_scale: standard deviation of the noise that is added; 0 at the last step.
        noise: ``[crystals, latent]`` standard normal numbers, for replays. None: drawn by the key that follows.
        seed: of the run, see `druse.noise`.
        crystal_ids: ``[crystals]``, each latent's number in the run.
        step: of the sampler.
        purpose: what the draw is for.
        in_place: write into ``z``, which must be a float32 array.
        n_threads: 0 for every core.
        isa: instruction set, for tests.

    Returns:
        The new latents and a status word for each. A latent with a number that is not finite, or
        that would get one, keeps its old value.

    Raises:
        InputError: an argument of the wrong shape, type or range.
    """
    z_: Latents = as_array("z", z, np.float32, "crystals", "latent")
    if in_place and (z_ is not z or not z_.flags.writeable):
        raise InputError("`in_place` needs `z` as a writeable C-contiguous float32 array; or leave it out")
    if not in_place:
        z_ = z_.copy()
    rows, width = z_.shape
    if width == 0:
        raise InputError("`z` must have at least one latent dimension, got none")
    eps_: Float32[np.ndarray, "crystals latent"] = as_array("eps", eps, np.float32, rows, width)
    alpha = number("alpha", alpha, "a number above 0 and at most 1", lambda v: 0 < v <= 1)
    alpha_bar = number("alpha_bar", alpha_bar, "a number from 0 and below 1", lambda v: 0 <= v < 1)
    noise_scale = number("noise_scale", noise_scale, "a number from 0 up", lambda v: v >= 0)
    if noise_scale == 0 and noise is None and seed is None:
        noise = np.zeros((rows, width), np.float32)
    noise_ = _noise(noise, seed, rows, width)
    key, ids = _key(seed or 0, purpose, step, np.zeros(rows, np.uint64) if crystal_ids is None else crystal_ids)
    _check_ids(noise_, crystal_ids, ids, rows)
    status = np.zeros(rows, np.uint32)
    _native.call(
        "druse_ddpm",
        _native.cpu(n_threads, isa),
        key,
        rows,
        width,
        alpha**-0.5,
        (1 - alpha) / (1 - alpha_bar) ** 0.5,
        noise_scale,
        *map(_native.pointer, (eps_, noise_, z_, status)),
    )
    return z_, status
