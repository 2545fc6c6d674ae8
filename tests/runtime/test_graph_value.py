"""The `Graph` itself: incidence, mirrors, triplets, edges found elsewhere, what it says about its crystals."""

import dataclasses
import itertools

import ase
import ase.neighborlist
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import structures
from reference.compare import graph_bytes
from reference.structures import FCC, PEROVSKITE, ROCK_SALT, Batch, Structure

from druse import Graph, InputError, radius_graph
from druse.graphs import DEGREE_OVERFLOW, EDGE_OVERFLOW, NON_FINITE, SINGULAR, STOPPED, describe_status

CRYSTALS = (ROCK_SALT, PEROVSKITE, FCC)
ways = pytest.mark.parametrize("symmetrise", ["none", "upstream", "union"])


@pytest.fixture(scope="module")
def batch() -> Batch:
    return structures.batch([*CRYSTALS, *structures.random_structures(21, 12)])


def built(batch: Batch, symmetrise: str, **options: bool) -> Graph:
    return radius_graph(*batch, cutoff=5.0, max_neighbors=12, symmetrise=symmetrise, **options)


def incoming(graph: Graph) -> list[list[int]]:
    """For each atom the directed edges into it, numbered as in ``in_edge``, an edge before its mirror."""
    found: list[list[int]] = [[] for _ in range(graph.n_atoms)]
    for e in range(graph.n_edges):
        found[graph.dst[e]].append(e)
        if graph.is_half:
            found[graph.src[e]].append(e + graph.mirror)
    return found


# ---- incidence ------------------------------------------------------------------------------------------------------


@ways
def test_incidence_lists_every_edge_once(batch: Batch, symmetrise: str) -> None:
    graph = built(batch, symmetrise)
    expected = incoming(graph)
    assert graph.degree.tolist() == [len(edges) for edges in expected]
    assert graph.in_edge.shape == (graph.n_atoms, max(map(len, expected)))
    for atom, edges in enumerate(expected):
        assert graph.in_edge[atom].tolist() == edges + [graph.pad] * (graph.in_edge.shape[1] - len(edges))
    assert graph.pad == len(graph.slot) == graph.mirror + graph.n_edges


@ways
def test_slot_is_the_inverse_of_in_edge(batch: Batch, symmetrise: str) -> None:
    graph = built(batch, symmetrise)
    np.testing.assert_array_equal(graph.in_edge.ravel()[graph.slot], np.arange(len(graph.slot)))
    np.testing.assert_array_equal(graph.slot // graph.in_edge.shape[1], graph.directed().dst)


@ways
def test_without_incidence(batch: Batch, symmetrise: str) -> None:
    full, bare = built(batch, symmetrise), built(batch, symmetrise, incidence=False)
    assert (bare.in_edge.size, bare.slot.size, bare.degree.size) == (0, 0, 0)
    for name in ("src", "dst", "image", "distance", "unit", "counts", "status", "edge_offsets"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(full, name))
    assert (bare.mirror, bare.pad) == (full.mirror, full.pad)


# ---- directed edges and triplets ------------------------------------------------------------------------------------


@ways
def test_directed_edges_have_the_geometry_they_claim(batch: Batch, symmetrise: str) -> None:
    edges = built(batch, symmetrise).directed()
    frac, cells, offsets = batch
    cell = cells[np.searchsorted(offsets, edges.dst, side="right") - 1]
    vector = np.einsum("ei,eij->ej", frac[edges.dst] - frac[edges.src] - edges.image, cell)
    length = np.linalg.norm(vector, axis=1)
    np.testing.assert_allclose(edges.distance, length, rtol=1e-6)
    np.testing.assert_allclose(edges.unit, vector / length[:, None], atol=1e-6)


@ways
def test_id_swap_is_the_same_pair_from_its_other_end(batch: Batch, symmetrise: str) -> None:
    edges = built(batch, symmetrise).directed()
    has = edges.id_swap >= 0
    if symmetrise != "none":
        assert has.all()
        np.testing.assert_array_equal(edges.id_swap[edges.id_swap], np.arange(len(edges.src)))
    back = edges.id_swap[has]
    np.testing.assert_array_equal(edges.src[has], edges.dst[back])
    np.testing.assert_array_equal(edges.dst[has], edges.src[back])
    np.testing.assert_array_equal(edges.image[has], -edges.image[back])
    np.testing.assert_allclose(edges.distance[has], edges.distance[back], rtol=1e-6)
    np.testing.assert_allclose(edges.unit[has], -edges.unit[back], atol=1e-6)


def test_an_edge_that_only_one_end_chose_has_no_mirror(batch: Batch) -> None:
    edges = built(batch, "none").directed()
    known = set(zip(edges.src.tolist(), edges.dst.tolist(), *edges.image.T.tolist(), strict=True))
    lonely = [(d, s, -a, -b, -c) not in known for s, d, a, b, c in known]
    assert 0 < sum(lonely) == np.sum(edges.id_swap < 0)


@ways
def test_triplets_are_pairs_of_edges_into_one_atom(batch: Batch, symmetrise: str) -> None:
    graph = built(batch, symmetrise)
    triplets, dst = graph.triplets(), graph.directed().dst
    into = [np.flatnonzero(dst == atom).tolist() for atom in range(graph.n_atoms)]
    expected = {pair for edges in into for pair in itertools.permutations(edges, 2)}
    found = list(zip(triplets.id3_ba.tolist(), triplets.id3_ca.tolist(), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected


# ---- edges found elsewhere ------------------------------------------------------------------------------------------


@ways
def test_from_edges_gives_back_a_graph(batch: Batch, symmetrise: str) -> None:
    graph = built(batch, symmetrise)
    again = Graph.from_edges(*batch, graph.src, graph.dst, graph.image, half=graph.is_half)
    for name in ("offsets", "edge_offsets", "src", "dst", "image", "in_edge", "degree", "slot", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(graph, name))
    np.testing.assert_allclose(again.distance, graph.distance, rtol=3e-7)
    np.testing.assert_allclose(again.unit, graph.unit, atol=3e-7)
    assert (again.mirror, again.pad) == (graph.mirror, graph.pad)
    assert not again.status.any()


def test_from_edges_of_ase() -> None:
    crystals = structures.random_structures(4, 5)
    batch = structures.batch(crystals)
    src, dst, image = [], [], []
    for first, crystal in zip(batch.offsets, crystals, strict=False):
        atoms = ase.Atoms(
            numbers=np.ones(len(crystal.frac)), cell=crystal.cell, scaled_positions=crystal.frac, pbc=True
        )
        i, j, shift = ase.neighborlist.neighbor_list("ijS", atoms, 4.0)
        dst, src, image = [*dst, *(i + first)], [*src, *(j + first)], [*image, *shift]
    theirs = Graph.from_edges(*batch, src, dst, image)
    ours = radius_graph(*batch, cutoff=4.0, max_neighbors=None)
    np.testing.assert_array_equal(theirs.degree, ours.degree)
    np.testing.assert_allclose(np.sort(theirs.distance), np.sort(ours.distance), rtol=1e-6)
    np.testing.assert_array_equal(theirs.counts, ours.counts)


def test_from_no_edges(batch: Batch) -> None:
    none = np.zeros(0, np.int32)
    graph = Graph.from_edges(*batch, none, none, np.zeros((0, 3), np.int32))
    assert graph.n_edges == 0
    assert not graph.degree.any()
    assert not graph.counts.any()


@pytest.mark.parametrize(
    ("src", "dst", "image", "message"),
    [
        ([2], [0], [[0, 0, 0]], "`src` must index the 2 atoms, got 2 to 2"),
        ([0], [-1], [[0, 0, 0]], "`dst` must index the 2 atoms, got -1 to -1"),
        ([0, 1], [1], [[0, 0, 0]], r"`dst` must have shape \[2\], got \[1\]"),
        ([0], [1], [[0, 0]], r"`image` must have shape \[1, 3\], got \[1, 2\]"),
        ([0], [1], [[0.5, 0, 0]], "`image` must hold integers"),
        ([0], [0], [[0, 0, 0]], "edge 0 has no length"),
    ],
)
def test_from_edges_that_cannot_be(src: list[int], dst: list[int], image: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Graph.from_edges(*structures.batch([ROCK_SALT]), src, dst, image)


def test_from_edges_between_crystals_and_out_of_order() -> None:
    batch = structures.batch([ROCK_SALT, ROCK_SALT])
    zero = np.zeros((2, 3), int)
    with pytest.raises(InputError, match="same crystal"):
        Graph.from_edges(*batch, [0, 2], [1, 1], zero)
    with pytest.raises(InputError, match="sorted by crystal"):
        Graph.from_edges(*batch, [2, 0], [3, 1], zero)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_from_edges_of_crystals_that_are_not_finite(value: float) -> None:
    frac, cells, offsets = structures.batch([ROCK_SALT])
    for name, broken in (("frac", (np.full_like(frac, value), cells)), ("cells", (frac, np.full_like(cells, value)))):
        with pytest.raises(InputError, match=f"`{name}` must be finite"):
            Graph.from_edges(*broken, offsets, [0], [1], [[0, 0, 0]])


@given(st.integers(0, 1000))
def test_from_half_edges_in_any_order_within_a_crystal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = structures.batch(structures.random_structures(seed, 1))
    graph = radius_graph(*batch, cutoff=4.5, max_neighbors=None, symmetrise="union")
    order = rng.permutation(graph.n_edges)
    again = Graph.from_edges(*batch, graph.src[order], graph.dst[order], graph.image[order], half=True)
    np.testing.assert_array_equal(again.degree, graph.degree)
    np.testing.assert_array_equal(again.in_edge.ravel()[again.slot], np.arange(2 * graph.n_edges))
    assert len(again.triplets().id3_ba) == len(graph.triplets().id3_ba)


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_describe_names_the_crystals_that_need_words() -> None:
    flat = Structure("flat", np.zeros((1, 3)), np.zeros((3, 3)))
    lost = Structure("not finite", np.full((1, 3), np.nan), np.eye(3))
    graph = radius_graph(*structures.batch([ROCK_SALT, flat, FCC, lost]), cutoff=5.0, max_neighbors=12)
    assert graph.describe() == {1: describe_status(SINGULAR), 3: describe_status(NON_FINITE)}
    assert graph.ok.tolist() == [True, False, True, False]
    assert "flat" in graph.describe()[1][0]


def test_every_status_bit_has_its_own_words() -> None:
    bits = [1 << k for k in (0, 1, 2, 3, 4, 8, 9, 10)]
    words = [describe_status(bit) for bit in bits]
    assert all(len(text) == 1 for text in words)
    assert len({text[0] for text in words}) == len(bits)
    assert describe_status(sum(bits)) == [text[0] for text in words]
    assert describe_status(0) == []
    assert EDGE_OVERFLOW & STOPPED
    assert DEGREE_OVERFLOW & STOPPED


def test_a_graph_is_a_value(batch: Batch) -> None:
    frac, cells, offsets = (array.copy() for array in batch)
    graph = radius_graph(frac, cells, offsets, cutoff=5.0, max_neighbors=12)
    for array, given_ in zip((frac, cells, offsets), batch, strict=True):
        np.testing.assert_array_equal(array, given_)
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.mirror = 1  # type: ignore[misc]
    before = graph_bytes(graph)
    radius_graph(frac * 0.9, cells, offsets, cutoff=5.0, max_neighbors=12)
    assert graph_bytes(graph) == before
    assert (graph.n_crystals, graph.n_atoms) == (len(cells), len(frac))


def test_input_of_other_kinds() -> None:
    """Lists, float32, Fortran order and integers are read as what they say."""
    frac, cells, offsets = structures.batch([ROCK_SALT])
    first = graph_bytes(radius_graph(frac, cells, offsets, cutoff=5.0, max_neighbors=12))
    for other in (
        (frac.tolist(), cells.tolist(), offsets.tolist()),
        (np.asfortranarray(frac), np.asfortranarray(cells), offsets.astype(np.int32)),
        (frac.astype(np.float32), cells[:, ::-1][:, ::-1], offsets.astype(np.uint8)),
    ):
        assert graph_bytes(radius_graph(*other, cutoff=5.0, max_neighbors=12)) == first
