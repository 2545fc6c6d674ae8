"""Periodic graphs of one crystal by exhaustion: the twin of ``druse_radius_graph``.

`pairs_within` knows nothing of reduced cells or minimum images: on wrapped coordinates it tries every image that the
lattice plane spacings of the given cell allow. `upstream_edges` does CDVAE's arithmetic in float32, step by step.
"""

import itertools
from typing import NamedTuple

import numpy as np

COINCIDENT = 0.01
CUTOFF_TOLERANCE = 1e-6

Edge = tuple[int, int, int, int, int]
"""Source, target, and the image of the source."""


class Pairs(NamedTuple):
    """Directed pairs: the source at ``frac[src] + image`` seen from the target; ``vector`` from source to target."""

    src: np.ndarray
    dst: np.ndarray
    image: np.ndarray
    distance: np.ndarray
    vector: np.ndarray

    def edges(self, chosen: np.ndarray | slice = slice(None)) -> list[Edge]:
        """The chosen pairs as tuples."""
        return edge_list(self.src[chosen], self.dst[chosen], self.image[chosen])


def edge_list(src: np.ndarray, dst: np.ndarray, image: np.ndarray) -> list[Edge]:
    """Edges as tuples."""
    return list(map(tuple, np.column_stack([src, dst, image]).tolist()))


def pairs_within(frac: np.ndarray, cell: np.ndarray, reach: float, least: float = COINCIDENT) -> Pairs:
    """All pairs with ``least < distance <= reach``, in order of target, source and image."""
    whole = np.floor(frac)
    wrapped = frac - whole
    normals = np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]])
    spacing = abs(np.linalg.det(cell)) / np.linalg.norm(normals, axis=1)
    # |image + difference of wrapped coordinates| spacing <= reach, and that difference is within +-1
    most = np.floor(reach / spacing + 1 + 1e-9).astype(int)
    images = np.array(list(itertools.product(*(range(-m, m + 1) for m in most))))
    parts = []
    for target in range(len(frac)):
        vector = (wrapped[target] - (wrapped[:, None] + images)) @ cell
        distance = np.linalg.norm(vector, axis=2)
        src, m = np.nonzero((distance > least) & (distance <= reach))
        image = (images[m] - whole[src] + whole[target]).astype(np.int64)
        parts.append((src, np.full(len(src), target), image, distance[src, m], vector[src, m]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def reach_of_targets(
    pairs: Pairs, n_atoms: int, cutoff: float, max_neighbors: int | None, shell_tolerance: float | None
) -> np.ndarray:
    """How far each target looks in exact mode: to the cutoff, or to the end of the shell that holds its K-th."""
    reach = np.full(n_atoms, cutoff + CUTOFF_TOLERANCE)
    for target in range(n_atoms):
        distance = np.sort(pairs.distance[(pairs.dst == target) & (pairs.distance <= reach[target])])
        if max_neighbors is not None and len(distance) > max_neighbors:
            reach[target] = min(reach[target], distance[max_neighbors - 1] + (shell_tolerance or 0.0))
    return reach


def upstream_edges(frac: np.ndarray, cell: np.ndarray, cutoff: float, max_neighbors: int) -> Pairs:
    """CDVAE's list before symmetrisation: 27 images, float32, the K nearest, ties in order of source and image."""
    f, c = frac.astype(np.float32), cell.astype(np.float32)
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    m = images.astype(np.float32)
    position = (f[:, :1] * c[0] + f[:, 1:2] * c[1]) + f[:, 2:] * c[2]
    shift = (m[:, :1] * c[0] + m[:, 1:2] * c[1]) + m[:, 2:] * c[2]
    parts = []
    for target in range(len(frac)):
        vector = position[target] - (position[:, None] + shift)
        square = (vector[..., 0] ** 2 + vector[..., 1] ** 2) + vector[..., 2] ** 2
        radius = np.float32(cutoff)
        src, image = np.nonzero((square <= radius * radius) & (square > np.float32(1e-4)))
        nearest = np.sort(np.argsort(square[src, image], kind="stable")[:max_neighbors])
        src, image = src[nearest], image[nearest]
        exact = (vector[src, image]).astype(np.float64)
        parts.append((src, np.full(len(src), target), images[image], np.sqrt(square[src, image]), exact))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def mirrored(edge: Edge) -> Edge:
    """The same undirected edge from its other end."""
    src, dst, a, b, c = edge
    return dst, src, -a, -b, -c


def is_half_edge(edge: Edge) -> bool:
    """Whether this is the direction that is stored: to a higher index, or from a lexicographically negative image."""
    src, dst, *image = edge
    return src < dst or (src == dst and image < [0, 0, 0])


def half_edges(edges: list[Edge], symmetrise: str) -> set[Edge]:
    """Undirected edges of a directed list: those that point upwards (upstream), or any that an end chose (union)."""
    chosen = {edge for edge in edges if is_half_edge(edge)}
    if symmetrise == "union":
        chosen |= {mirrored(edge) for edge in edges if not is_half_edge(edge)}
    return chosen
