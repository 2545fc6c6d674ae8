"""Noise schedules of the two diffusions: variances of the prior, and how the levels of the decoder are walked down.

====================  =====================================================================
paper                 here
====================  =====================================================================
beta_t                ``betas``, variances of the forward process, t from 0
alpha_t, alpha-bar_t  ``alpha`` = 1 - beta, ``alpha_bar`` = its running product
sigma_t (eq. 4)       ``sigma``, standard deviation of the posterior q(z_{t-1} | z_t, z_0)
====================  =====================================================================

Reference: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, eqs 6 and 7.
"""

from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from druse._arrays import Float64, Int64, as_array
from druse.errors import InputError

__all__ = ["SCHEDULES", "DDPMSchedule", "Method", "SamplingSchedule", "ddpm_schedule", "sampling_schedule"]

Method = Literal["langevin", "ancestral", "heun", "dpm-solver"]


class DDPMSchedule(NamedTuple):
    """What a reverse step of a DDPM takes; each ``[steps]`` float64.

    Attributes:
        alpha: 1 - beta.
        alpha_bar: running product of alpha.
        sigma: standard deviation of the noise that a reverse step adds; 0 at step 0.
    """

    alpha: Float64[np.ndarray, "steps"]
    alpha_bar: Float64[np.ndarray, "steps"]
    sigma: Float64[np.ndarray, "steps"]


def ddpm_schedule(betas: Any) -> DDPMSchedule:
    """The schedule of variances between 0 and 1.

    Raises:
        InputError: there is none, or one is out of range.
    """
    beta: Float64[np.ndarray, "steps"] = as_array("betas", betas, np.float64, "steps")
    good = (beta >= 1e-15) & (beta < 1)  # below 1e-16, alpha would be 1 and sigma 0 / 0
    if not good.all() or not len(beta):
        got = beta[~good][0] if len(beta) else "none"
        raise InputError(f"`betas` must be numbers between 0 and 1, and not below 1e-15, got {got}")
    alpha = 1 - beta
    alpha_bar = np.cumprod(alpha)
    before = np.concatenate([np.ones(1), alpha_bar[:-1]])
    return DDPMSchedule(alpha, alpha_bar, np.sqrt(beta * (1 - before) / (1 - alpha_bar)))


class SamplingSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a crystal comes from noise: which levels, by which steps (see `druse.samplers`).

    Attributes:
        method: ``langevin``, or ``ancestral``, ``heun`` or ``dpm-solver`` from one level to the next.
        n_levels: of the model's noise levels, evenly spaced from the first used to the last; 0 for all.
        n_steps: Langevin steps at each level; with ``ancestral``, corrector steps at each level that it reaches.
        step_lr: a Langevin step is ``step_lr * (sigma / smallest sigma)^2`` long, in square Angstrom.
        skip: levels are left out, for each crystal, whose sigma exceeds this many times the largest distance of its
            lattice planes: there, places are uniform anyway. 0 leaves out none.
        sigma_stop: levels below it are left out, in Angstrom.
        draw_types: at every evaluation but the last, each atom becomes an element drawn by the network's probabilities,
            not the most likely one. In training, too, types are noise where places are.
        denoise: end with the mean that the network expects at the last level, without noise. Methods from level to
            level always do.
    """

    method: Method
    n_levels: int = 0
    n_steps: int = 0
    step_lr: float = 1e-4
    skip: float = 0.0
    sigma_stop: float = 0.0
    draw_types: bool = True
    denoise: bool = True

    def __post_init__(self) -> None:
        if not (self.n_levels >= 0 and self.n_steps >= 0 and 0 < self.step_lr < 1 and self.skip >= 0):
            raise ValueError("`n_levels`, `n_steps` and `skip` must not be negative, and `step_lr` be between 0 and 1")
        if self.method == "langevin" and self.n_steps == 0:
            raise ValueError("`n_steps` must be at least 1 with the method langevin")
        if self.method in ("heun", "dpm-solver") and self.n_steps:
            raise ValueError(f"`n_steps` must be 0 with the method {self.method}, which has no corrector")
        if self.n_steps > 100_000:
            raise ValueError("`n_steps` must be at most 100,000")
        if not 0 <= self.sigma_stop < 1:
            raise ValueError("`sigma_stop` must be from 0 and below 1 Angstrom")

    def levels(self, sigmas: Any, largest_spacing: float) -> Int64[np.ndarray, "levels"]:
        """Numbers of the levels that a crystal goes through, in order.

        Args:
            sigmas: of the model, Angstrom, largest first.
            largest_spacing: of the crystal's lattice planes, Angstrom.
        """
        sigmas_: Float64[np.ndarray, "levels"] = as_array("sigmas", sigmas, np.float64, "levels")
        limit = self.skip * largest_spacing if self.skip else np.inf
        used = np.flatnonzero((sigmas_ <= limit) & (sigmas_ >= self.sigma_stop))
        if not len(used):
            used = np.array([len(sigmas_) - 1])
        if not self.n_levels or len(used) <= self.n_levels:
            return used
        return used[np.unique(np.round(np.linspace(0, len(used) - 1, self.n_levels)).astype(np.int64))]

    def n_evaluations(self, n_levels: int) -> int:
        """Evaluations of the score network for a crystal that goes through so many levels."""
        if self.method == "langevin":
            return n_levels * self.n_steps + self.denoise
        steps = 2 * n_levels - 1 if self.method == "heun" else n_levels
        return steps + self.n_steps * (n_levels - 1)

    def most_evaluations(self, n_levels: int) -> int:
        """Evaluations for a crystal, at most, with a model of so many levels."""
        return self.n_evaluations(min(n_levels, self.n_levels or n_levels))


SCHEDULES: dict[str, SamplingSchedule] = {
    "faithful": SamplingSchedule(method="langevin", n_steps=100, draw_types=False, denoise=False),
    "langevin-10": SamplingSchedule(method="langevin", n_steps=10, step_lr=5e-5, skip=0.5),
    "ancestral": SamplingSchedule(method="ancestral", skip=0.5),
    "predictor-corrector": SamplingSchedule(method="ancestral", n_steps=4, step_lr=5e-5, skip=0.5),
    "predictor-corrector-15": SamplingSchedule(
        method="ancestral", n_levels=15, n_steps=4, step_lr=5e-5, skip=0.5, sigma_stop=0.05
    ),
    "heun": SamplingSchedule(method="heun", skip=0.5),
    "dpm-solver": SamplingSchedule(method="dpm-solver", skip=0.5),
}
"""Named schedules; ``faithful`` is that of Con-CDVAE's authors. ``docs/sampling.md`` has what each costs and gives."""


def sampling_schedule(given: Any) -> SamplingSchedule:
    """A schedule by its name, or itself.

    Raises:
        InputError: no schedule has this name.
    """
    if isinstance(given, SamplingSchedule):
        return given
    if not isinstance(given, str) or given not in SCHEDULES:
        raise InputError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {given!r}")
    return SCHEDULES[given]
