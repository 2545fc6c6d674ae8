"""Geometry of the networks: fast ways beside slow ones."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")

from scipy import special  # noqa: E402

from druse import basis  # noqa: E402
from druse_export.models.dimenet import DimeNetConfig  # noqa: E402
from druse_export.models.gemnet import GemNetConfig  # noqa: E402
from druse_export.models.geometry import radial_basis, spherical_bessel, spherical_bessel_zeros  # noqa: E402


def test_spherical_bessel_functions_are_those_of_scipy() -> None:
    config = DimeNetConfig()
    distance = np.concatenate([np.random.default_rng(0).uniform(0.1, 7.2, 500), [7.0]]).astype(np.float32)
    d = distance.astype(np.float64) / config.cutoff
    zeros, order = spherical_bessel_zeros(config.n_spherical, config.n_radial), np.arange(config.n_spherical)[:, None]
    norm = math.sqrt(2) / np.abs(special.spherical_jn(order + 1, zeros))
    envelope = np.where(d < 1, 1 / d - 28 * d**5 + 48 * d**6 - 21 * d**7, 0.0)[:, None, None]
    expected = special.spherical_jn(order, zeros * d[:, None, None]) * norm * envelope
    np.testing.assert_allclose(spherical_bessel(distance, config), expected, rtol=1e-6, atol=1e-6)


def test_radial_basis_of_pytorch_is_the_native_one() -> None:
    config = GemNetConfig()
    distance = np.linspace(0.02, 9.1, 700, dtype=np.float32)
    native = basis.radial_basis(distance, cutoff=config.cutoff, n_radial=config.n_radial)
    exact = radial_basis(torch.from_numpy(distance.astype(np.float64)), config).numpy()
    np.testing.assert_allclose(radial_basis(torch.from_numpy(distance), config).numpy(), exact, atol=4e-5)
    np.testing.assert_allclose(native, exact, atol=4e-5)
