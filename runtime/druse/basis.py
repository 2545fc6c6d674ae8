"""The decoder's geometry, in float32 and outside the network: radial basis, Legendre block, force sum.

================  =============================================================================================
paper (GemNet)    here
================  =============================================================================================
d / c             ``distance / cutoff``
u(d)              the envelope 1 - 21 d^5 + 35 d^6 - 15 d^7 below 1, else 0
e_RBF             ``radial_basis``: u(d) exp(-(d - mu_k)^2 / (2 delta^2)), mu_k = k delta, delta = 1 / (n_radial - 1)
P_l(cos phi_cab)  ``legendre_block``: one dense block for each target atom, edges into it against edges into it
F_a               ``force_sum``: the sum over c of F_ca times the unit vector from c to a
================  =============================================================================================

Reference: Gasteiger, Becker, Guennemann, "GemNet: universal directional graph neural networks for molecules", NeurIPS
2021; the envelope is that of DimeNet (ICLR 2020) with exponent 5.
"""

from typing import Any

import numpy as np

from druse import _native
from druse._arrays import AtomVector, Float32, as_array, number, output
from druse.errors import InputError
from druse.graphs import Graph

__all__ = ["force_sum", "legendre_block", "radial_basis"]


def radial_basis(
    distance: Any,
    *,
    cutoff: float,
    n_radial: int = 128,
    out: Float32[np.ndarray, "edges radial"] | None = None,
    n_threads: int = 0,
    isa: str = "best",
) -> Float32[np.ndarray, "edges radial"]:
    """Gaussians on [0, 1] under the envelope.

    Args:
        distance: ``[edges]`` Angstrom.
        cutoff: Angstrom.
        n_radial: number of Gaussians, at least 2.
        out: array to write into.
        n_threads: 0 for every core.
        isa: instruction set, for tests.

    Returns:
        ``[edges, n_radial]`` float32; rows of edges at or beyond the cutoff are 0.

    Raises:
        InputError: an argument of the wrong shape, type or range.
    """
    d = as_array("distance", distance, np.float32, "edges")
    cutoff = number("cutoff", cutoff, "a distance in Angstrom above 0 and below 1e6", lambda v: 0 < v < 1e6)
    n_radial = number("n_radial", n_radial, "a whole number from 2 to 65536", lambda v: 2 <= v <= 65536, integer=True)
    result: Float32[np.ndarray, "edges radial"] = output("out", out, np.float32, len(d), n_radial)
    _native.call(
        "druse_radial_basis",
        _native.cpu(n_threads, isa),
        len(d),
        _native.pointer(d),
        cutoff,
        n_radial,
        _native.pointer(result),
    )
    return result


def _need_incidence(graph: Graph) -> None:
    if len(graph.degree) != graph.n_atoms:
        raise InputError("`graph` must have its incidence table; build it with radius_graph(..., incidence=True)")


def legendre_block(
    graph: Graph,
    *,
    n_spherical: int = 7,
    out: Float32[np.ndarray, "atoms degree spherical degree"] | None = None,
    n_threads: int = 0,
    isa: str = "best",
) -> Float32[np.ndarray, "atoms degree spherical degree"]:
    """Legendre polynomials of the angle between every two edges into an atom.

    ``out[n, i, l, j] = P_l(cos angle)`` between edges ``in_edge[n, i]`` and ``in_edge[n, j]``; 0 where ``i == j`` and
    in padding. The mask rides through the recursion l P_l = (2 l - 1) c P_{l-1} - (l - 1) P_{l-2}.

    Args:
        graph: with its incidence table.
        n_spherical: number of polynomials, P_0 first.
        out: array to write into.
        n_threads: 0 for every core.
        isa: instruction set, for tests.

    Returns:
        ``[atoms, degree, n_spherical, degree]`` float32.

    Raises:
        InputError: no incidence table, or an argument out of range.
    """
    _need_incidence(graph)
    n_spherical = number(
        "n_spherical", n_spherical, "a whole number from 1 to 64", lambda v: 1 <= v <= 64, integer=True
    )
    n_atoms, degree = graph.in_edge.shape
    result: Float32[np.ndarray, "atoms degree spherical degree"] = output(
        "out", out, np.float32, n_atoms, degree, n_spherical, degree
    )
    _native.call(
        "druse_legendre",
        _native.cpu(n_threads, isa),
        n_atoms,
        degree,
        n_spherical,
        *map(_native.pointer, (graph.in_edge, graph.degree)),
        graph.mirror,
        *map(_native.pointer, (graph.unit, result)),
    )
    return result


def force_sum(
    graph: Graph,
    force: Any,
    *,
    out: AtomVector | None = None,
    n_threads: int = 0,
    isa: str = "best",
) -> AtomVector:
    """The sum of the edges' forces on each atom, each along its edge's unit vector (source to target).

    Args:
        graph: with its incidence table.
        force: ``[directed edges]``; for half edges ``[2 * mirror]``, mirrors in the second half.
        out: array to write into.
        n_threads: 0 for every core.
        isa: instruction set, for tests.

    Returns:
        ``[atoms, 3]`` float32, in the unit of ``force``.

    Raises:
        InputError: no incidence table, or a ``force`` of the wrong shape.
    """
    _need_incidence(graph)
    f = as_array("force", force, np.float32, graph.mirror + len(graph.src))
    n_atoms, degree = graph.in_edge.shape
    result: AtomVector = output("out", out, np.float32, n_atoms, 3)
    _native.call(
        "druse_force_sum",
        _native.cpu(n_threads, isa),
        n_atoms,
        degree,
        *map(_native.pointer, (graph.in_edge, graph.degree)),
        graph.mirror,
        *map(_native.pointer, (graph.unit, f, result)),
    )
    return result
