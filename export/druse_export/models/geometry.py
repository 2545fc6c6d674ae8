"""From graphs of the runtime (`druse.graphs`) to what the networks take."""

import functools
import itertools
import math

import numpy as np
import torch
from scipy import optimize, special

from druse import basis
from druse._arrays import Float32, Float64, Offsets
from druse.crystals import Crystals
from druse.graphs import Graph, Mode, Symmetrise, radius_graph
from druse_export.models.dimenet import DimeNetConfig, EncoderGeometry
from druse_export.models.gemnet import GemNetConfig, ScoreGeometry


def crystal_of_atom(offsets: Offsets) -> torch.Tensor:
    """The crystal of each atom of a CSR batch."""
    return torch.from_numpy(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)))


def score_graph(crystals: Crystals, config: GemNetConfig, *, mode: Mode = "exact") -> Graph:
    """The decoder's graph of half edges: in ``exact`` mode every pair that either end chose."""
    return _graph(crystals, config, mode, "union" if mode == "exact" else "upstream")


def encoder_graph(crystals: Crystals, config: DimeNetConfig, *, mode: Mode = "exact") -> Graph:
    """The encoder's graph: in ``exact`` mode every pair that either end chose, in ``upstream`` mode directed edges."""
    return _graph(crystals, config, mode, "union" if mode == "exact" else "none")


def _graph(crystals: Crystals, config: GemNetConfig | DimeNetConfig, mode: Mode, symmetrise: Symmetrise) -> Graph:
    return radius_graph(
        crystals.frac,
        crystals.cells,
        crystals.offsets,
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors,
        mode=mode,
        symmetrise=symmetrise,
    )


def score_geometry(graph: Graph, config: GemNetConfig) -> ScoreGeometry:
    """The decoder's view of a graph of half edges; radial basis in native float32."""
    valid = np.arange(graph.in_edge.shape[1]) < graph.degree[:, None]
    return ScoreGeometry(
        src=torch.from_numpy(graph.src),
        dst=torch.from_numpy(graph.dst),
        crystal=crystal_of_atom(graph.offsets),
        in_edge=torch.from_numpy(np.where(valid, graph.in_edge, 0)),
        valid=torch.from_numpy(valid.astype(np.float32)),
        slot=torch.from_numpy(graph.slot),
        unit=torch.from_numpy(graph.unit),
        radial=torch.from_numpy(basis.radial_basis(graph.distance, cutoff=config.cutoff, n_radial=config.n_radial)),
        degree=torch.from_numpy(graph.degree),
    )


@functools.cache
def spherical_bessel_zeros(n_spherical: int, n_radial: int) -> Float64[np.ndarray, "spherical radial"]:
    """The first positive zeros of the spherical Bessel functions j_0 .. j_{n_spherical - 1}.

    Those of j_l lie between those of j_{l-1}, and those of j_0 are n pi.
    """
    brackets = np.arange(1, n_spherical + n_radial + 1) * np.pi
    rows = [brackets[:n_radial]]
    for order in range(1, n_spherical):
        brackets = np.array(
            [
                optimize.brentq(lambda x, order=order: special.spherical_jn(order, x), low, high, xtol=1e-14)
                for low, high in itertools.pairwise(brackets)
            ]
        )
        rows.append(brackets[:n_radial])
    return np.array(rows)


def spherical_bessel(
    distance: Float32[np.ndarray, "edges"], config: DimeNetConfig
) -> Float32[np.ndarray, "edges spherical radial"]:
    """The radial half of DimeNet's spherical basis: normalised j_l(z_ln d) under the envelope, d scaled."""
    d = distance.astype(np.float64) / config.cutoff
    zeros = spherical_bessel_zeros(config.n_spherical, config.n_radial)
    orders = np.arange(config.n_spherical)[:, None]
    norm = math.sqrt(2) / np.abs(special.spherical_jn(orders + 1, zeros))
    envelope = np.where(d < 1, 1 / d + d**5 * (-28 + d * (48 - 21 * d)), 0.0)
    values = special.spherical_jn(orders, zeros * d[:, None, None]) * norm * envelope[:, None, None]
    return values.astype(np.float32)


def encoder_geometry(graph: Graph, config: DimeNetConfig) -> EncoderGeometry:
    """The encoder's view of a graph, whose half edges are expanded to directed ones."""
    edges = graph.directed()
    n_atoms = graph.n_atoms
    in_table, in_degree, _ = _table(edges.dst, n_atoms)
    out_table, out_degree, out_slot = _table(edges.src, n_atoms)
    in_valid = np.arange(in_table.shape[1]) < in_degree[:, None]
    spherical = spherical_bessel(graph.distance[: graph.n_edges], config)
    return EncoderGeometry(
        src=torch.from_numpy(edges.src),
        dst=torch.from_numpy(edges.dst),
        crystal=crystal_of_atom(graph.offsets),
        n_atoms=torch.from_numpy(np.diff(graph.offsets)),
        distance=torch.from_numpy(edges.distance),
        unit=torch.from_numpy(edges.unit),
        spherical=torch.from_numpy(np.concatenate([spherical] * (len(edges.src) // max(1, len(spherical))))),
        in_edge=torch.from_numpy(in_table),
        in_valid=torch.from_numpy(in_valid.astype(np.float32)),
        in_degree=torch.from_numpy(in_degree),
        out_edge=torch.from_numpy(out_table),
        out_degree=torch.from_numpy(out_degree),
        out_slot=torch.from_numpy(out_slot),
    )


def _table(ends: np.ndarray, n_atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges by the atom at one end: a table padded with 0, the degrees, and each edge's place in the table."""
    degree = np.bincount(ends, minlength=n_atoms)
    width = int(degree.max(initial=0))
    order = np.argsort(ends, kind="stable")
    first = np.cumsum(degree) - degree
    place = ends[order] * width + np.arange(len(ends)) - first[ends[order]]
    table = np.zeros(n_atoms * width, np.int32)
    table[place] = order
    slot = np.empty(len(ends), np.int64)
    slot[order] = place
    return table.reshape(n_atoms, width), degree.astype(np.int32), slot
