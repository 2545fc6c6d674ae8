"""Comparing graphs up to what rounding decides: edges within 1e-5 Angstrom of the end of a target's list."""

from typing import Any

import numpy as np

from druse import Graph, radius_graph
from reference.graph import CUTOFF_TOLERANCE, Edge, edge_list, pairs_within, reach_of_targets
from reference.structures import Structure, batch

MARGIN = 1e-5
"""Angstrom."""


def edges_of(graph: Graph, b: int = 0) -> list[Edge]:
    """Stored edges of one crystal of a batch, atoms counted from its first."""
    e, first = slice(graph.edge_offsets[b], graph.edge_offsets[b + 1]), graph.offsets[b]
    return edge_list(graph.src[e] - first, graph.dst[e] - first, graph.image[e])


def check_exact(
    structure: Structure, graph: Graph, b: int, cutoff: float, max_neighbors: int | None, shell_tolerance: float
) -> int:
    """Crystal ``b`` of a directed exact graph against brute force; the number of edges that had to be there."""
    pairs = pairs_within(structure.frac, structure.cell, cutoff + 2 * MARGIN, 0.01 - MARGIN)
    reach = reach_of_targets(pairs, len(structure.frac), cutoff, max_neighbors, shell_tolerance)[pairs.dst]
    needed = (pairs.distance <= reach - MARGIN) & (pairs.distance > 0.01 + MARGIN)
    found = edges_of(graph, b)
    assert set(pairs.edges(needed)) <= set(found), f"{structure.name}: edges are missing"
    place = {edge: p for p, edge in enumerate(pairs.edges())}
    assert set(found) <= place.keys(), f"{structure.name}: edges beyond the cutoff"
    at = np.array([place[edge] for edge in found], np.int64)
    assert len(np.unique(at)) == len(at), f"{structure.name}: an edge twice"
    assert np.all(pairs.distance[at] <= reach[at] + MARGIN), f"{structure.name}: edges beyond the shell"
    e = slice(graph.edge_offsets[b], graph.edge_offsets[b + 1])
    np.testing.assert_allclose(graph.distance[e], pairs.distance[at], rtol=1e-6)
    np.testing.assert_allclose(graph.unit[e], pairs.vector[at] / pairs.distance[at, None], rtol=0, atol=1e-6)
    return int(needed.sum())


def ends_of_lists(graph: Graph, cutoff: float, max_neighbors: int | None, shell_tolerance: float) -> np.ndarray:
    """How far each target of a directed graph looks, read off the graph itself."""
    ends = np.full(graph.n_atoms, cutoff + CUTOFF_TOLERANCE)
    for target in range(graph.n_atoms):
        distance = np.sort(graph.distance[: graph.n_edges][graph.dst[: graph.n_edges] == target])
        if max_neighbors is not None and len(distance) >= max_neighbors:
            ends[target] = min(ends[target], distance[max_neighbors - 1] + shell_tolerance)
    return ends


def assert_same_edges(first: dict[Edge, float], second: dict[Edge, float], ends: np.ndarray) -> None:
    """Equal as sets, but for edges at the end of their target's list; distances equal to float32's rounding."""
    for edge in first.keys() ^ second.keys():
        distance = first.get(edge, second.get(edge, 0.0))
        assert abs(distance - ends[edge[1]]) <= MARGIN or abs(distance - 0.01) <= MARGIN, edge
    both = sorted(first.keys() & second.keys())
    np.testing.assert_allclose([first[e] for e in both], [second[e] for e in both], rtol=1e-6)


def lengths(graph: Graph, b: int = 0) -> dict[Edge, float]:
    """Stored edges of one crystal with their distances."""
    e = slice(graph.edge_offsets[b], graph.edge_offsets[b + 1])
    return dict(zip(edges_of(graph, b), graph.distance[e].tolist(), strict=True))


def graph_of(structure: Structure, **options: Any) -> Graph:
    """The graph of one crystal."""
    return radius_graph(*batch([structure]), **options)


def graph_bytes(graph: Graph) -> dict[str, bytes]:
    """Every array of a graph, to the bit."""
    arrays = {name: value for name, value in vars(graph).items() if isinstance(value, np.ndarray)}
    assert len(arrays) == 12
    return {name: value.tobytes() for name, value in arrays.items()}


def crystal_bytes(graph: Graph, b: int) -> list[bytes]:
    """All that a graph says about one crystal, atoms counted from its first."""
    e, first = slice(graph.edge_offsets[b], graph.edge_offsets[b + 1]), np.int32(graph.offsets[b])
    arrays = (graph.src[e] - first, graph.dst[e] - first, graph.image[e], graph.distance[e], graph.unit[e])
    atoms = slice(graph.offsets[b], graph.offsets[b + 1])
    return [a.tobytes() for a in (*arrays, graph.degree[atoms], graph.counts[b : b + 1], graph.status[b : b + 1])]
