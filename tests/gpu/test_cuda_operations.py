"""Noise, updates and decoder geometry on a CUDA device: the CPU's bytes."""

import itertools

import numpy as np
import pytest
from operations import (
    add_gumbel,
    advance,
    combine,
    ddpm,
    differences,
    draws,
    force_sum,
    langevin,
    legendre,
    pad_graph,
    radial_basis,
    random_batch,
    tables,
    troubled,
)

pytestmark = pytest.mark.gpu

flags = pytest.mark.parametrize(("first", "second", "third"), list(itertools.product((False, True), repeat=3)))


@pytest.mark.parametrize("kind", ["normal", "uniform", "gumbel"])
@pytest.mark.parametrize("width", [1, 3, 4, 101, 256, 5000])
def test_draws(kind: str, width: int) -> None:
    assert differences(draws, kind, None, 33, width) == []
    offsets = np.array([0, 3, 3, 20, 21, 300], np.int64)
    assert differences(draws, kind, offsets, 5, width) == []
    assert differences(draws, kind, np.zeros(1, np.int64), 0, width) == []


def test_many_draws() -> None:
    """A million Box-Muller pairs and Gumbel numbers: logarithms, roots and cosines in every binade."""
    for kind in ("normal", "gumbel"):
        assert differences(draws, kind, None, 64, 1 << 15) == []


def test_what_a_sampler_keeps_in_place() -> None:
    crystals = random_batch(24, 40)
    for width in (1, 5, 100):
        assert differences(add_gumbel, crystals.offsets, crystals.n_crystals, width) == []
    for count in (0, 1, 1000):
        assert differences(combine, count) == []
        assert differences(combine, count, two=False) == []
        assert differences(advance, count) == []


@pytest.mark.parametrize(("capacity", "width"), [(8000, 40), (500, 40), (8000, 5)])
def test_pad_graph(capacity: int, width: int) -> None:
    assert differences(pad_graph, random_batch(25, 40), capacity=capacity, width=width) == []


@flags
@pytest.mark.parametrize("n_species", [1, 31, 100])
def test_langevin(first: bool, second: bool, third: bool, n_species: int) -> None:
    crystals = random_batch(21, 60, (0, 20))
    options = {"given_noise": first, "allowed": second, "spoil": third, "n_species": n_species}
    assert differences(langevin, crystals, **options) == []
    assert differences(langevin, crystals, **options, logits=False) == []


def test_langevin_of_large_and_troubled_crystals() -> None:
    for spoil in (False, True):
        assert differences(langevin, random_batch(22, 5, (60, 700)), spoil=spoil) == []
    assert differences(langevin, troubled()) == []


@pytest.mark.parametrize("width", [1, 3, 64, 256, 1027])
@pytest.mark.parametrize(("given", "spoil"), list(itertools.product((False, True), repeat=2)))
def test_ddpm(width: int, given: bool, spoil: bool) -> None:
    for n_rows in (0, 1, 50):
        assert differences(ddpm, n_rows, width, given_noise=given, spoil=spoil) == []


@pytest.mark.parametrize("n_radial", [2, 6, 128, 129])
@pytest.mark.parametrize("n_edges", [0, 1, 1000])
def test_radial_basis(n_edges: int, n_radial: int) -> None:
    assert differences(radial_basis, n_edges, n_radial) == []


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("width", [0, 1, 5, 32, 40, 63])
def test_legendre_and_force_sum(half: bool, width: int) -> None:
    graph, table = tables(random_batch(23, 30), half=half, width=width)
    for n_spherical in (1, 2, 7, 9):
        assert differences(legendre, graph, table, half=half, n_spherical=n_spherical) == []
    assert differences(force_sum, graph, table, half=half) == []
