"""Exact mode against exhaustive search in float64, and against the neighbour lists of ASE and vesin."""

import ase
import ase.neighborlist
import numpy as np
import pytest
import vesin
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import structures
from reference.compare import check_exact, edges_of, graph_of
from reference.graph import Edge, edge_list
from reference.structures import Structure

from druse import radius_graph
from druse.graphs import SHELL_TOLERANCE, STOPPED


def check_all(crystals: list[Structure], cutoff: float, max_neighbors: int | None) -> None:
    """A batch of crystals, each against brute force."""
    graph = radius_graph(*structures.batch(crystals), cutoff=cutoff, max_neighbors=max_neighbors)
    assert not np.any(graph.status & STOPPED)
    needed = 0
    for b, crystal in enumerate(crystals):
        needed += check_exact(crystal, graph, b, cutoff, max_neighbors, SHELL_TOLERANCE)
    assert needed > 0


@pytest.mark.parametrize(("cutoff", "max_neighbors"), [(7.0, 20), (9.0, 20), (8.0, 12), (5.0, None)])
@pytest.mark.parametrize("crystal", structures.REAL, ids=lambda s: s.name)
def test_real_crystals(crystal: Structure, cutoff: float, max_neighbors: int | None) -> None:
    check_all([crystal], cutoff, max_neighbors)


@pytest.mark.parametrize(("cutoff", "max_neighbors"), [(7.0, 20), (4.0, None)])
def test_random_crystals(cutoff: float, max_neighbors: int | None) -> None:
    check_all(structures.random_structures(1, 60), cutoff, max_neighbors)


@pytest.mark.parametrize("max_neighbors", [20, None])
def test_stress_cells(stress_cells: list[Structure], max_neighbors: int | None) -> None:
    assert len(stress_cells) == 199
    check_all(stress_cells, 6.0, max_neighbors)


def test_materials_project_crystals(mp20_crystals: list[Structure]) -> None:
    assert len(mp20_crystals) >= 150
    check_all(mp20_crystals, 7.0, 20)


@settings(max_examples=200)
@given(
    structures.structures(),
    st.floats(0.5, 6.0),
    st.sampled_from([1, 5, 20, None]),
    st.sampled_from([0.0, 1e-4, 1e-3, 0.2, 1.0]),
)
def test_any_crystal(crystal: Structure, cutoff: float, max_neighbors: int | None, shell_tolerance: float) -> None:
    graph = graph_of(crystal, cutoff=cutoff, max_neighbors=max_neighbors, shell_tolerance=shell_tolerance)
    assert not np.any(graph.status & STOPPED)
    check_exact(crystal, graph, 0, cutoff, max_neighbors, shell_tolerance)


@given(structures.structures(max_atoms=24), st.floats(1.0, 6.0), st.integers(1, 30))
def test_exactly_k(crystal: Structure, cutoff: float, max_neighbors: int) -> None:
    everything = graph_of(crystal, cutoff=cutoff, max_neighbors=None)
    nearest = graph_of(crystal, cutoff=cutoff, max_neighbors=max_neighbors, shell_tolerance=None)
    assert set(edges_of(nearest)) <= set(edges_of(everything))
    np.testing.assert_array_equal(nearest.degree, np.minimum(everything.degree, max_neighbors))
    for atom in range(len(crystal.frac)):
        kept, known = (np.sort(g.distance[g.dst == atom]) for g in (nearest, everything))
        np.testing.assert_array_equal(kept, known[: len(kept)])


@given(structures.structures(max_atoms=32, heights=(1.0, 20.0)), st.floats(1.0, 6.0))
def test_ase_finds_the_same(crystal: Structure, cutoff: float) -> None:
    atoms = ase.Atoms(numbers=np.ones(len(crystal.frac)), cell=crystal.cell, scaled_positions=crystal.frac, pbc=True)
    i, j, shift, distance = ase.neighborlist.neighbor_list("ijSd", atoms, cutoff + 2e-5, self_interaction=False)
    compare(crystal, cutoff, edge_list(j, i, shift), distance)


@given(structures.structures(max_atoms=32, heights=(1.0, 20.0)), st.floats(1.0, 6.0))
def test_vesin_finds_the_same(crystal: Structure, cutoff: float) -> None:
    neighbours = vesin.NeighborList(cutoff=cutoff + 2e-5, full_list=True)
    i, j, shift, distance = neighbours.compute(crystal.frac @ crystal.cell, crystal.cell, True, "ijSd")
    compare(crystal, cutoff, edge_list(j.astype(int), i.astype(int), shift), distance)


def compare(crystal: Structure, cutoff: float, edges: list[Edge], distance: np.ndarray) -> None:
    """Our edges within the cutoff against another library's, which looks 2e-5 Angstrom further."""
    found = set(edges_of(graph_of(crystal, cutoff=cutoff, max_neighbors=None)))
    theirs = dict(zip(edges, distance.tolist(), strict=True))
    assert {edge for edge, d in theirs.items() if 0.01 + 1e-5 < d <= cutoff - 1e-5} <= found
    assert found <= {edge for edge, d in theirs.items() if 0.01 - 1e-5 < d <= cutoff + 1e-5}
