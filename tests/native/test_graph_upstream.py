"""Upstream's graph against recordings of upstream's own code, and against the float32 twin where there are none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from reference import structures
from reference.graph import Edge, edge_list, half_edges, pairs_within, upstream_edges
from reference.structures import Structure
from reference.upstream import TIE, K, Recorded, read_batched, read_decoder, read_encoder, read_neighbours, squared_rank

from druse import Graph, radius_graph
from druse.graphs import STOPPED


def split_graph(graph: Graph, b: int) -> list[Edge]:
    """Edges of one crystal of a batch, atoms counted from its first."""
    e = slice(graph.edge_offsets[b], graph.edge_offsets[b + 1])
    first = graph.offsets[b]
    return edge_list(graph.src[e] - first, graph.dst[e] - first, graph.image[e])


def compare(recordings: list[Recorded]) -> tuple[int, int]:
    """All recordings of one cutoff in one batch: edges in all, and edges that differ at a tie at rank K."""
    (cutoff,) = {recorded.cutoff for recorded in recordings}
    graph = radius_graph(
        *structures.batch([r.structure for r in recordings]), cutoff=cutoff, max_neighbors=K, mode="upstream"
    )
    assert not np.any(graph.status & STOPPED)
    exempted = total = 0
    for b, recorded in enumerate(recordings):
        ours, theirs = split_graph(graph, b), recorded.edges
        assert len(ours) == len(theirs), recorded.structure.name
        assert len(set(ours)) == len(ours)
        last = squared_rank(recorded)
        for src, dst, *image in set(ours) ^ set(theirs):
            vector = (recorded.structure.frac[dst] - recorded.structure.frac[src] - image) @ recorded.structure.cell
            assert abs(vector @ vector - last[dst]) <= TIE * last[dst], (recorded.structure.name, src, dst, image)
            exempted += 1
        counts = [np.bincount([edge[1] for edge in edges], minlength=len(last)) for edges in (ours, theirs)]
        np.testing.assert_array_equal(*counts, err_msg=recorded.structure.name)
        total += len(theirs)
    return total, exempted


@pytest.mark.parametrize("cutoff", [9.0, 7.0])
def test_the_162_recorded_cells(shared: Path, cutoff: float) -> None:
    recordings = [r for r in read_neighbours(shared / "fixtures" / "neighbours.npz") if r.cutoff == cutoff]
    assert len(recordings) == 162
    total, exempted = compare(recordings)
    assert exempted <= 0.02 * total, "ties are rare"


def test_a_recorded_batch(shared: Path) -> None:
    total, exempted = compare(read_batched(shared / "fixtures" / "neighbours_batched.npz"))
    assert exempted <= 0.02 * total


def test_the_encoders_recorded_list(shared: Path) -> None:
    recordings = read_encoder(shared / "fixtures" / "encoder_io.npz")
    assert len(recordings) == 17
    total, exempted = compare(recordings)
    assert exempted <= 0.02 * total


def test_the_decoders_recorded_list_before_symmetrisation(shared: Path) -> None:
    total, exempted = compare(read_decoder(shared / "fixtures" / "decoder_io.npz", "small", "big"))
    assert exempted <= 0.005 * total, "only an atom's images on either side can tie here"


def test_distances_of_the_recorded_cells(shared: Path) -> None:
    recordings = [r for r in read_neighbours(shared / "fixtures" / "neighbours.npz") if r.cutoff == 9.0]
    frac, cells, offsets = structures.batch([r.structure for r in recordings])
    graph = radius_graph(frac, cells, offsets, cutoff=9.0, max_neighbors=K, mode="upstream")
    crystal = np.repeat(np.arange(len(cells)), np.diff(graph.edge_offsets))
    vector = np.einsum("ei,eij->ej", frac[graph.dst] - frac[graph.src] - graph.image, cells[crystal])
    distance = np.linalg.norm(vector, axis=1)
    assert np.abs(graph.distance - distance).max() <= 2e-6
    # a vector of an edge this long is as wrong as its ends, float32 numbers of up to 30 Angstrom
    assert (np.abs(graph.unit - vector / distance[:, None]) * distance[:, None]).max() <= 1e-5


@pytest.mark.parametrize("structure", structures.REAL, ids=lambda s: s.name)
@pytest.mark.parametrize("max_neighbors", [1, 12, 20, 1000])
def test_real_crystals_against_the_twin(structure: Structure, max_neighbors: int) -> None:
    check_twin(structure, 7.0, max_neighbors)


@given(structures.structures(max_atoms=24))
def test_any_crystal_against_the_twin(structure: Structure) -> None:
    check_twin(structure, 5.0, K)


def check_twin(structure: Structure, cutoff: float, max_neighbors: int) -> None:
    """Equal to the last tie, for the same operations in float32 give the same bits everywhere."""
    twin = upstream_edges(structure.frac, structure.cell, cutoff, max_neighbors)
    batch = structures.batch([structure])
    graph = radius_graph(*batch, cutoff=cutoff, max_neighbors=max_neighbors, mode="upstream")
    assert split_graph(graph, 0) == twin.edges()
    np.testing.assert_allclose(graph.distance, twin.distance, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(graph.unit * graph.distance[:, None], twin.vector, rtol=0, atol=2e-5)
    for how in ("upstream", "union"):
        half = radius_graph(*batch, cutoff=cutoff, max_neighbors=max_neighbors, mode="upstream", symmetrise=how)
        assert set(split_graph(half, 0)) == half_edges(twin.edges(), how)


def test_only_27_images_are_searched() -> None:
    cube = Structure("1 atom in 2 Angstrom", np.zeros((1, 3)), 2.0 * np.eye(3))
    graph = radius_graph(*structures.batch([cube]), cutoff=6.5, max_neighbors=1000, mode="upstream")
    assert graph.n_edges == 26
    assert len(pairs_within(cube.frac, cube.cell, 6.5).src) > 26
