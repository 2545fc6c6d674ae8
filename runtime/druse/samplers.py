"""Samplers: from uniform places down the noise levels to a crystal.

====================  ========================================================================================
paper, references     here
====================  ========================================================================================
sigma_i               ``sigmas[level]``, Angstrom
X_t                   ``state.frac``: fractional coordinates; every move is Cartesian, and wrapped afterwards
s_theta(X, sigma)     ``scaled / sigma``: the score network gives ``scaled`` = sigma s, and logits of the elements
D(X, sigma)           ``X + sigma * scaled``: the crystal that the network expects behind the noise
alpha_i               ``step_lr * (sigma_i / sigma_last)^2``, the length of a Langevin step in square Angstrom
====================  ========================================================================================

Every evaluation names the types too: an atom becomes the element of its largest logit (to which the caller may have
added noise). A sampler knows nothing of batches, noise or types; `ScoreNetwork` and `Update` do.

References: Xie et al., "Crystal diffusion variational autoencoder", ICLR 2022 (annealed Langevin dynamics); Song et
al., "Score-based generative modeling", ICLR 2021 (ancestral and predictor-corrector steps where variance explodes);
Karras et al., "Elucidating the design space of diffusion models", NeurIPS 2022 (Heun); Lu et al., "DPM-Solver++",
arXiv:2211.01095 (second order, multistep).
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from druse._arrays import Int64
from druse.noise import Purpose
from druse.schedules import SamplingSchedule

__all__ = ["ScoreNetwork", "Update", "ancestral", "annealed_langevin", "dpm_solver", "heun", "run"]

Levels = Int64[np.ndarray, "levels"]
State: TypeAlias = Any
"""Places and types, wherever they are kept: samplers hand them on. `druse.sampling.LangevinState` on the host."""

Vector: TypeAlias = Any
"""``[atoms, 3]`` float32, an array of NumPy or of a device: adds, subtracts, and takes numbers as factors."""

ScoreNetwork = Callable[[State, int], tuple[Vector, Any]]
"""``(state, level)`` to sigma times the Cartesian score ``[atoms, 3]`` and logits ``[atoms, species]``."""


@runtime_checkable
class Update(Protocol):
    """X' = X + drift * vector + diffusion * noise, wrapped, and the types that the logits name.

    The noise is named by ``(purpose, step)``; see `druse.sampling.langevin_update`.
    """

    def __call__(
        self,
        state: State,
        vector: Vector,
        logits: Any,
        *,
        drift: float,
        diffusion: float = 0.0,
        step: int = 0,
        purpose: int = Purpose.LANGEVIN,
    ) -> State:
        """The next state."""
        ...


@runtime_checkable
class Repeats(Protocol):
    """An `Update` that takes Langevin steps at a level by itself, evaluations among them.

    For devices that repeat a step more quickly than a host can tell them to.
    """

    def steps(self, state: State, level: int, *, drift: float, diffusion: float, steps: range, purpose: int) -> State:
        """The state after the steps of these numbers."""
        ...


def annealed_langevin(
    score: ScoreNetwork,
    update: Update,
    state: State,
    sigmas: Any,
    levels: Levels,
    *,
    n_steps: int = 100,
    step_lr: float = 1e-4,
    denoise: bool = False,
) -> State:
    """Annealed Langevin dynamics, X' = X + alpha s + sqrt(2 alpha) noise, ``n_steps`` times at each level.

    With ``denoise`` the last move is to D(X, sigma) of the last level.
    """
    for level in levels.tolist():
        steps = range(level * n_steps, (level + 1) * n_steps)
        state = _langevin(score, update, state, sigmas, level, step_lr, steps, Purpose.LANGEVIN)
    if denoise:
        scaled, logits = score(state, int(levels[-1]))
        state = update(state, scaled, logits, drift=sigmas[levels[-1]])
    return state


def _langevin(
    score: ScoreNetwork, update: Update, state: State, sigmas: Any, level: int, step_lr: float, steps: range,
    purpose: Purpose,
) -> State:  # fmt: skip
    sigma = sigmas[level]
    alpha = step_lr * (sigma / sigmas[-1]) ** 2
    drift, diffusion = alpha / sigma, math.sqrt(2 * alpha)
    if isinstance(update, Repeats):
        return update.steps(state, level, drift=drift, diffusion=diffusion, steps=steps, purpose=purpose)
    for step in steps:
        scaled, logits = score(state, level)
        state = update(state, scaled, logits, drift=drift, diffusion=diffusion, step=step, purpose=purpose)
    return state


def ancestral(
    score: ScoreNetwork,
    update: Update,
    state: State,
    sigmas: Any,
    levels: Levels,
    *,
    n_steps: int = 0,
    step_lr: float = 1e-4,
) -> State:
    """Ancestral sampling, each step followed by ``n_steps`` Langevin steps at the level that it reaches.

    With tau the next sigma, X' is drawn from q(X_tau | X_sigma, D): the share 1 - (tau / sigma)^2 of the way to D, and
    noise of variance tau^2 (1 - (tau / sigma)^2). The last step goes to D.
    """
    for level, after in _pairs(levels):
        sigma, tau = sigmas[level], 0.0 if after is None else sigmas[after]
        share = 1 - (tau / sigma) ** 2
        scaled, logits = score(state, level)
        state = update(state, scaled, logits, drift=share * sigma, diffusion=tau * math.sqrt(share), step=level)
        if after is None:
            break
        steps = range(after * n_steps, (after + 1) * n_steps)
        state = _langevin(score, update, state, sigmas, after, step_lr, steps, Purpose.CORRECTOR)
    return state


def heun(score: ScoreNetwork, update: Update, state: State, sigmas: Any, levels: Levels) -> State:
    """Heun's method for the probability flow dX / dsigma = -scaled: no noise, two evaluations a level, the last one."""
    for level, after in _pairs(levels):
        sigma, tau = sigmas[level], 0.0 if after is None else sigmas[after]
        first, logits = score(state, level)
        ahead = update(state, first, logits, drift=sigma - tau)
        if after is None:
            return ahead
        second, logits = score(ahead, after)
        state = update(state, (first + second) / 2, logits, drift=sigma - tau)
    return state


def dpm_solver(score: ScoreNetwork, update: Update, state: State, sigmas: Any, levels: Levels) -> State:
    """DPM-Solver++(2M): no noise, one evaluation a level.

    With way = D - X, the next X is (1 - tau / sigma) of ``way + (D - D_before) / (2 r)`` on, r being the ratio of the
    last step to this one in log sigma. On a torus only differences have a meaning: D - D_before = way + (move from the
    X before to X) - way before.
    """
    before = None
    for level, after in _pairs(levels):
        sigma, tau = sigmas[level], 0.0 if after is None else sigmas[after]
        scaled, logits = score(state, level)
        way = corrected = sigma * scaled
        if before is not None and tau > 0:
            way_before, moved, width = before
            ratio = width / math.log(sigma / tau)
            corrected = way + (way + moved - way_before) / (2 * ratio)
        share = 1 - tau / sigma
        state = update(state, corrected, logits, drift=share)
        if tau > 0:
            before = way, share * corrected, math.log(sigma / tau)
    return state


def _pairs(levels: Levels) -> list[tuple[int, int | None]]:
    """Each level with the next; the last with None."""
    numbers = levels.tolist()
    return list(zip(numbers, [*numbers[1:], None], strict=True))


def run(
    schedule: SamplingSchedule,
    score: ScoreNetwork,
    update: Update,
    state: State,
    sigmas: Any,
    levels: Levels,
) -> State:
    """The sampler of a schedule."""
    sigmas = [float(sigma) for sigma in sigmas]  # a number of NumPy's would make vectors float64
    if schedule.method == "langevin":
        return annealed_langevin(
            score, update, state, sigmas, levels, n_steps=schedule.n_steps, step_lr=schedule.step_lr,
            denoise=schedule.denoise,
        )  # fmt: skip
    if schedule.method == "ancestral":
        return ancestral(score, update, state, sigmas, levels, n_steps=schedule.n_steps, step_lr=schedule.step_lr)
    if schedule.method == "heun":
        return heun(score, update, state, sigmas, levels)
    return dpm_solver(score, update, state, sigmas, levels)
