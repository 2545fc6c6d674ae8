"""The periodic radius graph: the K nearest neighbours of every atom within a cutoff, over all periodic images.

Two modes.

``exact`` (for models trained here) depends on the crystal alone: not on the order of its atoms, on which cell describes
it, on wrapping, or on the batch. It searches every image and never splits a shell: all neighbours within
``shell_tolerance`` of the K-th stay, so a target can have more than K.

``upstream`` (for imported checkpoints) is the graph of CDVAE and Con-CDVAE: images -1, 0 and 1 only, exactly K
neighbours, ties by order, in float32 and their order of operations.

An edge carries a message from its source to its target: ``vector = cart[dst] - (cart[src] + image @ cell)``. A
symmetrised graph stores each undirected edge once, as the half edge with ``src < dst`` (or, between images of one atom,
the lexicographically negative image); the mirror of half edge ``e`` is edge ``e + mirror``.
"""

from typing import Any, Literal

import numpy as np

from druse import _native
from druse._arrays import Cells, Offsets, as_batch, number, one_of, output
from druse._graph import (
    COINCIDENT,
    DEGREE_OVERFLOW,
    EDGE_LIMIT,
    EDGE_OVERFLOW,
    EMPTY,
    ISOLATED,
    NON_FINITE,
    OUT_OF_MEMORY,
    SINGULAR,
    STOPPED,
    TOO_MANY_IMAGES,
    DirectedEdges,
    Graph,
    GraphBuffers,
    Triplets,
    describe_status,
    finished_graph,
    no_incidence,
)
from druse.errors import InputError

__all__ = [
    "COINCIDENT",
    "DEGREE_OVERFLOW",
    "EDGE_OVERFLOW",
    "EMPTY",
    "ISOLATED",
    "NON_FINITE",
    "OUT_OF_MEMORY",
    "SHELL_TOLERANCE",
    "SINGULAR",
    "STOPPED",
    "TOO_MANY_IMAGES",
    "DirectedEdges",
    "Graph",
    "GraphBuffers",
    "Triplets",
    "describe_status",
    "radius_graph",
]

Mode = Literal["exact", "upstream"]
Symmetrise = Literal["none", "upstream", "union"]

SHELL_TOLERANCE = 1e-3
"""Default width of a shell in Angstrom: far above the rounding of published coordinates, far below any bond."""

_MODES = {"exact": 0, "upstream": 1}
_SYMMETRISE = {"none": 0, "upstream": 1, "union": 2}
_NO_LIMIT = np.iinfo(np.int32).max


def options(
    cutoff: float, max_neighbors: int, mode: str, symmetrise: str, shell_tolerance: float | None
) -> _native.GraphOptions:
    """``druse_graph_options`` of numbers that have been checked; no tolerance, or one below 0, for exactly K."""
    width = -1.0 if shell_tolerance is None else shell_tolerance
    return _native.GraphOptions(
        cutoff, width, max_neighbors, one_of("mode", mode, _MODES), one_of("symmetrise", symmetrise, _SYMMETRISE), 0
    )


def _expected_edges(cells: Cells, offsets: Offsets, cutoff: float, max_neighbors: int, half: bool) -> int:
    """How many edges to make room for at first; a batch that has more is searched a second time."""
    if max_neighbors <= 64:
        estimate = float(offsets[-1]) * (1.3 * max_neighbors + 4)
    else:
        n_atoms = np.diff(offsets).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            in_sphere = n_atoms * 4.2 * cutoff**3 / np.abs(np.linalg.det(np.where(np.isfinite(cells), cells, 0.0)))
        in_sphere = np.nan_to_num(in_sphere, nan=0.0, posinf=0.0)
        estimate = float(np.sum(n_atoms * np.minimum(in_sphere * 1.1 + 4, 1.3 * max_neighbors)))
    return int(min(estimate * (0.7 if half else 1.0), 5e7)) + 64


def radius_graph(
    frac: Any,
    cells: Any,
    offsets: Any,
    *,
    cutoff: float,
    max_neighbors: int | None,
    mode: Mode = "exact",
    symmetrise: Symmetrise = "none",
    shell_tolerance: float | None = SHELL_TOLERANCE,
    incidence: bool = True,
    out: GraphBuffers | None = None,
    n_threads: int = 0,
    isa: str = "best",
) -> Graph:
    """The periodic radius graph of a batch of crystals.

    Args:
        frac: ``[atoms, 3]`` fractional coordinates, wrapped or not; float64 decides.
        cells: ``[crystals, 3, 3]`` row vectors in Angstrom, of either handedness.
        offsets: ``[crystals + 1]``, crystal b owns atoms ``offsets[b]:offsets[b + 1]``.
        cutoff: Angstrom. A pair exactly at the cutoff counts; ``exact`` allows 1e-6 Angstrom for rounding.
        max_neighbors: K, the nearest neighbours that each atom chooses; None for all within the cutoff.
        mode: ``exact`` or ``upstream``, see the module.
        symmetrise: ``none``: the directed edges, by target and source. ``upstream``: half edges, those directed ones
            that run from a lower to a higher index; the result depends on the order of atoms. ``union``: half edges,
            every pair that either end chose.
        shell_tolerance: in ``exact`` mode keep all within this distance (Angstrom) of the K-th; None: exactly K,
            equal distances in order of source. ``upstream`` mode has no tolerance.
        incidence: build ``in_edge``, ``degree`` and ``slot`` too.
        out: arrays to write into; then a crystal that does not fit gets a status bit, instead of a larger array.
        n_threads: 0 for every core. The result is the same on any number.
        isa: instruction set, for tests: ``best``, ``baseline``, ``avx2`` or ``avx512``.

    Returns:
        The graph. Crystals that have none (NaN, flat cell, no atoms) say so in `Graph.status`; others in the batch
        are not affected.

    Raises:
        InputError: an argument has the wrong shape, type or range.
        DeviceError: the processor lacks ``isa``.
    """
    frac_, cells_, offsets_ = as_batch(frac, cells, offsets)
    cutoff = number("cutoff", cutoff, "a distance in Angstrom above 0 and below 1e6", lambda v: 0 < v < 1e6)
    limit = _NO_LIMIT
    if max_neighbors is not None:
        limit = number(
            "max_neighbors",
            max_neighbors,
            "a whole number from 1 up, or None for all",
            lambda v: 1 <= v <= _NO_LIMIT,
            integer=True,
        )
    width = -1.0
    if shell_tolerance is not None:
        width = number(
            "shell_tolerance", shell_tolerance, "a distance in Angstrom from 0 to 1, or None", lambda v: 0 <= v <= 1
        )
    chosen = options(cutoff, limit, mode, symmetrise, width)
    exec_ = _native.cpu(n_threads, isa)
    half = symmetrise != "none"

    n_crystals = len(cells_)
    edge_offsets = np.empty(n_crystals + 1, np.int64)
    counts = np.empty(n_crystals, np.int64)
    status = np.empty(n_crystals, np.uint32)

    def search(buffers: GraphBuffers) -> None:
        edges = _native.Edges(
            len(buffers.src),
            *map(_native.pointer, (buffers.src, buffers.dst, buffers.image, buffers.distance, buffers.unit)),
            *map(_native.pointer, (edge_offsets, counts, status)),
        )
        _native.call(
            "druse_radius_graph",
            exec_,
            n_crystals,
            *map(_native.pointer, (offsets_, frac_, cells_)),
            chosen,
            edges,
        )

    if out is not None:
        _check_buffers(out, len(frac_))
        search(out)
        _blank(out, int(edge_offsets[-1]), cutoff)
        buffers = out
    else:
        buffers = _edge_buffers(_expected_edges(cells_, offsets_, cutoff, limit, half))
        search(buffers)
        if np.any(status & EDGE_OVERFLOW):
            total = int(counts.sum())
            if total > EDGE_LIMIT:
                raise InputError(
                    f"the batch has {total:,} edges, more than 2^30; use a smaller `cutoff`, `max_neighbors` or batch"
                )
            buffers = _edge_buffers(total)
            search(buffers)
        n = int(edge_offsets[-1])
        buffers = GraphBuffers(
            buffers.src[:n],
            buffers.dst[:n],
            buffers.image[:n],
            buffers.distance[:n],
            buffers.unit[:n],
            *no_incidence(),
        )
    return finished_graph(
        buffers,
        offsets_,
        edge_offsets,
        counts,
        status,
        half=half,
        incidence=incidence,
        preallocated=out is not None,
        exec_=exec_,
    )


def _edge_buffers(n_edges: int) -> GraphBuffers:
    return GraphBuffers(
        np.empty(n_edges, np.int32),
        np.empty(n_edges, np.int32),
        np.empty((n_edges, 3), np.int32),
        np.empty(n_edges, np.float32),
        np.empty((n_edges, 3), np.float32),
        *no_incidence(),
    )


def _check_buffers(out: GraphBuffers, n_atoms: int) -> None:
    if not isinstance(out, GraphBuffers):
        raise InputError(f"`out` must come from GraphBuffers.allocate, got {type(out).__name__}")
    if len(out.degree) != n_atoms:
        raise InputError(f"`out` must be allocated for the batch's {n_atoms} atoms, got {len(out.degree)}")
    n_edges, max_degree = len(out.src), out.in_edge.shape[-1]
    for name, dtype, shape in (
        ("src", np.int32, (n_edges,)),
        ("dst", np.int32, (n_edges,)),
        ("image", np.int32, (n_edges, 3)),
        ("distance", np.float32, (n_edges,)),
        ("unit", np.float32, (n_edges, 3)),
        ("in_edge", np.int32, (n_atoms, max_degree)),
        ("slot", np.int32, (2 * n_edges,)),
        ("degree", np.int32, (n_atoms,)),
    ):
        output(f"out.{name}", getattr(out, name), dtype, *shape)


def _blank(out: GraphBuffers, used: int, cutoff: float) -> None:
    out.src[used:] = 0
    out.dst[used:] = 0
    out.image[used:] = 0
    out.distance[used:] = cutoff
    out.unit[used:] = 0.0
