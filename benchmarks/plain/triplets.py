"""Edges and triplets as index arrays, and the geometry on them, in torch.

Upstream finds triplets by a sparse matrix of edge numbers (torch_sparse); here a sort and a repeat do it. Edges come in
upstream's order: crystal by crystal, first its half edges, then their mirrors.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from druse import Graph


class Edges(NamedTuple):
    """Directed edges ``src -> dst``; ``vector`` points from source to target, ``swap[e]`` is the mirror of ``e``."""

    src: Tensor
    dst: Tensor
    vector: Tensor
    distance: Tensor
    swap: Tensor


def edge_order(graph: Graph) -> np.ndarray:
    """Of every directed edge of a graph of half edges its place in `Graph.directed`, crystal by crystal."""
    ranges = [np.arange(a, b) for a, b in zip(graph.edge_offsets[:-1], graph.edge_offsets[1:], strict=True)]
    return np.concatenate([part for r in ranges for part in (r, r + graph.n_edges)])


def directed_edges(graph: Graph, cart: Tensor, cells: Tensor) -> Edges:
    """The edges of a graph of half edges, their vectors computed anew from positions ``[N, 3]`` and cells."""
    edges, order = graph.directed(), edge_order(graph)
    src, dst = (torch.from_numpy(ends[order].astype(np.int64)) for ends in (edges.src, edges.dst))
    image = torch.from_numpy(edges.image[order]).to(cart.dtype)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    crystal = torch.from_numpy(np.repeat(np.arange(graph.n_crystals), np.diff(graph.offsets)))
    shift = torch.bmm(image[:, None], cells[crystal[src]]).squeeze(1)
    vector = cart[dst] - cart[src] - shift
    return Edges(src, dst, vector, vector.norm(dim=-1), torch.from_numpy(place[edges.id_swap[order]]))


def pairs_at(end: Tensor, dst: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """For every edge e, in order, all edges into the atom ``end[e]``: the numbers of those, and of e."""
    degree = torch.bincount(dst, minlength=n_atoms)
    into = torch.argsort(dst, stable=True)
    first = torch.cumsum(degree, 0) - degree
    count = degree[end]
    edge = torch.repeat_interleave(torch.arange(len(end)), count)
    return into[ragged_range(count) + first[end][edge]], edge


def ragged_range(sizes: Tensor) -> Tensor:
    """The ranges ``0 .. sizes[k] - 1`` one after the other."""
    first = torch.cumsum(sizes, 0) - sizes
    return torch.arange(int(sizes.sum())) - torch.repeat_interleave(first, sizes)


def legendre(cosine: Tensor, n_spherical: int) -> Tensor:
    """Y_l0 ``[triplets, n_spherical]`` of the angle."""
    values = [torch.ones_like(cosine), cosine]
    for degree in range(2, n_spherical):
        values.append(((2 * degree - 1) * cosine * values[-1] - (degree - 1) * values[-2]) / degree)
    normal = ((2 * torch.arange(n_spherical, dtype=cosine.dtype) + 1) / (4 * torch.pi)).sqrt()
    return torch.stack(values[:n_spherical], dim=1) * normal
