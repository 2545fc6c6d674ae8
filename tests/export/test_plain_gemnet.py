"""The training benchmark's baseline computes what our networks compute, so that the comparison is one of speed."""

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need PyTorch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import train as benchmark  # noqa: E402
from plain.dimenet import PathGraph, load_dimenet, path_graph  # noqa: E402
from plain.gemnet import TripletGraph, gemnet_state, load_gemnet, triplet_graph  # noqa: E402
from plain.triplets import edge_order  # noqa: E402

from druse import Graph, radius_graph  # noqa: E402
from druse_export.models.dimenet import DimeNet, DimeNetConfig, EncoderGeometry  # noqa: E402
from druse_export.models.gemnet import GemNet, GemNetConfig, ScoreGeometry  # noqa: E402
from druse_export.models.geometry import encoder_geometry, score_geometry  # noqa: E402

OFFSETS = np.array([0, 1, 5, 12, 20])
SINGLE, DOUBLE = 2e-5, 1e-11  # of the scale


class Batch(NamedTuple):
    frac: np.ndarray
    cells: np.ndarray
    cart: "torch.Tensor"
    cells_: "torch.Tensor"
    atom_types: "torch.Tensor"

    def graph(self, cutoff: float) -> Graph:
        return radius_graph(
            self.frac, self.cells, OFFSETS, cutoff=cutoff, max_neighbors=20, symmetrise="union", n_threads=1
        )


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Crystals of 1, 4, 7 and 8 atoms; atoms of the last are within a sixth of its cell, so degrees differ widely."""
    rng = np.random.default_rng(0)
    cells = np.eye(3) * np.array([3.0, 4.5, 5.5, 6.5])[:, None, None] + rng.normal(scale=0.4, size=(4, 3, 3))
    frac = rng.random((20, 3))
    frac[12:, 0] /= 6
    cart = np.einsum("ni,nij->nj", frac, np.repeat(cells, np.diff(OFFSETS), axis=0))
    atom_types = torch.from_numpy(rng.integers(1, 95, 20))
    return Batch(frac, cells, torch.from_numpy(cart), torch.from_numpy(cells), atom_types)


@pytest.fixture(scope="module")
def decoder() -> GemNet:
    torch.manual_seed(1)
    model = GemNet(GemNetConfig())
    for factor in model.buffers():
        factor.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def encoder() -> DimeNet:
    torch.manual_seed(2)
    model = DimeNet(DimeNetConfig())
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    return model


def error(got: "torch.Tensor", expected: "torch.Tensor") -> float:
    """Largest difference, relative to the largest expected magnitude."""
    assert got.shape == expected.shape
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def as_type(values: "ScoreGeometry | EncoderGeometry | TripletGraph | PathGraph", dtype: "torch.dtype") -> list:
    return [v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]


def gradients(
    model: "torch.nn.Module", outputs: Iterable["torch.Tensor"]
) -> tuple[list["torch.Tensor"], dict[str, "torch.Tensor"]]:
    """The outputs and, of their sum with fixed random weights, the gradient in every parameter."""
    rng = torch.Generator().manual_seed(3)
    outputs = list(outputs)
    model.zero_grad()
    sum((x * torch.randn(x.shape, generator=rng, dtype=x.dtype)).sum() for x in outputs).backward()
    return outputs, {name: weight.grad.clone() for name, weight in model.named_parameters()}


def check(
    ours: tuple[list["torch.Tensor"], dict[str, "torch.Tensor"]],
    plain: tuple[list["torch.Tensor"], dict[str, "torch.Tensor"]],
    tolerance: float,
) -> None:
    for x, expected in zip(plain[0], ours[0], strict=True):
        assert error(x, expected) < tolerance
    assert plain[1].keys() == ours[1].keys()
    for name, expected in ours[1].items():
        assert error(plain[1][name], expected) < 10 * tolerance, name


def test_decoder(batch: Batch, decoder: GemNet) -> None:
    """Score, logits and gradients, each side from its own geometry in float32."""
    plain, config = load_gemnet(decoder), decoder.config
    graph = batch.graph(config.cutoff)
    geometry = score_geometry(graph, config)
    triplets = triplet_graph(graph, batch.cart.float(), batch.cells_.float(), config)
    z = torch.randn(4, config.latent + config.time, generator=torch.Generator().manual_seed(4))
    ours, grads = gradients(decoder, decoder(z, batch.atom_types, geometry))
    check((ours, gemnet_state(grads)), gradients(plain, plain(z, batch.atom_types, triplets)), SINGLE)


def test_decoder_in_float64(batch: Batch, decoder: GemNet) -> None:
    """The networks alone: the baseline takes its angles and radial basis from our geometry."""
    config = decoder.config
    graph = batch.graph(config.cutoff)
    geometry = ScoreGeometry(*as_type(score_geometry(graph, config), torch.float64))
    triplets = triplet_graph(graph, batch.cart, batch.cells_, config)
    order = torch.from_numpy(edge_order(graph))
    place = geometry.slot[order] % geometry.in_edge.shape[1]
    ba, ca = triplets.id3_ba, triplets.id3_ca
    normal = ((2 * torch.arange(config.n_spherical, dtype=torch.float64) + 1) / (4 * torch.pi)).sqrt()
    angular = geometry.paths().legendre(config.n_spherical)[triplets.dst[ca], place[ca], :, place[ba]] * normal
    radial, unit = geometry.radial.repeat(2, 1)[order], torch.cat([geometry.unit, -geometry.unit])[order]
    for own, shared in ((triplets.angular, angular), (triplets.radial, radial), (triplets.unit, unit)):
        assert error(own, shared) < SINGLE
    triplets = triplets._replace(angular=angular, radial=radial, unit=unit)
    ours, plain = (model.double() for model in (copy.deepcopy(decoder), load_gemnet(decoder)))
    z = torch.randn(4, config.latent + config.time, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    outputs, grads = gradients(ours, ours(z, batch.atom_types, geometry))
    check((outputs, gemnet_state(grads)), gradients(plain, plain(z, batch.atom_types, triplets)), DOUBLE)


def test_encoder(batch: Batch, encoder: DimeNet) -> None:
    """In float32; not the baseline's Bessel functions, whose recursion loses digits between atoms that nearly touch."""
    plain, config = load_dimenet(encoder), encoder.config
    graph = batch.graph(config.cutoff)
    paths = PathGraph(*as_type(path_graph(graph, batch.cart, batch.cells_, config), torch.float32))
    geometry = encoder_geometry(graph, config)
    ours = gradients(encoder, [encoder(batch.atom_types, geometry)])
    check(ours, gradients(plain, [plain(batch.atom_types, paths)]), SINGLE)


def test_encoder_in_float64(batch: Batch, encoder: DimeNet) -> None:
    config = encoder.config
    graph = batch.graph(config.cutoff)
    geometry = EncoderGeometry(*as_type(encoder_geometry(graph, config), torch.float64))
    paths = path_graph(graph, batch.cart, batch.cells_, config)
    order = torch.from_numpy(edge_order(graph))
    in_place = torch.zeros_like(order)
    atom, column = geometry.in_valid.nonzero().T
    in_place[geometry.in_edge[atom, column].long()] = column
    out_place = geometry.out_slot % geometry.out_edge.shape[1]
    ji, kj = order[paths.ji], order[paths.kj]
    normal = ((2 * torch.arange(config.n_spherical, dtype=torch.float64) + 1) / (4 * torch.pi)).sqrt()
    angular = geometry.paths().legendre(config.n_spherical)[geometry.src[ji], out_place[ji], :, in_place[kj]] * normal
    spherical = (geometry.spherical[kj] * angular[:, :, None]).flatten(1)
    distance = geometry.distance[order]
    assert error(paths.spherical, spherical) < SINGLE
    assert error(paths.distance, distance) < SINGLE
    paths = paths._replace(spherical=spherical, distance=distance)
    ours, plain = (model.double() for model in (copy.deepcopy(encoder), load_dimenet(encoder)))
    check(
        gradients(ours, [ours(batch.atom_types, geometry)]),
        gradients(plain, [plain(batch.atom_types, paths)]),
        DOUBLE,
    )


def test_losses_of_a_step() -> None:
    """The benchmark's two sides, from crystals to every term of the loss."""
    contest = benchmark.Contest(benchmark.random_table(3))
    assert benchmark.disagreement(contest) < SINGLE
