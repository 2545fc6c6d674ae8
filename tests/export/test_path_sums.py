"""Sums over paths under autograd: native code against dense blocks in float64."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")

from druse import radius_graph  # noqa: E402
from druse_export.bundles.reference import random_crystals  # noqa: E402
from druse_export.models.dimenet import DimeNetConfig  # noqa: E402
from druse_export.models.gemnet import GemNetConfig  # noqa: E402
from druse_export.models.geometry import encoder_geometry, score_geometry  # noqa: E402
from druse_export.models.paths import Paths, path_sum, triplet_sum  # noqa: E402


@pytest.fixture(scope="module", params=["union", "none"])
def encoder(request: pytest.FixtureRequest) -> tuple[Paths, "torch.Tensor"]:
    """Half edges, and directed ones."""
    crystals = random_crystals(np.random.default_rng(0), 5)
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=7.0, max_neighbors=9, symmetrise=request.param
    )
    geometry = encoder_geometry(graph, DimeNetConfig())
    return geometry.paths(), geometry.spherical


@pytest.fixture(scope="module")
def decoder() -> Paths:
    crystals = random_crystals(np.random.default_rng(1), 5)
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=9.0, max_neighbors=9, symmetrise="union"
    )
    return score_geometry(graph, GemNetConfig()).paths()


def double(paths: Paths) -> Paths:
    return dataclasses.replace(paths, unit=paths.unit.double())


def compare(function, values: list["torch.Tensor"], native: bool) -> None:  # type: ignore[no-untyped-def]
    """Value and gradients of ``function(exact, *values)`` in float32 and float64."""
    ours = [value.requires_grad_() for value in values]
    twins = [value.detach().double().requires_grad_() for value in values]
    out, twin = function(False, *ours), function(True, *twins)
    assert ("Sum" in type(out.grad_fn).__name__) == native
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    out.backward(pull)
    twin.backward(pull.double())
    for got, expected in [(out, twin), *((a.grad, b.grad) for a, b in zip(ours, twins, strict=True))]:
        assert float(((got - expected).abs().max() / expected.abs().max()).detach()) < 3e-6


@pytest.mark.parametrize(("channels", "native"), [(64, True), (48, True), (12, False)])
def test_path_sum(encoder: tuple[Paths, "torch.Tensor"], channels: int, native: bool) -> None:
    paths, spherical = encoder
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(len(spherical), channels, generator=rng)
    weight = torch.randn(7, 6, channels, generator=rng)

    def function(exact: bool, x: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
        return path_sum(x, weight, spherical.to(x.dtype), double(paths) if exact else paths)

    compare(function, [x, weight], native)


@pytest.mark.parametrize(("channels", "native"), [(64, True), (48, True), (12, False)])
def test_triplet_sum(decoder: Paths, channels: int, native: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    n_half = len(decoder.unit)
    x = torch.randn(2 * n_half, channels, generator=rng)
    radial = torch.randn(n_half, 16, 7, generator=rng)

    def function(exact: bool, x: "torch.Tensor", radial: "torch.Tensor") -> "torch.Tensor":
        return triplet_sum(x, radial, double(decoder) if exact else decoder)

    compare(function, [x, radial], native)


def test_strided_tensors(decoder: Paths) -> None:
    """Views, as a split of a wide product and its gradient are."""
    n_half = len(decoder.unit)
    wide = torch.randn(2 * n_half, 2, 32)
    radial = torch.randn(n_half, 7, 16)
    strided = triplet_sum(wide[:, 1], radial.transpose(1, 2), decoder)
    torch.testing.assert_close(
        strided, triplet_sum(wide[:, 1].contiguous(), radial.transpose(1, 2).contiguous(), decoder)
    )
    x = wide[:, 0].clone().requires_grad_()
    out = triplet_sum(x, radial.transpose(1, 2), decoder)
    (expected,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
    (got,) = torch.autograd.grad(out, x, torch.ones(()).expand_as(out))
    torch.testing.assert_close(got, expected)


def test_under_autocast_the_sums_stay_exact(decoder: Paths) -> None:
    x = torch.randn(2 * len(decoder.unit), 32).bfloat16()
    radial = torch.randn(len(decoder.unit), 16, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = triplet_sum(x, radial, decoder)
    assert torch.equal(out, triplet_sum(x.float(), radial.float(), decoder))


def test_no_edges() -> None:
    nothing = torch.zeros(0, dtype=torch.int32)
    table = torch.zeros((3, 0), dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    paths = Paths(*table, nothing.long(), *table, nothing.long(), nothing, nothing, torch.zeros(0, 3))
    x, weight = torch.zeros(0, 16, requires_grad=True), torch.ones(7, 6, 16, requires_grad=True)
    path_sum(x, weight, torch.zeros(0, 7, 6), paths).sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert triplet_sum(x, torch.zeros(0, 16, 7), paths).shape == (0, 16, 16)
