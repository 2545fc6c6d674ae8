"""The Langevin update against the float64 twin, against upstream's recorded steps, and at the edges."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import structures, updates

from druse import DeviceError
from druse.graphs import NON_FINITE, SINGULAR
from druse.noise import Purpose, normal
from druse.sampling import LangevinState, langevin_update

CRYSTALS = [*structures.REAL, *structures.random_structures(31, 12)]
BATCH = structures.batch(CRYSTALS)
N = len(BATCH.frac)
N_SPECIES = 100


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    """Random score, noise, types and logits for the batch."""
    rng = np.random.default_rng(seed)
    return {
        "species": rng.integers(1, N_SPECIES + 1, N).astype(np.int32),
        "score": rng.normal(size=(N, 3)).astype(np.float32),
        "noise": rng.normal(size=(N, 3)).astype(np.float32),
        "logits": rng.normal(size=(N, N_SPECIES)).astype(np.float32),
    }


def update(
    values: dict[str, np.ndarray], drift: float = 0.3, diffusion: float = 0.7, **options: object
) -> LangevinState:
    """One update of the batch."""
    return langevin_update(*BATCH, **values, drift=drift, diffusion=diffusion, **options)  # type: ignore[arg-type]


# ---- coordinates ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.floats(-5, 5), st.floats(0, 5))
def test_against_the_twin(seed: int, drift: float, diffusion: float) -> None:
    values = inputs(seed)
    state = update(values, drift, diffusion)
    assert not state.status.any()
    for b, crystal in enumerate(CRYSTALS):
        atoms = slice(BATCH.offsets[b], BATCH.offsets[b + 1])
        expected = updates.langevin(
            crystal.frac, crystal.cell, values["score"][atoms], values["noise"][atoms], drift, diffusion
        )
        assert updates.apart(state.frac[atoms], expected).max(initial=0) <= 1e-12
    check_wrapped(state.frac)


def check_wrapped(frac: np.ndarray) -> None:
    """In [0, 1), and never -0.0."""
    assert np.all((frac >= 0) & (frac < 1))
    assert not np.any(np.signbit(frac))


@given(st.lists(st.floats(-1e6, 1e6) | st.floats(-1e-15, 1e-15), min_size=3, max_size=3), st.floats(-1e-15, 1e-15))
def test_never_one_and_never_minus_zero(start: list[float], push: float) -> None:
    state = langevin_update(
        [start], np.eye(3)[None], [0, 1], [1], [[push] * 3], drift=1.0, diffusion=0.0, noise=np.zeros((1, 3))
    )
    check_wrapped(state.frac)
    # 1e6 has no digits below 1.2e-10
    assert updates.apart(state.frac, np.array([start]) + np.float32(push)).max() <= 2e-10


@pytest.mark.parametrize("start", [0.0, -0.0, 1.0, -1e-17, -1e-300, 1 - 2**-53, -3.0, 7.0])
def test_wrapping_at_the_ends(start: float) -> None:
    state = langevin_update(
        [[start] * 3], np.eye(3)[None], [0, 1], [1], np.zeros((1, 3)), drift=1.0, diffusion=0.0, noise=np.zeros((1, 3))
    )
    check_wrapped(state.frac)


def test_drawn_noise_is_the_named_noise() -> None:
    values = inputs()
    ids = np.arange(len(CRYSTALS)) * 7 + 2**40
    drawn = normal(99, Purpose.LANGEVIN, 12, ids, width=3, offsets=BATCH.offsets)
    given_ = update(values | {"noise": drawn})
    own = update(values | {"noise": None}, seed=99, crystal_ids=ids, step=12)
    assert own.frac.tobytes() == given_.frac.tobytes()
    other = update(values | {"noise": None}, seed=99, crystal_ids=ids, step=12, purpose=Purpose.CORRECTOR)
    assert other.frac.tobytes() != own.frac.tobytes()


def test_upstreams_recorded_steps(shared: Path) -> None:
    """``langevin_io``: state t + 1 from state t, upstream's score and noise; the first step from ``init_frac``."""
    with (
        np.load(shared / "fixtures" / "langevin_io.npz") as file,
        np.load(shared / "fixtures" / "heads_io.npz") as heads,
    ):
        recorded, sigmas = dict(file), heads["sigmas"].astype(np.float64)
    assert recorded["n_step_each"] == 1
    cells, offsets = recorded["cells"].astype(np.float64), np.cumsum([0, *recorded["num_atoms"]])
    before = np.concatenate([recorded["init_frac"][None], recorded["traj_frac"][:-1]])
    for t, sigma in enumerate(sigmas):
        step = float(recorded["step_lr"]) * (sigma / sigmas[-1]) ** 2
        state = langevin_update(
            before[t].astype(np.float64),
            cells,
            offsets,
            recorded["atom_types"],
            (recorded["traj_increment_cart"][t].astype(np.float64) / step).astype(np.float32),
            noise=recorded["noise"][t],
            drift=step,
            diffusion=float(np.sqrt(2 * step)),
        )
        # upstream is float32 throughout: to Cartesian, the step, and back by an inverse matrix
        moved = np.abs(recorded["traj_increment_cart"][t]) + np.sqrt(2 * step) * np.abs(recorded["noise"][t])
        heights = 1 / np.linalg.norm(np.linalg.inv(cells), axis=1).min()
        bound = 8 * 2**-24 * (3 + moved.sum(axis=1, keepdims=True) * np.sqrt(3) * heights)
        assert np.all(updates.apart(state.frac, recorded["traj_frac"][t].astype(np.float64)) <= bound)
        np.testing.assert_array_equal(state.species, recorded["atom_types"])


# ---- types ----------------------------------------------------------------------------------------------------------


def test_types_are_the_largest_logit() -> None:
    values = inputs()
    np.testing.assert_array_equal(update(values).species, 1 + values["logits"].argmax(axis=1))


def test_without_logits_types_stay() -> None:
    values = inputs()
    values["logits"] = None  # type: ignore[assignment]
    np.testing.assert_array_equal(update(values).species, values["species"])


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_the_first_of_equal_logits_and_masks(seed: int, n_species: int) -> None:
    rng = np.random.default_rng(seed)
    values = inputs(seed)
    values["logits"] = rng.integers(-2, 2, (N, n_species)).astype(np.float32)  # ties in plenty
    allowed = rng.random((len(CRYSTALS), n_species)) < 0.4
    allowed[0] = False
    masked = np.where(np.repeat(allowed, np.diff(BATCH.offsets), axis=0), values["logits"], -np.inf)
    expected = np.where(np.isinf(masked).all(axis=1), values["species"], 1 + masked.argmax(axis=1))
    for mask in (allowed, allowed.astype(np.int64) * 5):
        np.testing.assert_array_equal(update(values, allowed=mask).species, expected)
    np.testing.assert_array_equal(update(values).species, 1 + values["logits"].argmax(axis=1))


# ---- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["score", "logits", "noise"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 9, len(CRYSTALS) - 1])
def test_a_crystal_that_is_not_finite_keeps_its_state(name: str, value: float, place: int) -> None:
    values = inputs()
    expected = update(values)
    broken = {**values, name: values[name].copy()}
    atoms = slice(BATCH.offsets[place], BATCH.offsets[place + 1])
    broken[name][atoms.stop - 1, -1] = value
    state = update(broken)
    assert np.flatnonzero(state.status).tolist() == [place]
    assert state.status[place] == NON_FINITE
    np.testing.assert_array_equal(state.frac[atoms], BATCH.frac[atoms])
    np.testing.assert_array_equal(state.species[atoms], values["species"][atoms])
    others = np.ones(N, bool)
    others[atoms] = False
    assert state.frac[others].tobytes() == expected.frac[others].tobytes()
    assert state.species[others].tobytes() == expected.species[others].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["frac", "cells"])
def test_coordinates_and_cells_that_are_not_finite(value: float, where: str) -> None:
    values, arrays = inputs(), {"frac": BATCH.frac.copy(), "cells": BATCH.cells.copy(), "offsets": BATCH.offsets}
    last = len(CRYSTALS) - 1
    arrays[where][-1, ..., 0] = value
    state = langevin_update(**arrays, **values, drift=0.3, diffusion=0.7)
    assert state.status[last] == NON_FINITE
    assert not state.status[:last].any()
    atoms = slice(BATCH.offsets[last], None)
    np.testing.assert_array_equal(state.frac[atoms], arrays["frac"][atoms])
    np.testing.assert_array_equal(state.species[atoms], values["species"][atoms])


def flat_cells() -> list[np.ndarray]:
    """Cells of no volume: two whose determinant is exactly 0, and many where rounding leaves 1e-16."""
    rng = np.random.default_rng(0)
    found = [np.zeros((3, 3)), np.diag([4.0, 4.0, 0.0])]
    for _ in range(50):
        (a, b), (p, q) = rng.normal(0, 3, (2, 3)), rng.random(2)
        found.append(np.array([a, b, p * a + q * b]))
    return found


def test_flat_cells() -> None:
    frac = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    ones = np.ones((2, 3), np.float32)
    for cell in flat_cells():
        state = langevin_update(frac, cell[None], [0, 2], [5, 6], ones, drift=0.3, diffusion=0.7, noise=ones)
        assert state.status.tolist() == [SINGULAR]
        np.testing.assert_array_equal(state.frac, frac)
        assert state.species.tolist() == [5, 6]


# ---- in place, in any order, on any processor -----------------------------------------------------------------------


def test_in_place_writes_what_it_returns() -> None:
    values, frac = inputs(), BATCH.frac.copy()
    expected = update(values)
    species = values["species"].copy()
    state = langevin_update(
        frac, BATCH.cells, BATCH.offsets, species, drift=0.3, diffusion=0.7, in_place=True,
        **{name: values[name] for name in ("score", "noise", "logits")},
    )  # fmt: skip
    assert state.frac is frac
    assert state.species is species
    assert frac.tobytes() == expected.frac.tobytes()
    assert species.tobytes() == expected.species.tobytes()


def test_what_was_given_is_not_changed() -> None:
    values = inputs()
    copies = {name: value.copy() for name, value in values.items()}
    frac = BATCH.frac.copy()
    update(values)
    np.testing.assert_array_equal(BATCH.frac, frac)
    for name, value in values.items():
        np.testing.assert_array_equal(value, copies[name])


def test_alone_and_in_a_batch() -> None:
    values, ids = inputs(), np.arange(len(CRYSTALS)) + 50
    values["noise"] = None  # type: ignore[assignment]
    whole = update(values, seed=4, crystal_ids=ids, step=8)
    for b, crystal in enumerate(CRYSTALS):
        atoms = slice(BATCH.offsets[b], BATCH.offsets[b + 1])
        own = {name: value[atoms] for name, value in values.items() if value is not None}
        alone = langevin_update(
            crystal.frac, crystal.cell[None], [0, len(crystal.frac)], **own,
            drift=0.3, diffusion=0.7, seed=4, crystal_ids=ids[b : b + 1], step=8,
        )  # fmt: skip
        assert alone.frac.tobytes() == whole.frac[atoms].tobytes()
        assert alone.species.tobytes() == whole.species[atoms].tobytes()


@pytest.mark.parametrize("n_threads", [2, 4, 0])
def test_any_number_of_threads(n_threads: int) -> None:
    many = structures.batch(structures.random_structures(2, 400))
    rng = np.random.default_rng(0)
    score = rng.normal(size=many.frac.shape).astype(np.float32)
    logits = rng.normal(size=(len(score), 30)).astype(np.float32)
    options = {"drift": 0.1, "diffusion": 0.5, "seed": 3, "crystal_ids": np.arange(400), "logits": logits}
    species = np.ones(len(score), np.int32)
    one, other = (langevin_update(*many, species, score, n_threads=n, **options) for n in (1, n_threads))
    assert [a.tobytes() for a in one] == [a.tobytes() for a in other]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_any_instruction_set(isa: str) -> None:
    values = inputs()
    values["noise"] = None  # type: ignore[assignment]
    options = {"seed": 4, "crystal_ids": np.arange(len(CRYSTALS)), "step": 8}
    try:
        other = update(values, isa=isa, **options)
    except DeviceError as error:
        pytest.skip(f"this processor has no {isa}: {error}")
    assert [a.tobytes() for a in other] == [a.tobytes() for a in update(values, **options)]


def test_no_crystals_and_empty_crystals() -> None:
    nothing = np.zeros((0, 3))
    for cells, offsets in ((np.zeros((0, 3, 3)), [0]), (np.eye(3)[None], [0, 0])):
        state = langevin_update(nothing, cells, offsets, [], nothing, drift=1.0, diffusion=1.0, noise=nothing)
        assert state.frac.shape == (0, 3)
        assert not state.status.any()


@pytest.mark.parametrize(("score", "drift"), [([3e30, 1e30, 2e30], 1.0), ([1.0, -1.0, 1.0], 1e300)])
def test_a_step_that_leaves_all_bounds_is_not_taken(score: list[float], drift: float) -> None:
    frac = np.array([[0.3] * 3, [0.6] * 3, [0.2] * 3])
    scores = np.array([[0.0] * 3, score, [0.0] * 3], np.float32)
    state = langevin_update(
        frac, np.eye(3)[None].repeat(2, 0) * 4, [0, 2, 3], [1, 2, 3], scores,
        drift=drift, diffusion=0.0, noise=np.zeros((3, 3), np.float32),
    )  # fmt: skip
    assert state.status.tolist() == [NON_FINITE, 0]
    np.testing.assert_array_equal(state.frac, frac)
