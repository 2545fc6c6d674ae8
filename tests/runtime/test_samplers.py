"""Samplers where the answer is known: one atom whose exact score is that of a Gaussian, and noise in float64."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from druse.generate import DEFAULT_SCHEDULE, Request
from druse.noise import Purpose
from druse.samplers import run
from druse.sampling import LangevinState
from druse.schedules import SCHEDULES, SamplingSchedule, sampling_schedule

SIGMAS = np.exp(np.linspace(math.log(10), math.log(0.01), 50))
LEVELS = np.arange(50)
N = 4000
SPREAD = 0.3
"""Of the data: X_0 normal around 0 with this standard deviation, in Angstrom, on a line without periods."""


def walk(schedule: SamplingSchedule, seed: int = 0, sigmas: np.ndarray = SIGMAS) -> tuple[np.ndarray, list[Any]]:
    """Places ``[N, 3]`` after a sampler with the exact score of N independent atoms, and the draws it named."""
    rng, named, evaluations = np.random.default_rng(seed), [], []

    def score(state: LangevinState, level: int) -> tuple[np.ndarray, np.ndarray]:
        evaluations.append(level)
        scaled = -state.frac * sigmas[level] / (SPREAD**2 + sigmas[level] ** 2)
        return scaled.astype(np.float32), np.zeros((N, 4), np.float32)

    def update(
        state: LangevinState, vector: Any, logits: Any, *, drift: float, diffusion: float = 0.0, step: int = 0,
        purpose: int = Purpose.LANGEVIN,
    ) -> LangevinState:  # fmt: skip
        if diffusion:
            named.append((int(purpose), step))
        return state._replace(frac=state.frac + drift * vector + diffusion * rng.standard_normal((N, 3)))

    places = rng.standard_normal((N, 3)) * np.hypot(SPREAD, sigmas[0])
    state = LangevinState(places, np.ones(N, np.int32), np.zeros(N, np.uint32))
    levels = schedule.levels(sigmas, 1e9)
    end = run(schedule, score, update, state, sigmas, levels)
    assert len(evaluations) == schedule.n_evaluations(len(levels))
    return end.frac, named


@pytest.mark.parametrize(
    ("schedule", "tolerance"),
    [
        (SamplingSchedule(method="langevin", n_steps=100, step_lr=1e-5), 0.06),
        (SamplingSchedule(method="ancestral"), 0.1),
        (SamplingSchedule(method="ancestral", n_steps=4, step_lr=1e-5), 0.1),
        (SamplingSchedule(method="heun"), 0.01),
        (SamplingSchedule(method="dpm-solver"), 0.01),
    ],
)
def test_the_distribution_of_the_data_comes_out(schedule: SamplingSchedule, tolerance: float) -> None:
    places, _ = walk(schedule)
    assert abs(places.mean()) < 0.02
    assert places.std() == pytest.approx(SPREAD, rel=tolerance)
    # normal: the fourth moment too
    assert np.mean((places / places.std()) ** 4) == pytest.approx(3.0, abs=0.25)


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("dpm-solver", 2)])
def test_solvers_converge_at_their_order(method: Any, order: int) -> None:
    """The flow of a Gaussian is a factor; halving the steps divides the error by 2 to the order, about."""
    errors = []
    for n in (40, 80, 160):
        sigmas = np.exp(np.linspace(math.log(10), math.log(0.01), n))
        schedule = SamplingSchedule(method=method)
        places, _ = walk(schedule, seed=1, sigmas=sigmas)
        start = np.random.default_rng(1).standard_normal((N, 3)) * np.hypot(SPREAD, sigmas[0])
        factor = (places * start).sum() / (start**2).sum()
        wanted = SPREAD / math.hypot(SPREAD, sigmas[0])
        # the last step goes to sigma 0 at once: its error, of order (0.01 / 0.3)^2 / 2, is not the solver's
        wanted_last = (
            SPREAD**2
            / (SPREAD**2 + sigmas[-1] ** 2)
            * math.sqrt((SPREAD**2 + sigmas[-1] ** 2) / (SPREAD**2 + sigmas[0] ** 2))
        )
        assert wanted_last == pytest.approx(wanted, rel=1e-3)
        errors.append(abs(factor / wanted_last - 1))
    assert errors[0] / errors[1] > 2 ** (order - 0.4)
    assert errors[1] / errors[2] > 2 ** (order - 0.4)


EVERY_METHOD = [
    SamplingSchedule(method="langevin", n_steps=2),
    SamplingSchedule(method="ancestral"),
    SamplingSchedule(method="ancestral", n_steps=2),
    SamplingSchedule(method="heun"),
    SamplingSchedule(method="dpm-solver"),
]


@pytest.mark.parametrize("schedule", EVERY_METHOD, ids=lambda s: f"{s.method}-{s.n_steps}")
@pytest.mark.parametrize("sigma_stop", [0.0, 0.05])
def test_every_method_ends_at_what_the_network_expects_wherever_it_stops(
    schedule: SamplingSchedule, sigma_stop: float
) -> None:
    """The last move is the whole way to D(X, sigma) of the last level, without noise; no level below is evaluated."""
    schedule = msgspec.structs.replace(schedule, sigma_stop=sigma_stop)
    levels = schedule.levels(SIGMAS, 1e9)
    assert SIGMAS[levels[-1]] >= sigma_stop
    assert levels[-1] == 49 or SIGMAS[levels[-1] + 1] < sigma_stop
    rng, evaluated = np.random.default_rng(0), []

    def score(state: LangevinState, level: int) -> tuple[np.ndarray, np.ndarray]:
        scaled = rng.standard_normal((3, 3)).astype(np.float32)
        evaluated.append((level, state.frac, state.frac + SIGMAS[level] * scaled))
        return scaled, np.zeros((3, 4), np.float32)

    def update(
        state: LangevinState, vector: Any, logits: Any, *, drift: float, diffusion: float = 0.0, step: int = 0,
        purpose: int = Purpose.LANGEVIN,
    ) -> LangevinState:  # fmt: skip
        return state._replace(frac=state.frac + drift * vector + diffusion * rng.standard_normal((3, 3)))

    start = LangevinState(np.zeros((3, 3)), np.ones(3, np.int32), np.zeros(3, np.uint32))
    end = run(schedule, score, update, start, SIGMAS, levels)
    level, _, expected = evaluated[-1]
    assert level == levels[-1] == max(number for number, *_ in evaluated)
    assert len(evaluated) == schedule.n_evaluations(len(levels))
    assert np.allclose(end.frac, expected, atol=1e-6)


def test_every_named_schedule_but_the_authors_ends_without_noise() -> None:
    assert [name for name, schedule in SCHEDULES.items() if not schedule.denoise] == ["faithful"]
    faithful = SCHEDULES["faithful"]
    assert msgspec.structs.replace(faithful, denoise=True).n_evaluations(50) == faithful.n_evaluations(50) + 1


def test_evaluations_at_most_and_shards_of_as_much_work() -> None:
    """No crystal of any size takes more, and the largest takes as many."""
    spacings = np.geomspace(0.01, 1e3, 200)
    for name, schedule in SCHEDULES.items():
        counts = [schedule.n_evaluations(len(schedule.levels(SIGMAS, float(spacing)))) for spacing in spacings]
        assert max(counts) == schedule.most_evaluations(len(SIGMAS)), name
    request = Request(targets={}, count=1000)
    assert SCHEDULES[DEFAULT_SCHEDULE].most_evaluations(50) == 71
    assert [len(shard) for shard in request.shards(50)] == [230, 230, 230, 230, 80]


@pytest.mark.parametrize("schedule", EVERY_METHOD, ids=lambda s: f"{s.method}-{s.n_steps}")
def test_stopping_early_costs_less_and_changes_little(schedule: SamplingSchedule) -> None:
    """Data of a spread of 0.3 Angstrom, stopped at 0.05: what is left of the noise is expected away."""
    schedule = msgspec.structs.replace(schedule, sigma_stop=0.05, step_lr=1e-5, n_steps=20 * bool(schedule.n_steps))
    assert schedule.n_evaluations(len(schedule.levels(SIGMAS, 1e9))) <= 0.8 * schedule.n_evaluations(len(LEVELS)) + 1
    places, _ = walk(schedule)
    assert places.std() == pytest.approx(SPREAD, rel=0.1)


def test_every_draw_has_its_own_name() -> None:
    for schedule in SCHEDULES.values():
        _, named = walk(schedule)
        assert len(set(named)) == len(named)


def test_faithful_is_the_authors() -> None:
    """100 steps at each of 50 levels, as long as 1e-4 (sigma / 0.01)^2."""
    schedule = sampling_schedule("faithful")
    assert schedule.n_evaluations(len(schedule.levels(SIGMAS, 5.0))) == 5000
    assert (schedule.method, schedule.n_steps, schedule.step_lr) == ("langevin", 100, 1e-4)
    drifts = []

    def update(
        state: LangevinState, vector: Any, logits: Any, *, drift: float, diffusion: float, step: int, purpose: int
    ) -> LangevinState:
        drifts.append((drift, diffusion, step))
        return state

    state = LangevinState(np.zeros((1, 3)), np.ones(1, np.int32), np.zeros(1, np.uint32))
    run(
        schedule,
        lambda s, level: (np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)),
        update,
        state,
        SIGMAS,
        LEVELS,
    )
    assert [step for *_, step in drifts] == list(range(5000))
    alpha = np.repeat(1e-4 * (SIGMAS / SIGMAS[-1]) ** 2, 100)
    # the score is the network's output over sigma
    assert np.allclose([drift for drift, *_ in drifts], alpha / np.repeat(SIGMAS, 100))
    assert np.allclose([diffusion for _, diffusion, _ in drifts], np.sqrt(2 * alpha))


def test_levels() -> None:
    schedule = SamplingSchedule(method="ancestral", skip=0.5, n_levels=10, sigma_stop=0.02)
    levels = schedule.levels(SIGMAS, 6.0)
    assert len(levels) == 10
    assert SIGMAS[levels[0]] <= 3.0 < SIGMAS[levels[0] - 1]
    assert SIGMAS[levels[-1]] >= 0.02 > SIGMAS[levels[-1] + 1]
    assert np.all(np.diff(levels) > 0)
    assert SamplingSchedule(method="heun", skip=0.001).levels(SIGMAS, 1.0).tolist() == [49]


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "langevin"},
        {"method": "heun", "n_steps": -1},
        {"method": "heun", "step_lr": 0.0},
        {"method": "heun", "sigma_stop": 2.0},
    ],
)
def test_schedules_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        SamplingSchedule(**{"method": "heun", **wrong})
