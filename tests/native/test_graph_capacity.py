"""Arrays of the caller's: what fits, what does not, and that nothing is written beside them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import structures
from reference.compare import crystal_bytes, graph_bytes
from reference.guard import Guard
from reference.structures import BCC, FCC, HCP, PEROVSKITE, ROCK_SALT, Batch

from druse import Graph, GraphBuffers, InputError, _native, radius_graph
from druse.graphs import DEGREE_OVERFLOW, EDGE_OVERFLOW, describe_status

FIVE = (ROCK_SALT, PEROVSKITE, FCC, HCP, BCC)
OPTIONS = {"cutoff": 5.0, "max_neighbors": 12}
ways = pytest.mark.parametrize(
    ("mode", "symmetrise"), [("exact", "none"), ("exact", "union"), ("upstream", "none"), ("upstream", "upstream")]
)


class Guarded:
    """Buffers with a guard around each array."""

    def __init__(self, n_atoms: int, n_edges: int, max_degree: int) -> None:
        self.guards = {
            "src": Guard(np.int32, n_edges),
            "dst": Guard(np.int32, n_edges),
            "image": Guard(np.int32, n_edges, 3),
            "distance": Guard(np.float32, n_edges),
            "unit": Guard(np.float32, n_edges, 3),
            "in_edge": Guard(np.int32, n_atoms, max_degree),
            "slot": Guard(np.int32, 2 * n_edges),
            "degree": Guard(np.int32, n_atoms),
        }
        self.buffers = GraphBuffers(**{name: guard.array for name, guard in self.guards.items()})

    def check(self) -> None:
        for guard in self.guards.values():
            guard.check()


def into(guarded: Guarded, batch: Batch, mode: str, symmetrise: str) -> Graph:
    """The graph in guarded arrays, nothing written beside them."""
    graph = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise, out=guarded.buffers)
    guarded.check()
    assert graph.src is guarded.buffers.src
    return graph


@ways
def test_buffers_that_just_fit(mode: str, symmetrise: str) -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    graph = into(Guarded(free.n_atoms, free.n_edges, int(free.degree.max())), batch, mode, symmetrise)
    expected = graph_bytes(free)
    assert graph_bytes(graph) == expected
    assert (graph.mirror, graph.pad) == (free.mirror, free.pad)


@ways
def test_room_to_spare_holds_edges_without_effect(mode: str, symmetrise: str) -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    n, capacity, most = free.n_edges, free.n_edges + 13, int(free.degree.max()) + 3
    graph = into(Guarded(free.n_atoms, capacity, most), batch, mode, symmetrise)
    assert [crystal_bytes(graph, b) for b in range(5)] == [crystal_bytes(free, b) for b in range(5)]
    assert graph.mirror == (capacity if graph.is_half else 0)
    assert graph.pad == graph.mirror + capacity
    for unused in (graph.src[n:], graph.dst[n:], graph.image[n:], graph.unit[n:]):
        assert not unused.any()
    assert set(graph.distance[n:].tolist()) == {5.0}
    mirrored = graph.in_edge >= graph.mirror if graph.is_half else np.zeros_like(graph.in_edge, bool)
    narrow = np.where(graph.in_edge == graph.pad, free.pad, graph.in_edge - mirrored * (graph.mirror - free.mirror))
    np.testing.assert_array_equal(narrow[:, : free.in_edge.shape[1]], free.in_edge)
    assert set(narrow[:, free.in_edge.shape[1] :].ravel().tolist()) == {free.pad}
    for name in ("src", "dst", "image", "distance", "unit", "id_swap"):
        np.testing.assert_array_equal(getattr(graph.directed(), name), getattr(free.directed(), name))


@ways
def test_edge_capacity_one_short(mode: str, symmetrise: str) -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    guarded = Guarded(free.n_atoms, free.n_edges - 1, int(free.degree.max()))
    graph = into(guarded, batch, mode, symmetrise)
    assert graph.status.tolist() == [0, 0, 0, 0, EDGE_OVERFLOW], "the last crystal does not fit"
    np.testing.assert_array_equal(graph.counts, free.counts)
    assert graph.n_edges == free.counts[:4].sum()
    assert graph.ok.tolist() == [True] * 4 + [False]
    assert graph.describe() == {4: describe_status(EDGE_OVERFLOW)}
    assert [crystal_bytes(graph, b) for b in range(4)] == [crystal_bytes(free, b) for b in range(4)]
    assert not graph.degree[graph.offsets[4] :].any()
    assert set(graph.in_edge[graph.offsets[4] :].ravel().tolist()) == {graph.pad}


@ways
def test_later_crystals_fit_where_a_larger_one_did_not(mode: str, symmetrise: str) -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    assert free.counts[1] == free.counts.max()
    capacity = int(free.counts[[0, 2, 3, 4]].sum())
    assert capacity - free.counts[0] >= free.counts[2:].sum()
    graph = into(Guarded(free.n_atoms, capacity - 1, int(free.degree.max())), batch, mode, symmetrise)
    fits, left = [], capacity - 1
    for count in free.counts.tolist():
        fits.append(count <= left)
        left -= count * fits[-1]
    assert graph.status.tolist() == [0 if fit else EDGE_OVERFLOW for fit in fits]
    assert False in fits[:-1]
    np.testing.assert_array_equal(np.diff(graph.edge_offsets), free.counts * fits)
    for b in np.flatnonzero(fits):
        assert crystal_bytes(graph, b) == crystal_bytes(free, b)


@ways
def test_no_room_at_all(mode: str, symmetrise: str) -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    graph = into(Guarded(free.n_atoms, 0, 0), batch, mode, symmetrise)
    assert graph.status.tolist() == [EDGE_OVERFLOW] * 5
    np.testing.assert_array_equal(graph.counts, free.counts)


@ways
def test_degree_capacity_one_short(mode: str, symmetrise: str) -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    most = int(free.degree.max())
    graph = into(Guarded(free.n_atoms, free.n_edges, most - 1), batch, mode, symmetrise)
    np.testing.assert_array_equal(graph.degree, free.degree)
    np.testing.assert_array_equal(graph.in_edge, free.in_edge[:, : most - 1])
    over = [bool(np.any(free.degree[free.offsets[b] : free.offsets[b + 1]] == most)) for b in range(5)]
    assert graph.status.tolist() == [DEGREE_OVERFLOW if o else 0 for o in over]
    assert graph.ok.tolist() == [not o for o in over]
    atom, k = np.divmod(free.slot, most)
    np.testing.assert_array_equal(graph.slot, np.where(k < most - 1, atom * (most - 1) + k, -1))
    for name in ("src", "dst", "image", "distance", "unit", "counts"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(free, name))


@given(st.integers(0, 200), st.integers(0, 40), st.sampled_from(["none", "upstream", "union"]), st.integers(0, 100))
def test_any_capacity(n_edges: int, max_degree: int, symmetrise: str, seed: int) -> None:
    batch = structures.batch(structures.random_structures(seed, 4, (1, 6)))
    free = radius_graph(*batch, **OPTIONS, symmetrise=symmetrise)
    graph = into(Guarded(free.n_atoms, n_edges, max_degree), batch, "exact", symmetrise)
    np.testing.assert_array_equal(graph.counts, free.counts)
    for b in range(4):
        fits = not graph.status[b] & EDGE_OVERFLOW
        assert np.diff(graph.edge_offsets)[b] == (free.counts[b] if fits else 0)
        if not graph.status[b]:
            assert crystal_bytes(graph, b) == crystal_bytes(free, b)
        atoms = slice(free.offsets[b], free.offsets[b + 1])
        assert bool(graph.status[b] & DEGREE_OVERFLOW) == bool(fits and np.any(free.degree[atoms] > max_degree))


@ways
def test_buffers_are_used_again(mode: str, symmetrise: str) -> None:
    crystals = structures.random_structures(5, 6)
    batch = structures.batch(crystals)
    first = radius_graph(*batch, **OPTIONS, mode=mode, symmetrise=symmetrise)
    guarded = Guarded(first.n_atoms, 2 * first.n_edges, 2 * int(first.degree.max()))
    into(guarded, batch, mode, symmetrise)
    rng = np.random.default_rng(1)
    for step in range(5):
        moved = batch._replace(
            frac=batch.frac + rng.normal(0, 0.1, batch.frac.shape), cells=batch.cells * (1 + step / 9)
        )
        again = into(guarded, moved, mode, symmetrise)
        fresh = into(Guarded(first.n_atoms, 2 * first.n_edges, 2 * int(first.degree.max())), moved, mode, symmetrise)
        assert graph_bytes(again) == graph_bytes(fresh), "nothing of the last graph is left"


def test_allocated_buffers_hold_a_graph() -> None:
    batch = structures.batch(FIVE)
    free = radius_graph(*batch, **OPTIONS)
    buffers = GraphBuffers.allocate(free.n_atoms, free.n_edges, int(free.degree.max()))
    assert graph_bytes(radius_graph(*batch, **OPTIONS, out=buffers)) == graph_bytes(free)


@pytest.mark.parametrize("fault", ["gaps", "read-only", "short", "another type"])
@pytest.mark.usefixtures("as_users_call")
def test_arrays_that_cannot_be_written_are_refused(fault: str) -> None:
    batch = structures.batch(FIVE)
    for field in dataclasses.fields(GraphBuffers):
        buffers = GraphBuffers.allocate(len(batch.frac), 500, 60)
        array = getattr(buffers, field.name)
        if fault == "gaps":
            array = np.repeat(array, 2, axis=0)[::2]
        elif fault == "read-only":
            array.flags.writeable = False
        elif fault == "short":
            array = array[:-1]
        else:
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float64)
        with pytest.raises(InputError, match="`out"):
            radius_graph(*batch, **OPTIONS, symmetrise="union", out=dataclasses.replace(buffers, **{field.name: array}))


def test_the_librarys_own_arrays_have_guards_too() -> None:
    frac, cells, offsets = structures.batch(FIVE)
    n = len(cells)
    guards = [Guard(np.int64, n + 1), Guard(np.int64, n), Guard(np.uint32, n)]
    edge_arrays = [Guard(np.int32, 50), Guard(np.int32, 50), Guard(np.int32, 50, 3), Guard(np.float32, 50)]
    edge_arrays.append(Guard(np.float32, 50, 3))
    edges = _native.Edges(50, *(_native.pointer(guard.array) for guard in (*edge_arrays, *guards)))
    options = _native.GraphOptions(5.0, 1e-3, 12, 0, 0, 0)
    offsets = offsets.astype(np.int64)
    pointers = [_native.pointer(a) for a in (offsets, frac, cells)]
    _native.call("druse_radius_graph", _native.cpu(), n, *pointers, options, edges)
    for guard in (*edge_arrays, *guards):
        guard.check()
    used = int(guards[0].array[-1])
    assert 0 < used <= 50
    assert np.all(edge_arrays[0].array[used:].view(np.uint32) == 0xA5A5A5A5), "unused places are the caller's"
