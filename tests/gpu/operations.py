"""Every operation of ``druse.h`` that has a CUDA side, called at a place, and crystals to call it on.

Outputs begin as 0x5A bytes, so that what a call leaves alone is the same at both places. No pytest and no Hypothesis
here: `sanitize` imports this module, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from places import Device, Host, Place

from druse import _native

Arrays = dict[str, np.ndarray]
EXACT, UPSTREAM = 0, 1
NONE, HALF, UNION = 0, 1, 2
EVERY = 2**31 - 1  # neighbours


@dataclasses.dataclass(frozen=True)
class Batch:
    """Crystals in CSR form."""

    frac: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray

    @property
    def n_crystals(self) -> int:
        return len(self.cells)

    @property
    def n_atoms(self) -> int:
        return int(self.offsets[-1])


def batch(crystals: list[tuple[Any, Any]]) -> Batch:
    """Pairs of fractional coordinates and a cell, as a batch."""
    fracs = [np.array(frac, np.float64).reshape(-1, 3) for frac, _ in crystals]
    cells = np.array([cell for _, cell in crystals], np.float64).reshape(-1, 3, 3)
    offsets = np.cumsum([0, *map(len, fracs)]).astype(np.int64)
    return Batch(np.concatenate([np.zeros((0, 3)), *fracs]), cells, offsets)


def random_batch(seed: int, count: int, atoms: tuple[int, int] = (1, 12), per_atom: float = 15.0) -> Batch:
    """Crystals of so many cubic Angstrom an atom; every third has atoms at multiples of 1/6, and so many ties."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        n = int(rng.integers(atoms[0], atoms[1] + 1))
        cell = np.diag(rng.uniform(2, 6, 3)) + np.tril(rng.uniform(-2, 2, (3, 3)), -1)
        cell *= np.cbrt(per_atom * n / abs(np.linalg.det(cell)))
        frac = rng.integers(0, 6, (n, 3)) / 6 if k % 3 == 0 else rng.uniform(-1.5, 1.5, (n, 3))
        found.append((frac, cell))
    return batch(found)


def lattices() -> Batch:
    """Cells full of ties, thin, skewed, left-handed and uneven ones."""
    cube, corners = np.eye(3), [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    hexagonal = [[3.2, 0, 0], [-1.6, 3.2 * np.sqrt(0.75), 0], [0, 0, 5.2]]
    return batch(
        [
            ([[0, 0, 0]], 3.6 * np.array(corners[1:])),
            (corners, 3.6 * cube),
            ([[0, 0, 0], [0.5, 0.5, 0.5]], 2.87 * cube),
            ([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], hexagonal),
            ([[0.1, 0.2, 0.3]], [[3, 0, 0], [3, 3, 0], [300, -21, 3]]),
            ([[0, 0, 0], [1 / 6, 0.5, 5 / 6], [0.5, 0.5, 0.5]], np.diag([12, 0.9, 9])),
            ([[0.5, 0.5, 0.5], [0.52, 0.5, 0.5], [0.5, 0.55, 0.5], [0, 0, 0]], 30 * cube),
            ([[0, 0, 0]], 1.1 * cube),
            (corners, np.diag([-4.0, 4, 4])),
        ]
    )


def troubled() -> Batch:
    """Crystals that have no graph, between some that have one."""
    cube, pair, nan = 4 * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], np.nan
    return batch(
        [
            (pair, cube),
            ([[0, 0, nan]], cube),
            (pair, np.diag([4, np.inf, 4])),
            ([], np.diag([4, nan, 4])),
            (pair, [[4, 0, 0], [8, 0, 0], [0, 0, 4]]),
            ([[nan, 0, 0]], np.zeros((3, 3))),
            ([[0.1, 0.1, 0.1]] * 2, cube),
            (pair, 90 * np.eye(3)),
            ([[0, 0, 0]], 0.02 * np.eye(3)),
            ([[1e9, 0, 0]], cube),
            ([[1.0, -0.0, 1e4 + 0.5], [-1e4, 3.5, -1e-20]], cube),
            ([[9e7, 9e7, 9e7], [0, 0, 0]], [[1, 0, 0], [0, 1, 0], [9e5, 0, 1]]),
            ([], cube),
            (pair, cube),
        ]
    )


def blank(dtype: type, *shape: int) -> np.ndarray:
    """An array that nothing has been written to."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0x5A, np.uint8).view(dtype).reshape(shape)


# ---- graphs ---------------------------------------------------------------------------------------------------------


def graph_outputs(n_crystals: int, capacity: int) -> Arrays:
    """The arrays of ``druse_edges``, in its order."""
    return {
        "src": blank(np.int32, capacity),
        "dst": blank(np.int32, capacity),
        "image": blank(np.int32, capacity, 3),
        "distance": blank(np.float32, capacity),
        "unit": blank(np.float32, capacity, 3),
        "edge_offsets": blank(np.int64, n_crystals + 1),
        "edge_counts": blank(np.int64, n_crystals),
        "status": blank(np.uint32, n_crystals),
    }


def radius_graph(
    place: Place,
    crystals: Batch,
    *,
    cutoff: float = 6.0,
    k: int = 20,
    mode: int = EXACT,
    symmetrise: int = UNION,
    tolerance: float = 1e-3,
    capacity: int = 0,
    atoms_allowed: int | None = None,
    out: Arrays | None = None,
) -> Arrays:
    """``druse_radius_graph``; ``atoms_allowed``: working memory for so many atoms only."""
    arrays = graph_outputs(crystals.n_crystals, capacity) if out is None else out
    n_atoms = crystals.n_atoms if atoms_allowed is None else atoms_allowed
    n_bytes = _native.library().druse_graph_workspace(place.exec_, crystals.n_crystals, n_atoms)
    edges = _native.Edges(capacity, *(place.put(array) for array in arrays.values()), place.workspace(n_bytes), n_bytes)
    given = (place.put(array) for array in (crystals.offsets, crystals.frac, crystals.cells))
    options = _native.GraphOptions(cutoff, tolerance, k, mode, symmetrise, 0)
    _native.call("druse_radius_graph", place.exec_, crystals.n_crystals, *given, options, edges)
    return arrays


def count_edges(crystals: Batch, **options: Any) -> int:
    """How many edges there are in all."""
    return int(radius_graph(Host(), crystals, **options)["edge_counts"].sum())


def incidence(
    place: Place,
    crystals: Batch,
    graph: Arrays,
    *,
    half: bool = True,
    width: int = 48,
    slots: bool = True,
    out: Arrays | None = None,
) -> Arrays:
    """``druse_incidence`` of a graph as `radius_graph` gives it."""
    capacity = len(graph["src"])
    arrays = out or {
        "in_edge": blank(np.int32, crystals.n_atoms, width),
        "slot": blank(np.int32, (2 if half else 1) * capacity),
        "degree": blank(np.int32, crystals.n_atoms),
        "status": graph["status"].copy(),
    }
    given = [place.put(array) for array in (crystals.offsets, graph["edge_offsets"], graph["src"], graph["dst"])]
    in_edge, slot, degree, status = (place.put(arrays[name]) for name in ("in_edge", "slot", "degree", "status"))
    _native.call(
        "druse_incidence", place.exec_, crystals.n_crystals, *given, capacity if half else 0, width, 2 * capacity,
        in_edge, slot if slots else None, degree, status,
    )  # fmt: skip
    return arrays


# ---- noise ----------------------------------------------------------------------------------------------------------


def key_of(place: Place, ids: np.ndarray, *, purpose: int = 3, step: int = 7) -> _native.NoiseKey:
    key = _native.NoiseKey(0x0123456789ABCDEF, purpose, step, place.put(ids))
    key.keep = ids
    return key


def ids_of(n_crystals: int) -> np.ndarray:
    """Identities beyond 32 bits among them."""
    return (np.arange(n_crystals, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(5)


def draws(place: Place, kind: str, offsets: np.ndarray | None, n_crystals: int, width: int) -> Arrays:
    """``druse_normal``, ``druse_uniform`` or ``druse_gumbel``."""
    rows = n_crystals if offsets is None else int(offsets[-1])
    out = blank(np.float64 if kind == "uniform" else np.float32, rows, width)
    key = key_of(place, ids_of(n_crystals))
    _native.call(f"druse_{kind}", place.exec_, key, n_crystals, place.put(offsets), width, place.put(out))
    return {"out": out}


def add_gumbel(place: Place, offsets: np.ndarray, n_crystals: int, width: int) -> Arrays:
    """``druse_add_gumbel``, its step read from where the arrays are."""
    values = np.random.default_rng(3).normal(size=(int(offsets[-1]), width)).astype(np.float32)
    step, key = np.array([11], np.uint32), key_of(place, ids_of(n_crystals))
    key.step_at = place.put(step)
    _native.call("druse_add_gumbel", place.exec_, key, n_crystals, place.put(offsets), width, place.put(values))
    return {"values": values}


# ---- updates --------------------------------------------------------------------------------------------------------


def langevin(
    place: Place,
    crystals: Batch,
    *,
    n_species: int = 100,
    given_noise: bool = False,
    logits: bool = True,
    allowed: bool = False,
    spoil: bool = False,
    seed: int = 0,
) -> Arrays:
    """``druse_langevin``; ``spoil``: some crystals with numbers that are not finite, or that lead nowhere."""
    rng = np.random.default_rng(seed)
    n, b = crystals.n_atoms, crystals.n_crystals
    cells, frac = crystals.cells.copy(), crystals.frac.copy()
    score = rng.normal(size=(n, 3)).astype(np.float32)
    noise = rng.normal(size=(n, 3)).astype(np.float32) if given_noise else None
    scores = np.round(2 * rng.normal(size=(n, n_species))).astype(np.float32)  # with equals among the largest
    scores[rng.random(scores.shape) < 0.1] = -0.0
    masks = (rng.random((b, n_species)) < 0.4).astype(np.uint8) if allowed else None
    if masks is not None:
        masks[::4] = 0  # none allowed: types stay
    if spoil:
        for crystal, array in zip(range(0, b, 5), (score, scores, frac) * b, strict=False):
            rows = slice(*crystals.offsets[crystal : crystal + 2])
            array[rows][-1:, -1] = (np.nan, np.inf)[crystal % 2]
        score[slice(*crystals.offsets[1:3])] = 3e38  # leaves the cells that a float64 resolves
        cells[2:3] = 0.0
    arrays = {
        "frac": frac,
        "species": np.full(n, 7, np.int32),
        "status": np.full(b, 1 << 9, np.uint32),
    }
    key = key_of(place, ids_of(b))
    _native.call(
        "druse_langevin", place.exec_, key, b, place.put(crystals.offsets), place.put(cells), 0.02, 0.3, None,
        place.put(score), place.put(noise), n_species, place.put(scores if logits else None), place.put(masks),
        *(place.put(array) for array in arrays.values()),
    )  # fmt: skip
    return arrays


def ddpm(place: Place, n_rows: int, width: int, *, given_noise: bool = False, spoil: bool = False) -> Arrays:
    """``druse_ddpm``."""
    rng = np.random.default_rng(width)
    eps, z = (rng.normal(size=(n_rows, width)).astype(np.float32) for _ in range(2))
    noise = rng.normal(size=(n_rows, width)).astype(np.float32) if given_noise else None
    if spoil:
        eps[1:2, -1], z[3:4, 0], eps[5:6, width // 2] = np.nan, -np.inf, 3e38
    arrays = {"z": z, "status": np.full(n_rows, 1 << 9, np.uint32)}
    key = key_of(place, ids_of(n_rows))
    _native.call(
        "druse_ddpm", place.exec_, key, n_rows, width, 1.01, -2.5, 0.14, place.put(eps),
        place.put(noise), *(place.put(array) for array in arrays.values()),
    )  # fmt: skip
    return arrays


def combine(place: Place, count: int, *, two: bool = True) -> Arrays:
    """``druse_combine``."""
    x, y = np.random.default_rng(6).normal(size=(2, count)).astype(np.float32)
    out, given = blank(np.float32, count), np.ascontiguousarray(y) if two else None
    _native.call(
        "druse_combine", place.exec_, count, 0.3, place.put(np.ascontiguousarray(x)), -1.7, place.put(given), 0.9,
        place.put(out),
    )  # fmt: skip
    return {"out": out}


def advance(place: Place, count: int) -> Arrays:
    """``druse_advance``, beyond 2^32 and below 0 too."""
    by, counters = np.arange(count, dtype=np.int32) - 2, np.zeros(count, np.uint32)
    counters[-1:] = 2**32 - 1
    _native.call("druse_advance", place.exec_, count, place.put(by), place.put(counters))
    return {"counters": counters}


# ---- decoder geometry -----------------------------------------------------------------------------------------------


def radial_basis(place: Place, n_edges: int, n_radial: int = 128, cutoff: float = 9.0) -> Arrays:
    """``druse_radial_basis``, distances at and beyond the cutoff among them."""
    distance = np.linspace(0.3, 1.1 * cutoff, n_edges).astype(np.float32)
    distance[:1], distance[1:2] = cutoff, 0.0
    out = blank(np.float32, n_edges, n_radial)
    _native.call("druse_radial_basis", place.exec_, n_edges, place.put(distance), cutoff, n_radial, place.put(out))
    return {"out": out}


def tables(crystals: Batch, *, half: bool = True, width: int = 40, k: int = 12) -> tuple[Arrays, Arrays]:
    """A graph on the host, and its incidence table."""
    options = {"cutoff": 6.0, "k": k, "symmetrise": UNION if half else NONE}
    graph = radius_graph(Host(), crystals, **options, capacity=count_edges(crystals, **options))
    return graph, incidence(Host(), crystals, graph, half=half, width=width)


def legendre(place: Place, graph: Arrays, table: Arrays, *, half: bool = True, n_spherical: int = 7) -> Arrays:
    """``druse_legendre``."""
    n_atoms, width = table["in_edge"].shape
    out = blank(np.float32, n_atoms, width, n_spherical, width)
    _native.call(
        "druse_legendre", place.exec_, n_atoms, width, n_spherical, place.put(table["in_edge"]),
        place.put(table["degree"]), len(graph["src"]) if half else 0, place.put(graph["unit"]), place.put(out),
    )  # fmt: skip
    return {"out": out}


def force_sum(place: Place, graph: Arrays, table: Arrays, *, half: bool = True) -> Arrays:
    """``druse_force_sum``."""
    n_atoms, width = table["in_edge"].shape
    capacity = len(graph["src"])
    force = np.random.default_rng(5).normal(size=(2 if half else 1) * capacity).astype(np.float32)
    out = blank(np.float32, n_atoms, 3)
    _native.call(
        "druse_force_sum", place.exec_, n_atoms, width, place.put(table["in_edge"]), place.put(table["degree"]),
        capacity if half else 0, place.put(graph["unit"]), place.put(force), place.put(out),
    )  # fmt: skip
    return {"out": out}


def pad_graph(place: Place, crystals: Batch, *, capacity: int, width: int = 40, atoms: int = 64) -> Arrays:
    """``druse_pad_graph`` of half edges, for so many atoms more than there are."""
    n, graph = crystals.n_atoms + atoms, radius_graph(Host(), crystals, k=12, capacity=capacity - 1)
    table = {
        **{name: np.append(graph[name], blank(graph[name].dtype.type, 1)) for name in ("src", "dst", "distance")},
        "in_edge": blank(np.int32, n, width),
        "degree": blank(np.int32, n),
        "slot": blank(np.int32, 2, capacity),
        "valid": blank(np.float32, n, width),
        "status": graph["status"],
        "met": np.full(crystals.n_crystals, 1 << 2, np.uint32),
    }
    _native.call(
        "druse_incidence", Host().exec_, crystals.n_crystals,
        *(a.ctypes.data for a in (crystals.offsets, graph["edge_offsets"], table["src"], table["dst"])), capacity,
        width, 2 * capacity - 1, *(table[name].ctypes.data for name in ("in_edge", "slot", "degree", "status")),
    )  # fmt: skip
    padded = _native.PaddedGraph(
        crystals.n_crystals, n, capacity, width, 6.0, *(place.put(array) for array in table.values())
    )
    ends = (place.put(array) for array in (crystals.offsets, graph["edge_offsets"]))
    _native.call("druse_pad_graph", place.exec_, *ends, padded)
    return table


# ---- both places ----------------------------------------------------------------------------------------------------


def differences(operation: Callable[..., Arrays], *arguments: Any, **options: Any) -> list[str]:
    """Names of the outputs in which a CUDA device and the CPU differ by a byte."""
    expected = operation(Host(), *arguments, **options)
    expected = {name: array.copy() for name, array in expected.items()}
    device = Device()
    try:
        found = operation(device, *arguments, **options)
        device.fetch()
        return [name for name, array in found.items() if array.tobytes() != expected[name].tobytes()]
    finally:
        device.close()
