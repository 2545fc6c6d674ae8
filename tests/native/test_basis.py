"""Radial basis, Legendre blocks and force sums against their float64 twins."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import basis as twin
from reference import structures
from reference.guard import Guard

from druse import DeviceError, Graph, GraphBuffers, InputError, radius_graph
from druse.basis import force_sum, legendre_block, radial_basis

ISAS = pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
ways = pytest.mark.parametrize("symmetrise", ["none", "union"])


def graph_of(symmetrise: str, seed: int = 41, count: int = 6, **options: Any) -> Graph:
    """A batch with real crystals, whose edges are at 180 degrees and other angles that are exact."""
    crystals = [*structures.REAL[:3], *structures.random_structures(seed, count, (1, 8))]
    return radius_graph(*structures.batch(crystals), cutoff=4.5, max_neighbors=12, symmetrise=symmetrise, **options)


def all_units(graph: Graph) -> np.ndarray:
    """Unit vectors as ``in_edge`` numbers them."""
    return np.concatenate([graph.unit, -graph.unit]) if graph.is_half else graph.unit


def radial_error(n_radial: int) -> float:
    """What float32 allows.

    The envelope's terms are up to 35 in size, with a sum of 1 or less: 4e-6. The distance over the cutoff is rounded to
    6e-8, and a Gaussian is at most as steep as 0.61 (n_radial - 1).
    """
    return 4e-6 + 6e-8 * n_radial


# ---- radial basis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [9.0, 7.0, 4.5])
@pytest.mark.parametrize("n_radial", [2, 6, 128, 129])
def test_radial_basis_against_the_twin(cutoff: float, n_radial: int) -> None:
    distance = np.concatenate(
        [np.linspace(0, 1.2 * cutoff, 999), [0.01, cutoff / 3, cutoff, np.nextafter(cutoff, 0), 1e-30, 1e6]]
    ).astype(np.float32)
    ours = radial_basis(distance, cutoff=cutoff, n_radial=n_radial)
    assert np.abs(ours - twin.radial_basis(distance, cutoff, n_radial)).max() <= radial_error(n_radial)


@given(st.lists(st.floats(0, 20, width=32), max_size=40), st.floats(0.5, 15), st.integers(2, 70))
def test_radial_basis_of_any_distance(distance: list[float], cutoff: float, n_radial: int) -> None:
    d = np.array(distance, np.float32)
    ours = radial_basis(d, cutoff=cutoff, n_radial=n_radial)
    assert ours.shape == (len(d), n_radial)
    assert np.abs(ours - twin.radial_basis(d, cutoff, n_radial)).max(initial=0) <= radial_error(n_radial)


def test_radial_basis_vanishes_at_the_cutoff() -> None:
    ours = radial_basis(np.array([6.0, 6.1, 1e9], np.float32), cutoff=6.0)
    assert ours.shape == (3, 128)
    assert not ours.any()


def test_radial_basis_of_unused_places_is_zero() -> None:
    batch = structures.batch(structures.REAL[:2])
    out = GraphBuffers.allocate(len(batch.frac), 400, 60)
    graph = radius_graph(*batch, cutoff=4.5, max_neighbors=12, out=out)
    assert not radial_basis(graph.distance, cutoff=4.5)[graph.n_edges :].any()


# ---- Legendre block -------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("n_spherical", [1, 2, 7, 12])
def test_legendre_block_against_the_twin(symmetrise: str, n_spherical: int) -> None:
    graph = graph_of(symmetrise)
    ours, units = legendre_block(graph, n_spherical=n_spherical), all_units(graph)
    most = graph.in_edge.shape[1]
    assert ours.shape == (graph.n_atoms, most, n_spherical, most)
    for atom, degree in enumerate(graph.degree):
        expected = twin.legendre_block(units[graph.in_edge[atom, :degree]], n_spherical)
        # |P_l'| is at most l (l + 1) / 2, at a cosine of 1
        assert np.abs(ours[atom, :degree, :, :degree] - expected).max(initial=0) <= 1e-7 * (3 + n_spherical**2)
        assert not ours[atom, degree:].any()
        assert not ours[atom, :, :, degree:].any()


@ways
def test_legendre_block_is_symmetric_and_masked(symmetrise: str) -> None:
    graph = graph_of(symmetrise)
    ours = legendre_block(graph)
    np.testing.assert_array_equal(ours, ours.transpose(0, 3, 2, 1))
    real = np.arange(graph.in_edge.shape[1]) < graph.degree[:, None]
    pairs = real[:, :, None] & real[:, None, :] & ~np.eye(graph.in_edge.shape[1], dtype=bool)
    np.testing.assert_array_equal(ours[:, :, 0, :], pairs)
    assert np.abs(ours).max() <= 1 + 1e-5


def test_legendre_block_where_the_degree_capacity_is_short() -> None:
    batch = structures.batch(structures.REAL[:3])
    free = radius_graph(*batch, cutoff=4.5, max_neighbors=12, symmetrise="union")
    out = GraphBuffers.allocate(free.n_atoms, free.n_edges, 5)
    graph = radius_graph(*batch, cutoff=4.5, max_neighbors=12, symmetrise="union", out=out)
    assert graph.degree.min() > 5
    np.testing.assert_array_equal(legendre_block(graph), legendre_block(free)[:, :5, :, :5])
    force = np.random.default_rng(0).normal(size=2 * free.n_edges).astype(np.float32)
    first = graph.in_edge.ravel()
    expected = twin.force_sum(
        np.repeat(np.arange(free.n_atoms), 5), all_units(graph)[first], force[first], free.n_atoms
    )
    np.testing.assert_allclose(force_sum(graph, force), expected, atol=5e-6)


# ---- force sum ------------------------------------------------------------------------------------------------------


@ways
@given(seed=st.integers(0, 1000))
def test_force_sum_against_the_twin(symmetrise: str, seed: int) -> None:
    graph = graph_of(symmetrise, seed, 2)
    force = np.random.default_rng(seed).normal(size=len(graph.slot)).astype(np.float32)
    edges = graph.directed()
    expected = twin.force_sum(edges.dst, edges.unit, force, graph.n_atoms)
    most = int(graph.degree.max(initial=1))
    assert np.abs(force_sum(graph, force) - expected).max() <= most * 2**-23 * np.abs(force).max() * 2


def test_equal_forces_of_a_pair_cancel_over_the_crystal() -> None:
    graph = graph_of("union")
    half = np.random.default_rng(0).normal(size=graph.n_edges).astype(np.float32)
    total = np.add.reduceat(force_sum(graph, np.concatenate([half, half])).astype(np.float64), graph.offsets[:-1])
    np.testing.assert_allclose(total, 0, atol=1e-4)


# ---- the same bytes everywhere --------------------------------------------------------------------------------------


def everything(**options: Any) -> list[bytes]:
    found = []
    for symmetrise in ("none", "union"):
        graph = graph_of(symmetrise)
        force = np.random.default_rng(0).normal(size=len(graph.slot)).astype(np.float32)
        found += [
            radial_basis(graph.distance, cutoff=4.5, **options),
            radial_basis(graph.distance, cutoff=4.5, n_radial=13, **options),
            legendre_block(graph, **options),
            force_sum(graph, force, **options),
        ]
    return [array.tobytes() for array in found]


@ISAS
def test_any_instruction_set(isa: str) -> None:
    try:
        other = everything(isa=isa)
    except DeviceError as error:
        pytest.skip(f"this processor has no {isa}: {error}")
    assert other == everything()


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_any_number_of_threads(n_threads: int) -> None:
    assert everything(n_threads=n_threads) == everything()


@ways
@pytest.mark.parametrize("size", [2, 7, 16, 33])
def test_nothing_is_written_beside_the_output(symmetrise: str, size: int) -> None:
    graph = graph_of(symmetrise)
    degree = graph.in_edge.shape[1]
    force = np.ones(len(graph.slot), np.float32)
    rows = Guard(np.float32, graph.n_edges, size)
    block = Guard(np.float32, graph.n_atoms, degree, size, degree)
    sums = Guard(np.float32, graph.n_atoms, 3)
    assert radial_basis(graph.distance, cutoff=4.5, n_radial=size, out=rows.array) is rows.array
    assert legendre_block(graph, n_spherical=size, out=block.array) is block.array
    assert force_sum(graph, force, out=sums.array) is sums.array
    for guard in (rows, block, sums):
        guard.check()
    np.testing.assert_array_equal(rows.array, radial_basis(graph.distance, cutoff=4.5, n_radial=size))
    np.testing.assert_array_equal(block.array, legendre_block(graph, n_spherical=size))
    np.testing.assert_array_equal(sums.array, force_sum(graph, force))


def test_no_edges_and_no_atoms() -> None:
    lonely = radius_graph(np.zeros((1, 3)), 20 * np.eye(3)[None], [0, 1], cutoff=4.5, max_neighbors=12)
    nothing = radius_graph(np.zeros((0, 3)), np.zeros((0, 3, 3)), [0], cutoff=4.5, max_neighbors=12)
    for graph in (lonely, nothing):
        assert radial_basis(graph.distance, cutoff=4.5).shape == (0, 128)
        assert legendre_block(graph).shape == (graph.n_atoms, 0, 7, 0)
        np.testing.assert_array_equal(force_sum(graph, np.zeros(0, np.float32)), np.zeros((graph.n_atoms, 3)))


def test_a_graph_without_its_incidence_table() -> None:
    graph = graph_of("none", incidence=False)
    with pytest.raises(InputError, match="incidence=True"):
        legendre_block(graph)
    with pytest.raises(InputError, match="incidence=True"):
        force_sum(graph, np.zeros(graph.n_edges, np.float32))
