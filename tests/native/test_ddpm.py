"""The DDPM update (eq. 4) against the float64 twin and the coefficients that upstream's prior recorded."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import updates

from druse import DeviceError
from druse.graphs import NON_FINITE
from druse.noise import Purpose, normal
from druse.sampling import ddpm_update

BETAS = np.linspace(0.001, 0.02, 300)
ALPHAS = 1 - BETAS
ALPHA_BARS = np.cumprod(ALPHAS)


def draws(rows: int = 5, width: int = 256, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z, eps, noise = rng.normal(size=(3, rows, width)).astype(np.float32)
    return z, eps, noise


@given(st.floats(0.5, 1.0), st.floats(0.0, 0.999), st.floats(0, 2), st.integers(1, 40), st.integers(1, 6))
def test_against_the_twin(alpha: float, alpha_bar: float, noise_scale: float, width: int, rows: int) -> None:
    z, eps, noise = draws(rows, width)
    ours, status = ddpm_update(z, eps, alpha=alpha, alpha_bar=alpha_bar, noise_scale=noise_scale, noise=noise)
    expected = updates.ddpm(z, eps, noise, alpha, alpha_bar, noise_scale)
    # float32: three products and two sums
    size = (np.abs(z) + np.abs(eps) / np.sqrt(1 - alpha_bar)) / np.sqrt(alpha) + noise_scale * np.abs(noise)
    assert np.all(np.abs(ours - expected) <= 4 * 2**-24 * size)
    assert not status.any()


def test_upstreams_coefficients(shared: Path) -> None:
    """``prior_io``: one latent each for the coefficient of z, of eps and of the noise, at every step."""
    with np.load(shared / "fixtures" / "prior_io.npz") as file:
        betas, variance, recip, root = (
            file[name].astype(np.float64)
            for name in ("betas", "posterior_variance", "sqrt_recip_alphas", "sqrt_one_minus_alphas_cumprod")
        )
    np.testing.assert_allclose(betas, BETAS, rtol=1e-6)
    z, eps, noise = np.eye(3, dtype=np.float32)[:, None]
    for t in range(300):
        (ours,), _ = ddpm_update(
            z, eps, alpha=1 - betas[t], alpha_bar=float(np.prod(1 - betas[: t + 1])),
            noise_scale=float(np.sqrt(variance[t])), noise=noise,
        )  # fmt: skip
        expected = [recip[t], -recip[t] * betas[t] / root[t], np.sqrt(variance[t])]
        np.testing.assert_allclose(ours, expected, rtol=2e-5)


def test_upstreams_recorded_call(shared: Path) -> None:
    """The update of ``z0`` with the noise that upstream's prior predicted, by upstream's coefficients in float64."""
    with np.load(shared / "fixtures" / "prior_io.npz") as file:
        recorded = {name: file[name] for name in file.files}
    for prior in ("default", "full"):
        for row, t in enumerate(recorded[f"{prior}/t"]):
            z, eps = recorded["z0"][row : row + 1], recorded[f"{prior}/eps"][row : row + 1]
            betas = recorded["betas"].astype(np.float64)
            ours, _ = ddpm_update(
                z, eps, alpha=1 - betas[t], alpha_bar=float(np.prod(1 - betas[: t + 1])), noise_scale=0.0
            )
            scale, root = (recorded[n][t] for n in ("sqrt_recip_alphas", "sqrt_one_minus_alphas_cumprod"))
            np.testing.assert_allclose(ours, scale * (z - betas[t] / float(root) * eps), rtol=2e-6, atol=2e-6)


def test_drawn_noise_is_the_named_noise() -> None:
    z, eps, _ = draws(4, 37)
    ids = np.array([3, 1, 2**33, 0], np.uint64)
    options = {"alpha": 0.99, "alpha_bar": 0.5, "noise_scale": 0.3}
    own, _ = ddpm_update(z, eps, **options, seed=8, crystal_ids=ids, step=41)
    drawn = normal(8, Purpose.LATENT_STEP, 41, ids, width=37)
    given_, _ = ddpm_update(z, eps, **options, noise=drawn)
    assert own.tobytes() == given_.tobytes()


def test_a_latent_whose_eps_is_not_finite_keeps_its_value() -> None:
    z, eps, noise = draws()
    options = {"alpha": 0.99, "alpha_bar": 0.5, "noise_scale": 0.3, "noise": noise}
    expected, _ = ddpm_update(z, eps, **options)
    for value in (np.nan, np.inf, -np.inf):
        broken = eps.copy()
        broken[2, 255] = value
        ours, status = ddpm_update(z, broken, **options)
        assert status.tolist() == [0, 0, NON_FINITE, 0, 0]
        np.testing.assert_array_equal(ours[2], z[2])
        others = [0, 1, 3, 4]
        assert ours[others].tobytes() == expected[others].tobytes()


def test_in_place_and_not() -> None:
    z, eps, noise = draws()
    before = z.copy()
    options = {"alpha": 0.99, "alpha_bar": 0.5, "noise_scale": 0.3, "noise": noise}
    expected, _ = ddpm_update(z, eps, **options)
    np.testing.assert_array_equal(z, before)
    ours, _ = ddpm_update(z, eps, **options, in_place=True)
    assert ours is z
    np.testing.assert_array_equal(z, expected)


def test_latents_do_not_depend_on_the_batch() -> None:
    z, eps, _ = draws(30, 19)
    options = {"alpha": 0.99, "alpha_bar": 0.5, "noise_scale": 0.3, "seed": 1}
    whole, _ = ddpm_update(z, eps, **options, crystal_ids=np.arange(30))
    for n_threads in (2, 4, 0):
        other, _ = ddpm_update(z, eps, **options, crystal_ids=np.arange(30), n_threads=n_threads)
        assert other.tobytes() == whole.tobytes()
    parts = [ddpm_update(z[b : b + 1], eps[b : b + 1], **options, crystal_ids=[b])[0] for b in range(30)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("width", [1, 15, 256])
def test_any_instruction_set(isa: str, width: int) -> None:
    z, eps, noise = draws(5, width)
    options = {"alpha": 0.99, "alpha_bar": 0.5, "noise_scale": 0.3, "noise": noise}
    try:
        other, _ = ddpm_update(z, eps, **options, isa=isa)
    except DeviceError as error:
        pytest.skip(f"this processor has no {isa}: {error}")
    assert other.tobytes() == ddpm_update(z, eps, **options)[0].tobytes()


def test_a_chain_from_noise_with_a_perfect_network_is_the_data() -> None:
    """If every latent of the data is one point, the best eps is known; 300 steps then lead to that point."""
    goal = np.linspace(-2, 2, 256)
    z = normal(5, Purpose.LATENT_START, 0, np.arange(8), width=256)
    for t in range(299, -1, -1):
        eps = (z - np.sqrt(ALPHA_BARS[t]) * goal) / np.sqrt(1 - ALPHA_BARS[t])
        before = ALPHA_BARS[t - 1] if t else 1.0
        scale = float(np.sqrt(BETAS[t] * (1 - before) / (1 - ALPHA_BARS[t])))
        z, status = ddpm_update(
            z, eps.astype(np.float32), alpha=ALPHAS[t], alpha_bar=ALPHA_BARS[t], noise_scale=scale,
            seed=5, crystal_ids=np.arange(8), step=t,
        )  # fmt: skip
        assert not status.any()
    np.testing.assert_allclose(z, np.broadcast_to(goal, z.shape), atol=1e-4)


@pytest.mark.parametrize("width", [4, 600])
def test_an_update_that_overflows_is_not_taken(width: int) -> None:
    z = np.ones((2, width), np.float32)
    z[0, -1] = 3e38
    updated, status = ddpm_update(z, np.zeros_like(z), alpha=0.01, alpha_bar=0.5, noise_scale=0.0)
    assert status.tolist() == [NON_FINITE, 0]
    np.testing.assert_array_equal(updated[0], z[0])
    np.testing.assert_allclose(updated[1], 10.0, rtol=1e-6)
