"""What keeps a sampler's state in place, against the functions that take and give arrays."""

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from druse import Crystals, _native
from druse._device import HostDevice
from druse._graph import DEGREE_OVERFLOW, EDGE_OVERFLOW, STOPPED
from druse._score import Workspace, decoder_inputs
from druse.bundle import GraphSpec
from druse.graphs import radius_graph
from druse.noise import Purpose, gumbel
from druse.sampling import langevin_update

SPEC = GraphSpec(mode="exact", symmetrise="union", cutoff=6.0, max_neighbors=8, n_radial=16, n_spherical=3)
CPU = _native.cpu(1)


def crystals(seed: int = 0, n: int = 5) -> Crystals:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, n)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    cells = 4.0 * np.eye(3) + rng.uniform(-0.5, 0.5, (n, 3, 3))
    species = rng.integers(1, 9, offsets[-1]).astype(np.int32)
    return Crystals(rng.random((offsets[-1], 3)), cells, offsets, species)


class Padded:
    """A batch's graph, made up to a fixed shape as a bucket does it."""

    def __init__(self, batch: Crystals, n_crystals: int, n_atoms: int, n_edges: int, degree: int) -> None:
        some = len(batch)
        self.shape = n_crystals, n_atoms, n_edges, degree
        offsets = np.full(n_crystals + 1, len(batch.frac), np.int64)
        offsets[: some + 1] = batch.offsets
        cells = np.tile(np.eye(3), (n_crystals, 1, 1))
        cells[:some] = batch.cells
        frac = np.zeros((n_atoms, 3))
        frac[: len(batch.frac)] = batch.frac
        junk = np.full
        self.src, self.dst = junk(n_edges, -7, np.int32), junk(n_edges, -7, np.int32)
        self.image, self.unit = np.zeros((n_edges, 3), np.int32), np.zeros((n_edges, 3), np.float32)
        self.distance = junk(n_edges, np.nan, np.float32)
        self.in_edge, self.valid = junk((n_atoms, degree), -7, np.int32), junk((n_atoms, degree), 7, np.float32)
        self.degree, self.slot = junk(n_atoms, -7, np.int32), junk((2, n_edges), -7, np.int32)
        self.edge_offsets, counts = np.zeros(n_crystals + 1, np.int64), np.zeros(n_crystals, np.int64)
        self.status, self.met = np.zeros(n_crystals, np.uint32), np.zeros(n_crystals, np.uint32)
        at = _native.pointer
        edges = _native.Edges(
            n_edges - 1, *map(at, (self.src, self.dst, self.image, self.distance, self.unit)),
            *map(at, (self.edge_offsets, counts, self.status)),
        )  # fmt: skip
        options = _native.GraphOptions(SPEC.cutoff, 1e-3, SPEC.max_neighbors, 0, 2, 0)
        _native.call("druse_radius_graph", CPU, n_crystals, at(offsets), at(frac), at(cells), options, edges)
        _native.call(
            "druse_incidence", CPU, n_crystals, *map(at, (offsets, self.edge_offsets, self.src, self.dst)), n_edges,
            degree, 2 * n_edges - 1, *map(at, (self.in_edge, self.slot, self.degree, self.status)),
        )  # fmt: skip
        self.call = (
            CPU, at(offsets), at(self.edge_offsets),
            _native.PaddedGraph(
                n_crystals, n_atoms, n_edges, degree, SPEC.cutoff,
                *map(at, (self.src, self.dst, self.distance, self.in_edge, self.degree, self.slot, self.valid)),
                *map(at, (self.status, self.met)),
            ),
        )  # fmt: skip
        self._kept = offsets, cells, frac, counts
        _native.call("druse_pad_graph", *self.call)


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 9), st.integers(1, 40))
def test_a_padded_graph_is_the_decoders(seed: int, n: int, atoms: int, edges: int) -> None:
    """Beside the arrays that NumPy makes for the network, index by index."""
    batch = crystals(seed, n)
    graph = radius_graph(
        batch.frac, batch.cells, batch.offsets, cutoff=SPEC.cutoff, max_neighbors=8, symmetrise="union"
    )
    level, latent = np.zeros(n, np.int32), np.zeros((n, 4), np.float32)
    wanted = decoder_inputs(graph, batch.species, latent, level, SPEC, Workspace())
    n_atoms, n_edges, degree = graph.n_atoms, graph.n_edges, wanted["in_edge"].shape[1]
    room = Padded(batch, n + 3, n_atoms + atoms, n_edges + edges, degree)
    _, a, h, _ = room.shape
    for name in ("src", "dst"):
        mine = getattr(room, name)
        assert np.array_equal(mine[:n_edges], wanted[name][:n_edges])
        assert np.all(mine[n_edges:] == a - 1)
    directed = np.where(room.in_edge >= h, room.in_edge - h + n_edges + 1, room.in_edge)
    used = wanted["valid"] == 1
    assert np.array_equal(room.valid[:n_atoms], wanted["valid"][:n_atoms])
    assert np.array_equal(directed[:n_atoms][used[:-1]], wanted["in_edge"][used])
    assert not room.valid[n_atoms:].any()
    assert np.all(room.in_edge[room.valid == 0] == 2 * h - 1)
    assert not room.degree[n_atoms:].any()
    slots = wanted["slot"].reshape(2, -1)
    assert np.array_equal(room.slot[:, :n_edges], slots[:, :n_edges])
    assert np.all(room.slot[:, n_edges:] == (a - 1) * degree)
    assert np.array_equal(room.distance[:n_edges], graph.distance[:n_edges])
    assert np.all(room.distance[n_edges:] == SPEC.cutoff)
    assert np.array_equal(room.met[:n], graph.status & STOPPED)


def test_a_graph_without_room_says_so_and_leads_nowhere() -> None:
    batch = crystals(3, 6)
    whole = Padded(batch, 8, 64, 512, 64)
    for n_edges, degree, bit in ((int(whole.edge_offsets[-1]) // 2, 64, EDGE_OVERFLOW), (512, 4, DEGREE_OVERFLOW)):
        room = Padded(batch, 8, 64, n_edges, degree)
        short = room.met[:6] & bit != 0
        assert short.any()
        assert np.all((room.met & ~np.uint32(bit)) == 0)
        assert room.slot.min() >= 0
        assert room.slot.max() < 64 * degree
        assert np.all((room.in_edge >= 0) & (room.in_edge < 2 * n_edges))
        assert np.all((room.src >= 0) & (room.src < 64))
        # what has been met stays met
        room.status[:] = 0
        _native.call("druse_pad_graph", *room.call)
        assert np.array_equal(room.met[:6] & bit != 0, short)


@pytest.mark.parametrize(
    "change", [{"n_atoms": 5}, {"n_edges": 3}, {"degree_capacity": 0}, {"src": None}, {"cutoff": 0}]
)
def test_a_wrong_call_is_refused(change: dict[str, Any]) -> None:
    room = Padded(crystals(), 8, 64, 512, 32)
    for name, value in change.items():
        setattr(room.call[3], name, value)
    exec_, *offsets, graph = room.call
    result = _native.library().druse_pad_graph(ctypes.byref(exec_), *offsets, ctypes.byref(graph))
    assert result == _native.ERROR_ARGUMENT


def test_gumbel_is_added_in_place() -> None:
    ids, offsets = np.array([3, 2**40], np.uint64), np.array([0, 4, 9])
    values = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    wanted = values + gumbel(11, Purpose.TYPES, 5, ids, width=7, offsets=offsets)
    key = _native.noise_key(11, Purpose.TYPES, 5, ids)
    at = _native.pointer
    _native.call("druse_add_gumbel", CPU, key, 2, at(offsets), 7, at(values))
    assert values.tobytes() == wanted.tobytes()


def test_steps_and_moves_are_read_from_memory() -> None:
    batch = crystals(1)
    n, rng = len(batch.frac), np.random.default_rng(0)
    score, logits = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 9)).astype(np.float32)
    ids, step, move = np.arange(5, dtype=np.uint64), np.array([77], np.uint32), np.array([0.2, 0.4])
    key = _native.noise_key(9, Purpose.LANGEVIN, 12345, ids)
    key.step_at = step.ctypes.data
    frac, species, status = batch.frac.copy(), batch.species.copy(), np.zeros(5, np.uint32)
    at, by = _native.pointer, np.array([3], np.int32)
    for expected_step in (77, 80):
        wanted = langevin_update(
            frac, batch.cells, batch.offsets, species, score, drift=0.2, diffusion=0.4, logits=logits, seed=9,
            crystal_ids=ids, step=expected_step,
        )  # fmt: skip
        _native.call(
            "druse_langevin", CPU, key, 5, at(batch.offsets), at(batch.cells), 1.0, 1.0, at(move), at(score), None, 9,
            at(logits), None, at(frac), at(species), at(status),
        )  # fmt: skip
        assert frac.tobytes() == wanted.frac.tobytes()
        assert species.tobytes() == wanted.species.tobytes()
        _native.call("druse_advance", CPU, 1, at(by), at(step))
    assert step[0] == 83
    drawn, expected = np.zeros((5, 8), np.float32), gumbel(9, Purpose.LANGEVIN, 83, ids, width=8)
    _native.call("druse_gumbel", CPU, key, 5, None, 8, at(drawn))
    assert drawn.tobytes() == expected.tobytes()


def test_counters_count_down_too() -> None:
    by, counters = np.array([1, -1], np.int32), np.array([2**32 - 1, 5], np.uint32)
    _native.call("druse_advance", CPU, 2, _native.pointer(by), _native.pointer(counters))
    assert counters.tolist() == [0, 4]


def test_vectors_of_a_device_round_as_numpy_does() -> None:
    rng, device = np.random.default_rng(0), HostDevice()
    values = [rng.normal(size=(50, 3)).astype(np.float32) for _ in range(2)]
    x, y = (device.empty((50, 3), np.float32) for _ in values)
    for array, value in zip((x, y), values, strict=True):
        device.upload(array, value)
    a, b = values
    for mine, wanted in (
        (x + y, a + b), (x - y, a - b), (0.3 * x, 0.3 * a), (x * 0.3, a * 0.3), (x / 0.7, a / 0.7),
        ((x + y) / 2, (a + b) / 2), (x + (x + y - 0.1 * x) / 1.7, a + (a + b - 0.1 * a) / 1.7),
    ):  # fmt: skip
        assert device.download(mine).tobytes() == wanted.tobytes()
