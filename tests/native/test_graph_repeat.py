"""Equal input gives equal bytes: again, on any number of threads, on any instruction set."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from reference import structures
from reference.compare import graph_bytes
from reference.structures import REAL

from druse import DeviceError, Graph, GraphBuffers, _native, radius_graph

WAYS = [("exact", "none"), ("exact", "union"), ("upstream", "none"), ("upstream", "upstream")]
ways = pytest.mark.parametrize(("mode", "symmetrise"), WAYS)
ISAS = ["baseline", "avx2", "avx512"]


def crystals() -> structures.Batch:
    """Real crystals, with ties in plenty, between random ones."""
    return structures.batch(
        [*structures.random_structures(11, 30), *REAL, *structures.random_structures(12, 30, (1, 40))]
    )


def graph(mode: str, symmetrise: str, **options: Any) -> Graph:
    return radius_graph(*crystals(), cutoff=6.0, max_neighbors=20, mode=mode, symmetrise=symmetrise, **options)


def need(isa: str) -> None:
    """Skips where the processor cannot run ``isa``."""
    try:
        _native.call("druse_radial_basis", _native.cpu(1, isa), 0, None, 1.0, 2, None)
    except DeviceError as error:
        pytest.skip(f"this processor has no {isa}: {error}")


@ways
def test_a_hundred_repeats(mode: str, symmetrise: str) -> None:
    first = graph_bytes(graph(mode, symmetrise))
    for _ in range(99):
        assert graph_bytes(graph(mode, symmetrise)) == first


@ways
def test_any_number_of_threads(mode: str, symmetrise: str) -> None:
    first = graph_bytes(graph(mode, symmetrise, n_threads=1))
    for n_threads in (2, 4, 0, 64):
        assert graph_bytes(graph(mode, symmetrise, n_threads=n_threads)) == first


@ways
@pytest.mark.parametrize("isa", ISAS)
def test_any_instruction_set(mode: str, symmetrise: str, isa: str) -> None:
    need(isa)
    assert graph_bytes(graph(mode, symmetrise, isa=isa)) == graph_bytes(graph(mode, symmetrise))


def test_an_instruction_set_that_is_not_there() -> None:
    best = _native.library().druse_best_isa()
    lacking = [isa for isa in ISAS if _native.ISAS[isa] > best]
    if not lacking:
        pytest.skip("this processor has every instruction set that Druse knows")
    with pytest.raises(DeviceError, match="not supported"):
        graph("exact", "none", isa=lacking[0])


@pytest.mark.parametrize("edges_short", [1, 200])
def test_threads_agree_on_what_does_not_fit(edges_short: int) -> None:
    batch = crystals()
    free = graph("exact", "union")

    def squeezed(n_threads: int) -> dict[str, bytes]:
        out = GraphBuffers.allocate(free.n_atoms, free.n_edges - edges_short, int(free.degree.max()) - 1)
        options = {"cutoff": 6.0, "max_neighbors": 20, "symmetrise": "union", "out": out}
        return graph_bytes(radius_graph(*batch, n_threads=n_threads, **options))

    first = squeezed(1)
    for n_threads in (2, 4):
        for _ in range(20):
            assert squeezed(n_threads) == first


def test_threads_of_the_callers() -> None:
    """Calls from several Python threads at once, each of several native threads."""
    first = graph_bytes(graph("exact", "union"))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(graph, "exact", "union", n_threads=1 + k % 3) for k in range(40)]
        assert all(graph_bytes(future.result()) == first for future in futures)


FORKED = """
import os, numpy as np
from druse import radius_graph
rng = np.random.default_rng(0)
arrays = rng.random((400, 3)), np.repeat(5 * np.eye(3)[None], 50, axis=0), np.arange(51) * 8
def graph():
    return radius_graph(*arrays, cutoff=5.0, max_neighbors=20, n_threads=4).distance.tobytes()
first, child = graph(), os.fork()
if child == 0:
    os._exit(0 if graph() == first else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), graph() == first)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_has_threads_again() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "True"]


def test_the_first_crystal_is_not_special() -> None:
    batch = crystals()
    whole = radius_graph(*batch, cutoff=6.0, max_neighbors=20)
    for b in (0, 17, 33, len(batch.cells) - 1):
        atoms = slice(batch.offsets[b], batch.offsets[b + 1])
        n = atoms.stop - atoms.start
        alone = radius_graph(batch.frac[atoms], batch.cells[b : b + 1], [0, n], cutoff=6.0, max_neighbors=20)
        e = slice(whole.edge_offsets[b], whole.edge_offsets[b + 1])
        np.testing.assert_array_equal(alone.distance, whole.distance[e])
        np.testing.assert_array_equal(alone.image, whole.image[e])
