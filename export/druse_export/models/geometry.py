"""From graphs of the runtime (`druse.graphs`) to what the networks take."""

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch
from scipy import interpolate, optimize, special

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


def score_geometry(graph: Graph, config: GemNetConfig, device: torch.device | str = "cpu") -> ScoreGeometry:
    """The decoder's view of a graph of half edges, on a device.

    The radial basis is native float32 on the host, and PyTorch's elsewhere: it is the largest of the arrays.
    """
    device = torch.device(device)
    if device.type == "cpu":
        native = basis.radial_basis(graph.distance, cutoff=config.cutoff, n_radial=config.n_radial)
        radial = torch.from_numpy(native)
    else:
        radial = radial_basis(torch.from_numpy(graph.distance).to(device), config)
    valid = np.arange(graph.in_edge.shape[1]) < graph.degree[:, None]
    geometry = ScoreGeometry(
        src=torch.from_numpy(graph.src),
        dst=torch.from_numpy(graph.dst),
        crystal=crystal_of_atom(graph.offsets),
        in_edge=torch.from_numpy(np.where(valid, graph.in_edge, 0)),
        valid=torch.from_numpy(valid.astype(np.float32)),
        slot=torch.from_numpy(graph.slot),
        unit=torch.from_numpy(graph.unit),
        radial=radial,
        degree=torch.from_numpy(graph.degree),
    )
    return ScoreGeometry(*(field.to(device) for field in geometry))


def radial_basis(distance: torch.Tensor, config: GemNetConfig) -> torch.Tensor:
    """`druse.basis.radial_basis` of distances ``[E]`` in Angstrom, ``[E, n_radial]``, where the tensor is."""
    d = (distance / config.cutoff)[:, None]
    centres = torch.linspace(0, 1, config.n_radial, device=d.device, dtype=d.dtype)
    envelope = torch.where(d < 1, 1 + d**5 * (-21 + d * (35 - 15 * d)), torch.zeros_like(d))
    return envelope * torch.exp(-0.5 * ((d - centres) * (config.n_radial - 1)) ** 2)


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
    envelope = np.where(d < 1, 1 / d + d**5 * (-28 + d * (48 - 21 * d)), 0.0)
    values = _bessel_spline(config.n_spherical, config.n_radial)(np.minimum(d, 1.0))
    values *= envelope[:, None, None]
    return values.astype(np.float32)


@functools.cache
def _bessel_spline(n_spherical: int, n_radial: int) -> Any:
    """Normalised j_l(z_ln d) for d from 0 to 1, to 2e-11; SciPy's own values take ten times as long."""
    zeros = spherical_bessel_zeros(n_spherical, n_radial)
    orders = np.arange(n_spherical)[:, None]
    norm = math.sqrt(2) / np.abs(special.spherical_jn(orders + 1, zeros))
    knots = np.linspace(0, 1, 4097)
    return interpolate.CubicSpline(knots, special.spherical_jn(orders, zeros * knots[:, None, None]) * norm)


def encoder_geometry(graph: Graph, config: DimeNetConfig) -> EncoderGeometry:
    """The encoder's view of a graph, whose half edges are expanded to directed ones."""
    edges = graph.directed()
    n_atoms = graph.n_atoms
    in_table, in_degree, in_slot = _table(edges.dst, n_atoms)
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
        in_slot=torch.from_numpy(in_slot),
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
