"""Symmetrised edges, mirrors and triplets against the recorded decoder, and the two ways to symmetrise by algebra.

Upstream breaks ties at rank 20 at random. So two comparisons: our search, exempting edges that tie; and upstream's own
choice of edges turned into our graph, exempting nothing.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import structures
from reference.graph import edge_list, half_edges, is_half_edge
from reference.structures import Structure
from reference.upstream import TIE, K, read_decoder, squared_rank

from druse import Graph, radius_graph


class Decoder(NamedTuple):
    """A part of the recording: its arrays, and the squared distance at rank 20 of each atom."""

    arrays: dict[str, np.ndarray]
    last: np.ndarray

    @property
    def crystals(self) -> structures.Batch:
        inputs = (self.arrays[f"inputs/{name}"].astype(np.float64) for name in ("frac_coords", "cells"))
        return structures.Batch(*inputs, np.cumsum([0, *self.arrays["inputs/num_atoms"]]))


@pytest.fixture(scope="module", params=["small", "big"])
def decoder(request: pytest.FixtureRequest, shared: Path) -> Decoder:
    path, prefix = shared / "fixtures" / "decoder_io.npz", f"{request.param}/"
    with np.load(path) as file:
        arrays = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    return Decoder(arrays, np.concatenate([squared_rank(recorded) for recorded in read_decoder(path, request.param)]))


def search(decoder: Decoder) -> Graph:
    return radius_graph(*decoder.crystals, cutoff=9.0, max_neighbors=K, mode="upstream", symmetrise="upstream")


def from_their_choice(decoder: Decoder) -> Graph:
    """The graph of upstream's directed edges that point upwards, as they were recorded before symmetrisation."""
    (src, dst), image = decoder.arrays["out/raw_edge_index"], decoder.arrays["out/raw_to_jimages"]
    upwards = np.array([is_half_edge(edge) for edge in edge_list(src, dst, image)])
    return Graph.from_edges(*decoder.crystals, src[upwards], dst[upwards], image[upwards], half=True)


def places(decoder: Decoder, graph: Graph) -> np.ndarray:
    """Where each of upstream's edges is among our directed edges, known by its ends and its vector; -1: nowhere."""
    edges, arrays = graph.directed(), decoder.arrays
    ours = edges.distance[:, None].astype(np.float64) * edges.unit
    theirs = arrays["out/D_st"][:, None].astype(np.float64) * arrays["out/V_st"]
    place = np.full(len(theirs), -1)
    for e, (src, dst) in enumerate(arrays["out/edge_index"].T):
        same_ends = np.flatnonzero((edges.src == src) & (edges.dst == dst))
        away = np.linalg.norm(ours[same_ends] - theirs[e], axis=1)
        if np.any(away < 1e-3):
            (place[e],) = same_ends[away < 1e-3]
    return place


def compare(decoder: Decoder, graph: Graph, place: np.ndarray) -> None:
    """Everything about the edges that both have."""
    arrays, edges, triplets = decoder.arrays, graph.directed(), graph.triplets()
    both = place >= 0
    assert np.unique(place[both]).size == both.sum()
    distance, unit = (x[place[both]].astype(np.float64) for x in (edges.distance, edges.unit))
    assert np.abs(distance - arrays["out/D_st"][both]).max() <= 2e-6
    assert np.abs(unit - arrays["out/V_st"][both]).max() <= 2e-6
    np.testing.assert_array_equal(edges.id_swap[place[both]], place[arrays["out/id_swap"][both]])

    found = set(zip(triplets.id3_ba.tolist(), triplets.id3_ca.tolist(), strict=True))
    assert len(found) == len(triplets.id3_ba)
    if "out/id3_ba" in arrays:  # recorded for the small part only
        expected = {(place[ba], place[ca]) for ba, ca in zip(arrays["out/id3_ba"], arrays["out/id3_ca"], strict=True)}
        shared_edges = set(place[both].tolist())
        assert {t for t in found if shared_edges.issuperset(t)} == {t for t in expected if -1 not in t}


def test_the_search_gives_upstreams_graph(decoder: Decoder) -> None:
    graph = search(decoder)
    place = places(decoder, graph)
    compare(decoder, graph, place)
    # what only one of us has ties at rank 20 of one of its ends
    theirs, (their_src, their_dst) = np.flatnonzero(place < 0), decoder.arrays["out/edge_index"]
    edges = graph.directed()
    ours = np.setdiff1d(np.arange(len(edges.src)), place)
    assert len(theirs) + len(ours) <= 0.005 * len(place)
    square = np.concatenate([decoder.arrays["out/D_st"][theirs], edges.distance[ours]]).astype(np.float64) ** 2
    ends = np.concatenate([[their_src[theirs], their_dst[theirs]], [edges.src[ours], edges.dst[ours]]], axis=1)
    assert np.all(np.any(np.abs(square - decoder.last[ends]) <= TIE * square, axis=0))


def test_upstreams_choice_gives_upstreams_graph(decoder: Decoder) -> None:
    graph = from_their_choice(decoder)
    place = places(decoder, graph)
    np.testing.assert_array_equal(np.sort(place), np.arange(2 * graph.n_edges))
    compare(decoder, graph, place)
    assert len(graph.triplets().id3_ba) == decoder.arrays["n_triplets"]
    per_crystal = np.searchsorted(graph.offsets, decoder.arrays["out/edge_index"][1], side="right") - 1
    np.testing.assert_array_equal(2 * graph.counts, np.bincount(per_crystal, minlength=graph.n_crystals))
    np.testing.assert_array_equal(2 * graph.counts, decoder.arrays["out/neighbors"])


def test_degrees_exceed_k_after_symmetrisation(decoder: Decoder) -> None:
    degree = np.bincount(decoder.arrays["out/edge_index"][1], minlength=len(decoder.last))
    np.testing.assert_array_equal(from_their_choice(decoder).degree, degree)
    assert degree.max() > K


@given(
    st.lists(structures.structures(max_atoms=16, per_atom=6.0), min_size=1, max_size=3),
    st.sampled_from(["exact", "upstream"]),
    st.sampled_from(["upstream", "union"]),
    st.sampled_from([4, 12, None]),
)
def test_symmetrising_is_an_operation_on_the_directed_list(
    crystals: list[Structure], mode: str, how: str, max_neighbors: int | None
) -> None:
    batch = structures.batch(crystals)
    directed = radius_graph(*batch, cutoff=4.5, max_neighbors=max_neighbors, mode=mode)
    half = radius_graph(*batch, cutoff=4.5, max_neighbors=max_neighbors, mode=mode, symmetrise=how)
    stored = edge_list(half.src, half.dst, half.image)
    assert len(set(stored)) == len(stored) == half.counts.sum()
    assert set(stored) == half_edges(edge_list(directed.src, directed.dst, directed.image), how)
    np.testing.assert_array_equal(half.status, directed.status)


@given(structures.structures(max_atoms=16, per_atom=6.0))
def test_all_neighbours_are_symmetric_already(crystal: Structure) -> None:
    batch = structures.batch([crystal])
    directed = radius_graph(*batch, cutoff=4.5, max_neighbors=None)
    half = radius_graph(*batch, cutoff=4.5, max_neighbors=None, symmetrise="union")
    assert directed.n_edges == 2 * half.n_edges
    assert np.all(directed.directed().id_swap >= 0)


def test_edges_are_sorted_by_crystal_target_and_source() -> None:
    batch = structures.batch(structures.random_structures(7, 20))
    for mode in ("exact", "upstream"):
        graph = radius_graph(*batch, cutoff=6.0, max_neighbors=12, mode=mode)
        order = np.lexsort((graph.src, graph.dst))
        np.testing.assert_array_equal(order, np.arange(graph.n_edges))
        crystal = np.searchsorted(graph.offsets, graph.dst, side="right") - 1
        np.testing.assert_array_equal(np.bincount(crystal, minlength=20), np.diff(graph.edge_offsets))
        np.testing.assert_array_equal(graph.counts, np.diff(graph.edge_offsets))
