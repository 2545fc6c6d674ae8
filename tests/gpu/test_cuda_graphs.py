"""The radius graph and the incidence table on a CUDA device: the CPU's bytes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import (
    EVERY,
    EXACT,
    HALF,
    NONE,
    UNION,
    UPSTREAM,
    Batch,
    batch,
    count_edges,
    differences,
    graph_outputs,
    incidence,
    lattices,
    radius_graph,
    random_batch,
    troubled,
)
from places import Device, Host
from reference import structures
from reference.structures import Structure

from druse._graph import EDGE_OVERFLOW, OUT_OF_MEMORY

pytestmark = pytest.mark.gpu

GRAPHS = list(itertools.product((EXACT, UPSTREAM), (NONE, HALF, UNION)))
every_graph = pytest.mark.parametrize(("mode", "symmetrise"), GRAPHS)


def of_structures(found: list[Structure]) -> Batch:
    return batch([(crystal.frac, crystal.cell) for crystal in found])


def check(crystals: Batch, **options: Any) -> None:
    """The same bytes, where all edges fit and where a third of them does not."""
    total = count_edges(crystals, **options)
    for capacity in (total, total * 2 // 3, 0):
        assert differences(radius_graph, crystals, **options, capacity=capacity) == []


@every_graph
@pytest.mark.parametrize("k", [1, 12, 20, EVERY])
@pytest.mark.parametrize(("cutoff", "tolerance"), [(9.0, 1e-3), (5.0, 1e-3), (8.0, -1.0), (0.5, 0.0), (30.0, 1e-3)])
def test_crystals_of_every_kind(mode: int, symmetrise: int, k: int, cutoff: float, tolerance: float) -> None:
    options = {"mode": mode, "symmetrise": symmetrise, "k": k, "cutoff": cutoff, "tolerance": tolerance}
    if cutoff > 20 and k == EVERY:
        pytest.skip("tens of millions of edges")
    check(random_batch(11, 64), **options)
    check(lattices(), **options)
    check(of_structures([*structures.REAL, *structures.random_structures(12, 30)]), **options)


@every_graph
def test_troubled_crystals(mode: int, symmetrise: int) -> None:
    check(troubled(), mode=mode, symmetrise=symmetrise)


@every_graph
@pytest.mark.parametrize(
    ("n_atoms", "cutoff", "k"), [(64, 5.0, 20), (65, 5.0, EVERY), (300, 6.0, 20), (40, 9.0, EVERY)]
)
def test_large_crystals(mode: int, symmetrise: int, n_atoms: int, cutoff: float, k: int) -> None:
    crystals = random_batch(13, 6, (n_atoms, n_atoms))
    check(crystals, mode=mode, symmetrise=symmetrise, cutoff=cutoff, k=k)


@pytest.mark.parametrize("k", [20, EVERY])
def test_dense_crystals_outgrow_every_list(k: int) -> None:
    check(random_batch(14, 12, (1, 6), per_atom=0.6), cutoff=5.0, k=k)


def test_hard_cells(stress_cells: list[Structure]) -> None:
    for symmetrise in (NONE, UNION):
        check(of_structures(stress_cells), cutoff=9.0, k=20, symmetrise=symmetrise)
    check(of_structures(stress_cells), cutoff=7.0, k=20, mode=UPSTREAM, symmetrise=HALF)


def test_real_crystals(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("pymatgen", reason="pymatgen, which reads the crystals, is not installed")
    crystals = of_structures(request.getfixturevalue("mp20_crystals"))
    check(crystals, cutoff=9.0, k=20)
    check(crystals, cutoff=8.0, k=12, symmetrise=NONE, tolerance=-1.0)  # CGCNN's neighbours
    check(crystals, cutoff=9.0, k=20, mode=UPSTREAM, symmetrise=HALF)


def test_cells_of_upstreams_fixtures(shared: Path) -> None:
    with np.load(shared / "fixtures" / "neighbours.npz") as found:
        names = sorted({name.split("/")[0] for name in found.files})
        crystals = [(found[f"{name}/frac_coords"], found[f"{name}/cells"]) for name in names]
    for cutoff in (9.0, 7.0):
        check(batch(crystals), cutoff=cutoff, k=20, mode=UPSTREAM, symmetrise=NONE)


@settings(max_examples=40)
@given(
    st.lists(structures.structures(max_atoms=24), min_size=1, max_size=8),
    st.sampled_from([EXACT, UPSTREAM]),
    st.sampled_from([NONE, HALF, UNION]),
    st.sampled_from([1, 12, 20, EVERY]),
    st.sampled_from([1e-3, -1.0]),
)
def test_any_crystals(found: list[Structure], mode: int, symmetrise: int, k: int, tolerance: float) -> None:
    check(of_structures(found), mode=mode, symmetrise=symmetrise, k=k, tolerance=tolerance, cutoff=5.0)


def test_many_crystals_one_of_which_is_in_the_way() -> None:
    """Ten thousand places in the ledger, and an overflow after which the sum of counts is not where crystals end."""
    crystals = random_batch(15, 10_000, (1, 3))
    check(crystals, cutoff=4.0, k=8)
    options = {"cutoff": 4.0, "k": 8}
    counts = radius_graph(Host(), crystals, **options)["edge_counts"]
    capacity = int(counts[:5000].sum() + counts[5000] - 1)  # crystal 5000 lacks one place, later ones fit
    assert differences(radius_graph, crystals, **options, capacity=capacity) == []
    assert radius_graph(Host(), crystals, **options, capacity=capacity)["status"][5000] & EDGE_OVERFLOW


def test_no_crystals() -> None:
    assert differences(radius_graph, batch([]), capacity=4) == []
    assert differences(radius_graph, batch([([], np.eye(3))] * 3), capacity=0) == []


def test_crystals_beyond_the_working_memory() -> None:
    crystals = random_batch(16, 5, (6, 6))
    device = Device()
    try:
        found = radius_graph(device, crystals, capacity=2000, atoms_allowed=20)
        device.fetch()
    finally:
        device.close()
    assert found["status"][3:].tolist() == [OUT_OF_MEMORY] * 2
    assert not found["status"][:3].any()
    expected = radius_graph(Host(), crystals, capacity=2000)
    end = expected["edge_offsets"][3]
    assert found["src"][:end].tobytes() == expected["src"][:end].tobytes()


def test_the_same_bytes_every_time() -> None:
    crystals = random_batch(17, 300)
    options: dict[str, Any] = {"cutoff": 9.0, "capacity": count_edges(crystals, cutoff=9.0)}
    device = Device()
    try:
        arrays = radius_graph(device, crystals, **options)
        device.fetch()
        first = {name: array.copy() for name, array in arrays.items()}
        for _ in range(20):
            radius_graph(device, crystals, **options, out=arrays)
            device.fetch()
            assert all(array.tobytes() == first[name].tobytes() for name, array in arrays.items())
    finally:
        device.close()


@pytest.mark.parametrize("mode", [EXACT, UPSTREAM])
def test_the_graph_stage_is_captured_and_replayed(mode: int) -> None:
    """No call waits or allocates, or the capture fails; a replay sees what is in the arrays then."""
    crystals = random_batch(18, 100)
    capacity = 40 * crystals.n_atoms
    options: dict[str, Any] = {"mode": mode, "cutoff": 9.0, "capacity": capacity}
    graph = graph_outputs(crystals.n_crystals, capacity)
    device = Device()
    try:
        radius_graph(device, crystals, **options, out=graph)
        table = incidence(device, crystals, graph) | {"status": graph["status"]}
        incidence(device, crystals, graph, out=table)
        device.begin_capture()
        radius_graph(device, crystals, **options, out=graph)
        incidence(device, crystals, graph, out=table)
        replay = device.end_capture()
        for seed in range(3):
            crystals.frac[:] = np.random.default_rng(seed).random(crystals.frac.shape)
            device.write(crystals.frac)
            for array in (*graph.values(), *table.values()):
                array.reshape(-1).view(np.uint8)[:] = 0x5A
                device.write(array)
            replay.launch()
            device.fetch()
            expected = radius_graph(Host(), crystals, **options)
            expected |= incidence(Host(), crystals, expected)
            for name, array in (graph | table).items():
                assert array.tobytes() == expected[name].tobytes(), (seed, name)
        replay.close()
    finally:
        device.close()


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("width", [0, 1, 7, 33, 64])
@pytest.mark.parametrize("slots", [True, False])
def test_incidence(half: bool, width: int, slots: bool) -> None:
    for crystals in (random_batch(19, 40), troubled(), random_batch(20, 3, (50, 90))):
        options: dict[str, Any] = {"symmetrise": UNION if half else NONE, "cutoff": 5.0}
        graph = radius_graph(Host(), crystals, **options, capacity=count_edges(crystals, **options) + 5)
        assert differences(incidence, crystals, graph, half=half, width=width, slots=slots) == []
