"""Noise schedules of the two diffusions.

====================  =====================================================================
paper                 here
====================  =====================================================================
beta_t                ``betas``, variances of the forward process, t from 0
alpha_t, alpha-bar_t  ``alpha`` = 1 - beta, ``alpha_bar`` = its running product
sigma_t (eq. 4)       ``sigma``, standard deviation of the posterior q(z_{t-1} | z_t, z_0)
====================  =====================================================================

Reference: Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, eqs 6 and 7.
"""

from typing import Any, NamedTuple

import numpy as np

from druse._arrays import Float64, as_array
from druse.errors import InputError

__all__ = ["DDPMSchedule", "ddpm_schedule"]


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
