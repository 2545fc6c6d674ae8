"""One evaluation of the score network: crystals in bins, graphs and bases in native code, forces back on atoms.

Each bin gets one atom and one edge more than it has, of a crystal that is not there. Padding in the incidence table
points to that edge. So whatever happens to a crystal, nothing that is not finite reaches another one; and no array has
so few rows that a backend would take another way to the same sums.
"""

import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from druse import basis
from druse._arrays import AtomVector, SpeciesLogits, Status
from druse.backends import OutOfMemoryError
from druse.bundle import ConCDVAEManifest, GraphSpec
from druse.crystals import Crystals
from druse.graphs import Graph, radius_graph

_log = logging.getLogger(__name__)

BIN = 768
"""Half edges in a bin: with 128 channels a stream of both directions takes 0.8 MB, and stays in a cache."""

WIDTH = 4
"""Sums over a padded axis have a multiple of this many terms: ONNX Runtime adds products of a vector and a matrix in
groups of four, so that the same sum with 23 and with 24 terms, the last of them 0, differs in the last bit."""

_STREAMS = 24
"""Streams of ``[2, edges, channels]`` that are alive at the same time, at most."""


class Score(NamedTuple):
    """The score network's answer.

    Attributes:
        scaled: ``[atoms, 3]`` sigma times the Cartesian score of each atom.
        logits: ``[atoms, species]`` of the elements, hydrogen first.
        status: ``[crystals]`` of the graphs, see `druse.graphs`; a crystal without a complete graph has the score 0.
    """

    scaled: AtomVector
    logits: SpeciesLogits
    status: Status


class Workspace(threading.local):
    """Arrays of a thread, kept and written over at each call."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, dtype: Any, *shape: int) -> Any:
        """An array of unknown content, valid until the same name is asked for again."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size or kept.dtype != dtype:
            kept = self._kept[name] = np.empty(size + size // 4, dtype)
        return kept[:size].reshape(shape)


def spec_graph(crystals: Crystals, spec: GraphSpec, n_threads: int = 1) -> Graph:
    """The decoder's graph."""
    return radius_graph(
        crystals.frac,
        crystals.cells,
        crystals.offsets,
        cutoff=spec.cutoff,
        max_neighbors=spec.max_neighbors,
        mode=spec.mode,
        symmetrise=spec.symmetrise,
        shell_tolerance=spec.shell_tolerance if spec.mode == "exact" else None,
        n_threads=n_threads,
    )


def widened(graph: Graph) -> Graph:
    """The graph with an incidence table of a width that is a multiple of `WIDTH`, and not 0."""
    n_atoms, degree = graph.in_edge.shape
    width = max(WIDTH, -(-degree // WIDTH) * WIDTH)
    if width == degree:
        return graph
    in_edge = np.full((n_atoms, width), graph.pad, np.int32)
    in_edge[:, :degree] = graph.in_edge
    slot = graph.slot + graph.slot // max(1, degree) * (width - degree)
    return dataclasses.replace(graph, in_edge=in_edge, slot=np.where(graph.slot < 0, -1, slot).astype(np.int32))


def decoder_inputs(
    graph: Graph, species: np.ndarray, latent: np.ndarray, level: np.ndarray, spec: GraphSpec, work: Workspace
) -> dict[str, np.ndarray]:
    """A graph of half edges, with its one more atom and edge, as the decoder takes it."""
    graph = widened(graph)
    n, h, mirror, degree = graph.n_atoms, graph.n_edges, graph.mirror, graph.in_edge.shape[1]
    last = 2 * h + 1  # the mirror of the edge that is not there

    def ends(name: str, real: np.ndarray) -> Any:
        array = work.array(name, np.int32, h + 1)
        array[:h], array[h] = real[:h], n
        return array

    in_edge = work.array("in_edge", np.int32, n + 1, degree)
    in_edge[n] = last
    valid = work.array("valid", np.float32, n + 1, degree)
    valid[n] = 0.0
    legendre = work.array("legendre", np.float32, n + 1, degree, spec.n_spherical, degree)
    legendre[n] = 0.0
    slot = work.array("slot", np.int32, 2, h + 1)
    slot[:, h] = n * degree
    if n:
        used = np.arange(degree) < graph.degree[:, None]
        valid[:n] = used
        shifted = graph.in_edge + np.where(graph.in_edge >= mirror, h + 1 - mirror, 0)
        in_edge[:n] = np.where(used, shifted, last)
        slot[0, :h], slot[1, :h] = graph.slot[:h], graph.slot[mirror : mirror + h]
        basis.legendre_block(graph, n_spherical=spec.n_spherical, out=legendre[:n], n_threads=1)
    radial = work.array("radial", np.float32, h + 1, spec.n_radial)
    basis.radial_basis(graph.distance[:h], cutoff=spec.cutoff, n_radial=spec.n_radial, out=radial[:h], n_threads=1)
    radial[h] = 0.0

    n_crystals = len(latent)
    types = work.array("species", np.int32, n + 1)
    types[:n], types[n] = species, 1
    crystal = work.array("crystal", np.int32, n + 1)
    crystal[:n], crystal[n] = np.repeat(np.arange(n_crystals), np.diff(graph.offsets)), n_crystals
    latents = work.array("latent", np.float32, n_crystals + 1, latent.shape[1])
    latents[:-1], latents[-1] = latent, 0.0
    levels = work.array("level", np.int32, n_crystals + 1)
    levels[:-1], levels[-1] = level, 0
    return {
        "latent": latents,
        "level": levels,
        "species": types,
        "crystal": crystal,
        "radial": radial,
        "legendre": legendre,
        "src": ends("src", graph.src),
        "dst": ends("dst", graph.dst),
        "in_edge": in_edge,
        "valid": valid,
        "slot": slot.reshape(-1),
    }


def atom_forces(graph: Graph, force: np.ndarray) -> AtomVector:
    """Edge forces ``[2, edges + 1]`` of the network, summed on atoms."""
    h = graph.n_edges
    if graph.mirror != h:  # buffers of a fixed capacity
        padded = np.zeros((2, graph.mirror), np.float32)
        padded[:, :h] = force[:, :h]
        return basis.force_sum(graph, padded.reshape(-1), n_threads=1)
    return basis.force_sum(graph, np.ascontiguousarray(force[:, :h]).reshape(-1), n_threads=1)


def plan(n_atoms: np.ndarray, manifest: ConCDVAEManifest, memory: int, workers: int) -> list[range]:
    """Crystals in order, in bins of about `BIN` half edges, or fewer where the memory for all workers is short."""
    per_atom = 0.7 * manifest.graph.max_neighbors + 1
    most = max(1.0, min(float(BIN), 0.5 * memory / workers / network_bytes(manifest)))
    return grouped(n_atoms * per_atom, most)


def network_bytes(manifest: ConCDVAEManifest) -> int:
    """What one evaluation takes for each half edge, at most."""
    channels = max(int(n) for t in manifest.decoder.inputs if t.name == "latent" for n in t.shape[1:])
    return _STREAMS * 2 * 4 * channels + 4 * manifest.graph.n_radial


def grouped(costs: np.ndarray, most: float) -> list[range]:
    """Items in order, in groups whose costs add to ``most`` at most, or of one item."""
    groups, first, total = [], 0, 0.0
    for item, cost in enumerate(costs.tolist()):
        if item > first and total + cost > most:
            groups.append(range(first, item))
            first, total = item, 0.0
        total += cost
    if len(costs) > first:
        groups.append(range(first, len(costs)))
    return groups


Item = TypeVar("Item")


def in_parts(bins: Sequence[range], work: Callable[[range], Item], pool: ThreadPoolExecutor | None) -> Iterator[Item]:
    """``work`` on every bin, in order; one that runs out of memory is cut in half, and what is finished stays.

    Raises:
        OutOfMemoryError: one crystal alone does not fit.
    """

    def parts(piece: range) -> list[Item]:
        try:
            return [work(piece)]
        except MemoryError as error:
            if len(piece) == 1:
                raise OutOfMemoryError(f"one crystal alone needs more memory than there is: {error}") from error
            _log.info("%d at once need more memory than there is; in two halves", len(piece))
        middle = piece.start + len(piece) // 2
        return parts(range(piece.start, middle)) + parts(range(middle, piece.stop))

    for results in pool.map(parts, bins) if pool else map(parts, bins):
        yield from results
