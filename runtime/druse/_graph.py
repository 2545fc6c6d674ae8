"""A graph of a batch of crystals: edges, incidence table, status words. `druse.graphs` is the public face."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from druse import _native
from druse._arrays import (
    Bool,
    Counts,
    Distance,
    EdgeIndex,
    Image,
    Int32,
    Offsets,
    Status,
    UnitVector,
    as_array,
    as_batch,
    number,
)
from druse.errors import InputError

EDGE_LIMIT = np.iinfo(np.int32).max // 2
"""A mirror's index must fit int32."""

NON_FINITE, SINGULAR, TOO_MANY_IMAGES, EDGE_OVERFLOW, DEGREE_OVERFLOW, OUT_OF_MEMORY = (1 << k for k in range(6))
EMPTY, COINCIDENT, ISOLATED = (1 << k for k in range(8, 11))
STOPPED = NON_FINITE | SINGULAR | TOO_MANY_IMAGES | EDGE_OVERFLOW | DEGREE_OVERFLOW | OUT_OF_MEMORY
"""Status bits of a crystal without a complete graph; the others only inform."""

_STATUS_TEXTS = {
    NON_FINITE: "coordinates or cell are not finite, or too large (fractions beyond 1e8, cells beyond 1e15 Angstrom)",
    SINGULAR: "the cell is flat or zero, its planes are closer than 0.01 Angstrom, or it is skewed beyond reason",
    TOO_MANY_IMAGES: "too many periodic images are within the cutoff (more than 2^20, or 2^31 with all atoms)",
    EDGE_OVERFLOW: "its edges did not fit into the edge capacity",
    DEGREE_OVERFLOW: "an atom has more edges than the degree capacity",
    OUT_OF_MEMORY: "there is too little memory for it alone",
    EMPTY: "it has no atoms",
    COINCIDENT: "two atoms are within 0.01 Angstrom of each other",
    ISOLATED: "an atom has no neighbour within the cutoff",
}


def describe_status(status: int) -> list[str]:
    """A crystal's status word in words; empty for a good crystal."""
    return [text for bit, text in _STATUS_TEXTS.items() if status & bit]


class DirectedEdges(NamedTuple):
    """Every directed edge, both directions of half edges; ``id_swap[e]`` is the mirror of ``e`` (-1: none)."""

    src: EdgeIndex
    dst: EdgeIndex
    image: Image
    distance: Distance
    unit: UnitVector
    id_swap: EdgeIndex


class Triplets(NamedTuple):
    """Pairs of different directed edges into one target: b -> a <- c, as indices into `Graph.directed`."""

    id3_ba: EdgeIndex
    id3_ca: EdgeIndex


@dataclasses.dataclass(frozen=True, eq=False)
class GraphBuffers:
    """Arrays that `radius_graph` writes into, for callers that build a graph at every step.

    Half edge ``e`` and its mirror ``e + capacity`` keep their places whatever the number of edges; unused places hold
    an edge of length ``cutoff`` from atom 0 to itself, on which the radial basis vanishes. The next graph built into
    the same buffers overwrites the one before.
    """

    src: EdgeIndex
    dst: EdgeIndex
    image: Image
    distance: Distance
    unit: UnitVector
    in_edge: Int32[np.ndarray, "atoms degree"]
    slot: Int32[np.ndarray, "directed_edges"]
    degree: Int32[np.ndarray, "atoms"]

    @classmethod
    def allocate(cls, n_atoms: int, n_edges: int, max_degree: int) -> "GraphBuffers":
        """Buffers for ``n_atoms`` atoms, ``n_edges`` (half) edges, and at most ``max_degree`` edges into an atom."""
        for name, value in (("n_atoms", n_atoms), ("n_edges", n_edges), ("max_degree", max_degree)):
            number(name, value, "a whole number from 0 to 2^30", lambda v: 0 <= v <= EDGE_LIMIT, integer=True)
        return cls(
            src=np.zeros(n_edges, np.int32),
            dst=np.zeros(n_edges, np.int32),
            image=np.zeros((n_edges, 3), np.int32),
            distance=np.zeros(n_edges, np.float32),
            unit=np.zeros((n_edges, 3), np.float32),
            in_edge=np.zeros((n_atoms, max_degree), np.int32),
            slot=np.full(2 * n_edges, -1, np.int32),
            degree=np.zeros(n_atoms, np.int32),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Edges of a batch of crystals.

    Attributes:
        offsets: ``[crystals + 1]``, the atoms of each crystal.
        edge_offsets: ``[crystals + 1]``, the (half) edges of each crystal.
        src, dst: ``[edges]``, atom indices in the batch.
        image: ``[edges, 3]``, lattice translation of the source, in cells, relative to ``frac`` as it was given.
        distance: ``[edges]``, Angstrom.
        unit: ``[edges, 3]``, from source to target.
        mirror: 0 for directed edges; for half edges the index distance from an edge to its mirror.
        in_edge: ``[atoms, degree]``, the directed edges into each atom in ascending order of (half) edge; beyond
            ``degree[atom]`` it holds ``pad``.
        degree: ``[atoms]``, edges into each atom.
        slot: ``[directed edges]``, where in the flattened ``in_edge`` an edge stands; -1 where it does not.
        counts: ``[crystals]``, the true numbers of (half) edges, also where a capacity was too small.
        status: ``[crystals]``, bits; 0 is a good crystal. See `describe` and `ok`.
        pad: the index in unused places of ``in_edge``: one past the last directed edge.
        is_half: whether each undirected edge is stored once.
    """

    offsets: Offsets
    edge_offsets: Offsets
    src: EdgeIndex
    dst: EdgeIndex
    image: Image
    distance: Distance
    unit: UnitVector
    mirror: int
    in_edge: Int32[np.ndarray, "atoms degree"]
    degree: Int32[np.ndarray, "atoms"]
    slot: Int32[np.ndarray, "directed_edges"]
    counts: Counts
    status: Status
    pad: int
    is_half: bool

    def __repr__(self) -> str:
        edges = "half edges" if self.is_half else "edges"
        return f"<Graph: {self.n_crystals:,} crystals, {self.n_atoms:,} atoms, {self.n_edges:,} {edges}>"

    @property
    def n_crystals(self) -> int:
        """Crystals in the batch."""
        return len(self.offsets) - 1

    @property
    def n_atoms(self) -> int:
        """Atoms in the batch."""
        return int(self.offsets[-1])

    @property
    def n_edges(self) -> int:
        """Edges in use: half edges where ``is_half``."""
        return int(self.edge_offsets[-1])

    @property
    def ok(self) -> Bool[np.ndarray, "crystals"]:
        """Which crystals have a complete graph."""
        complete: Bool[np.ndarray, "crystals"] = (self.status & STOPPED) == 0
        return complete

    def describe(self) -> dict[int, list[str]]:
        """What there is to say about crystals, by their index in the batch; good ones are left out."""
        return {int(b): describe_status(int(self.status[b])) for b in np.flatnonzero(self.status)}

    def directed(self) -> DirectedEdges:
        """All directed edges in arrays without gaps: the given ones, then for half edges their mirrors."""
        n = self.n_edges
        src, dst, image = self.src[:n], self.dst[:n], self.image[:n]
        distance, unit = self.distance[:n], self.unit[:n]
        if not self.is_half:
            return DirectedEdges(src, dst, image, distance, unit, self._find_mirrors())
        edge = np.arange(n, dtype=np.int32)
        return DirectedEdges(
            np.concatenate([src, dst]),
            np.concatenate([dst, src]),
            np.concatenate([image, -image]),
            np.concatenate([distance, distance]),
            np.concatenate([unit, -unit]),
            np.concatenate([edge + n, edge]),
        )

    def _find_mirrors(self) -> EdgeIndex:
        n = self.n_edges
        key = np.column_stack([self.src[:n], self.dst[:n], self.image[:n]])
        place = {tuple(row): e for e, row in enumerate(key.tolist())}
        mirrors = [place.get((dst, src, -a, -b, -c), -1) for src, dst, a, b, c in key.tolist()]
        return np.asarray(mirrors, np.int32)

    def triplets(self) -> Triplets:
        """All pairs of different directed edges into the same target, explicitly: for tests and for other models."""
        dst = self.directed().dst
        order = np.argsort(dst, kind="stable").astype(np.int32)
        degree = np.bincount(dst, minlength=self.n_atoms)
        first = np.concatenate([[0], np.cumsum(degree)])
        id3_ca = np.repeat(order, degree[dst[order]])
        # for every edge in target order, all edges of its target
        starts = np.repeat(first[dst[order]], degree[dst[order]])
        ends = np.cumsum(degree[dst[order]])
        within = np.arange(len(id3_ca)) - np.repeat(ends - degree[dst[order]], degree[dst[order]])
        id3_ba = order[starts + within]
        different = id3_ba != id3_ca
        return Triplets(id3_ba[different], id3_ca[different])

    @classmethod
    def from_edges(
        cls,
        frac: Any,
        cells: Any,
        offsets: Any,
        src: Any,
        dst: Any,
        image: Any,
        *,
        half: bool = False,
        n_threads: int = 0,
    ) -> "Graph":
        """A graph of edges found elsewhere; they must come sorted by crystal.

        Args:
            frac: ``[atoms, 3]`` fractional coordinates.
            cells: ``[crystals, 3, 3]`` row vectors in Angstrom.
            offsets: ``[crystals + 1]`` atoms of each crystal.
            src: ``[edges]`` atom index of each edge's source in the batch.
            dst: ``[edges]`` atom index of each edge's target.
            image: ``[edges, 3]`` lattice translation of each source, in cells.
            half: whether each undirected edge is given once, to be mirrored.
            n_threads: 0 for every core.

        Raises:
            InputError: wrong shapes, edges out of range, between crystals or out of order, or without length.
        """
        frac_, cells_, offsets_ = as_batch(frac, cells, offsets)
        src_: EdgeIndex = as_array("src", src, np.int32, "edges")
        dst_: EdgeIndex = as_array("dst", dst, np.int32, len(src_))
        image_: Image = as_array("image", image, np.int32, len(src_), 3)
        n_atoms = int(offsets_[-1])
        for name, ends in (("src", src_), ("dst", dst_)):
            if len(ends) and not (ends.min() >= 0 and ends.max() < n_atoms):
                raise InputError(f"`{name}` must index the {n_atoms} atoms, got {ends.min()} to {ends.max()}")
        crystal = np.searchsorted(offsets_, dst_, side="right") - 1
        if np.any(np.searchsorted(offsets_, src_, side="right") - 1 != crystal):
            raise InputError("`src` and `dst` of an edge must lie in the same crystal; check the offsets")
        if np.any(np.diff(crystal) < 0):
            raise InputError("edges must be sorted by crystal; sort them by `dst` first")
        if not np.isfinite(cells_[crystal]).all():
            raise InputError("`cells` must be finite where edges are given, got NaN or infinity")
        if not (np.isfinite(frac_[src_]).all() and np.isfinite(frac_[dst_]).all()):
            raise InputError("`frac` must be finite where edges are given, got NaN or infinity")
        vector = np.einsum("ei,eij->ej", frac_[dst_] - frac_[src_] - image_, cells_[crystal])
        distance = np.linalg.norm(vector, axis=1)
        if np.any(~(distance > 0)):
            raise InputError(f"edge {int(np.argmax(~(distance > 0)))} has no length; leave out pairs that coincide")
        counts = np.bincount(crystal, minlength=len(cells_)).astype(np.int64)
        edge_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return finished_graph(
            GraphBuffers(
                src_,
                dst_,
                image_,
                distance.astype(np.float32),
                (vector / distance[:, None]).astype(np.float32),
                *no_incidence(),
            ),
            offsets_,
            edge_offsets,
            counts,
            np.zeros(len(cells_), np.uint32),
            half=half,
            preallocated=False,
            exec_=_native.cpu(n_threads),
        )


def no_incidence() -> tuple[Any, Any, Any]:
    """Empty `in_edge`, `slot` and `degree`."""
    return np.zeros((0, 0), np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32)


def finished_graph(
    buffers: GraphBuffers,
    offsets: Offsets,
    edge_offsets: Offsets,
    counts: Counts,
    status: Status,
    *,
    half: bool,
    incidence: bool = True,
    preallocated: bool,
    exec_: _native.Exec,
) -> Graph:
    """The graph of edges that are known, with its incidence table; into the buffers' own where ``preallocated``."""
    capacity = len(buffers.src)
    mirror = capacity if half else 0
    pad = mirror + capacity
    in_edge, slot, degree = no_incidence()
    if incidence:
        in_edge, slot, degree = buffers.in_edge, buffers.slot[:pad], buffers.degree
        if preallocated:
            slot.fill(-1)
        else:
            in_edge, slot, degree = _incidence_arrays(buffers, int(offsets[-1]), half)
        _native.call(
            "druse_incidence",
            exec_,
            len(offsets) - 1,
            *map(_native.pointer, (offsets, edge_offsets, buffers.src, buffers.dst)),
            mirror,
            in_edge.shape[1],
            pad,
            *map(_native.pointer, (in_edge, slot, degree, status)),
        )
    return Graph(
        offsets=offsets.copy(),  # the caller's array may change later
        edge_offsets=edge_offsets,
        src=buffers.src,
        dst=buffers.dst,
        image=buffers.image,
        distance=buffers.distance,
        unit=buffers.unit,
        mirror=mirror,
        in_edge=in_edge,
        degree=degree,
        slot=slot,
        counts=counts,
        status=status,
        pad=pad,
        is_half=half,
    )


def _incidence_arrays(buffers: GraphBuffers, n_atoms: int, half: bool) -> tuple[Any, Any, Any]:
    """`in_edge`, `slot` and `degree` of the width that the edges need."""
    ends: Sequence[EdgeIndex] = (buffers.dst, buffers.src) if half else (buffers.dst,)
    degrees = np.sum([np.bincount(e, minlength=n_atoms) for e in ends], axis=0)
    most = int(degrees.max(initial=0))
    if n_atoms * most > np.iinfo(np.int32).max:
        raise InputError(
            f"the incidence table of {n_atoms:,} atoms with up to {most:,} edges has more than 2^31 places; use a "
            "smaller `cutoff`, `max_neighbors` or batch, or incidence=False"
        )
    return (
        np.empty((n_atoms, most), np.int32),
        np.empty(len(ends) * len(buffers.src), np.int32),
        np.empty(n_atoms, np.int32),
    )
