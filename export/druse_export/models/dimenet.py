"""The encoder: DimeNet++ with periodic edges, in dense blocks.

For every edge j -> i, messages of the edges k -> j are summed, except those from the atom i itself (all its images).
The edges out of an atom j and the edges into it form a dense block, so a sum over k is a matrix product.

=====================================  ===========================================================================
DimeNet++ (arXiv 2011.14115)           here
=====================================  ===========================================================================
e_RBF, 6 Bessel functions x envelope   ``BesselBasis``
a_SBF, 7 x 6 spherical functions       ``spherical_bessel`` of d_kj times Y_l of the angle between j -> i and k -> j
lin_sbf1, lin_sbf2                     one weight on the radial half, see `druse_export.models.paths.path_sum`
=====================================  ===========================================================================
"""

import math
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse_export.models.blocks import at_ends, chain, rearranged
from druse_export.models.paths import Paths, path_sum


class DimeNetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes of the encoder; the defaults are Con-CDVAE's."""

    hidden: int = 128
    n_blocks: int = 4
    interaction: int = 64
    basis: int = 8
    out: int = 256
    latent: int = 256
    n_spherical: int = 7
    n_radial: int = 6
    n_before_skip: int = 1
    n_after_skip: int = 2
    n_output_layers: int = 3
    n_elements: int = 95
    cutoff: float = 7.0
    max_neighbors: int = 20


class EncoderGeometry(NamedTuple):
    """A graph of directed edges as tensors, with what the encoder needs of its geometry.

    Attributes:
        src, dst: ``[E]`` ends of the directed edges.
        crystal: ``[N]`` the crystal of each atom.
        n_atoms: ``[B]`` atoms of each crystal.
        distance: ``[E]`` Angstrom.
        unit: ``[E, 3]`` from source to target.
        spherical: ``[E, n_spherical, n_radial]`` radial half of the spherical basis, envelope included.
        in_edge: ``[N, Di]`` edges into each atom; anything in range where ``in_valid`` is 0.
        in_valid: ``[N, Di]``.
        in_degree: ``[N]``.
        in_slot: ``[E]`` place of each edge in the flattened ``in_edge``.
        out_edge: ``[N, Do]`` edges out of each atom; anything in range in padding.
        out_degree: ``[N]``.
        out_slot: ``[E]`` place of each edge in the flattened ``out_edge``.
    """

    src: Tensor
    dst: Tensor
    crystal: Tensor
    n_atoms: Tensor
    distance: Tensor
    unit: Tensor
    spherical: Tensor
    in_edge: Tensor
    in_valid: Tensor
    in_degree: Tensor
    in_slot: Tensor
    out_edge: Tensor
    out_degree: Tensor
    out_slot: Tensor

    def paths(self) -> Paths:
        """Sums for an edge j -> i run over the edges k -> j, k being no image of i."""
        out, into = (self.out_edge, self.out_degree, self.out_slot), (self.in_edge, self.in_degree, self.in_slot)
        return Paths(*out, *into, self.dst.to(torch.int32), self.src.to(torch.int32), self.unit)

    def sum_in_edges(self, x: Tensor) -> Tensor:
        """Sums over the edges into each atom: ``[E, channels]`` to ``[N, channels]``."""
        rows = rearranged(x, self.in_edge.flatten(), self.in_slot).reshape(*self.in_edge.shape, x.shape[1])
        return torch.matmul(self.in_valid.to(rows.dtype)[:, None, :], rows).squeeze(1)


class BesselBasis(nn.Module):
    """Spherical Bessel functions of order 0 under the envelope, with trained frequencies that start at n pi."""

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.frequencies = nn.Parameter(torch.arange(1, n_radial + 1) * torch.pi)

    def forward(self, distance: Tensor) -> Tensor:
        """Distances ``[E]`` in Angstrom to ``[E, n_radial]``."""
        d = distance[:, None] / self.cutoff
        return envelope_over_distance(d) * torch.sin(self.frequencies * d)


def envelope_over_distance(d: Tensor) -> Tensor:
    """DimeNet's envelope with exponent 5, divided by the scaled distance: 1/d - 28 d^5 + 48 d^6 - 21 d^7 below 1."""
    d5 = d**5
    return torch.where(d < 1, 1 / d + d5 * (-28 + d * (48 - 21 * d)), torch.zeros_like(d))


class SiluResidual(nn.Module):
    """A residual layer of DimeNet: x + silu(linear(silu(linear(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = orthogonal_linear(width, width)
        self.second = orthogonal_linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same."""
        return x + functional.silu(self.second(functional.silu(self.first(x))))


def orthogonal_linear(n_in: int, n_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with DimeNet's initialisation: orthogonal, at Glorot's variance times 2; zero bias."""
    linear = nn.Linear(n_in, n_out, bias=bias)
    nn.init.orthogonal_(linear.weight)
    with torch.no_grad():
        linear.weight.mul_((2.0 / ((n_in + n_out) * linear.weight.var())).sqrt())
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class DimeNetInteraction(nn.Module):
    """One interaction block: messages from k -> j to j -> i by distance and angle."""

    def __init__(self, config: DimeNetConfig) -> None:
        super().__init__()
        hidden, basis = config.hidden, config.basis
        self.rbf1 = orthogonal_linear(config.n_radial, basis, bias=False)
        self.rbf2 = orthogonal_linear(basis, hidden, bias=False)
        self.sbf1 = orthogonal_linear(config.n_spherical * config.n_radial, basis, bias=False)
        self.sbf2 = orthogonal_linear(basis, config.interaction, bias=False)
        self.kj = orthogonal_linear(hidden, hidden)
        self.ji = orthogonal_linear(hidden, hidden)
        self.down = orthogonal_linear(hidden, config.interaction, bias=False)
        self.up = orthogonal_linear(config.interaction, hidden, bias=False)
        self.before_skip = nn.ModuleList(SiluResidual(hidden) for _ in range(config.n_before_skip))
        self.linear = orthogonal_linear(hidden, hidden)
        self.after_skip = nn.ModuleList(SiluResidual(hidden) for _ in range(config.n_after_skip))

    def forward(self, x: Tensor, rbf: Tensor, spherical: Tensor, paths: Paths) -> Tensor:
        """Edges ``[E, hidden]`` to the same."""
        x_ji = functional.silu(self.ji(x))
        x_kj = functional.silu(self.kj(x)) * self.rbf2(self.rbf1(rbf))
        x_kj = functional.silu(self.down(x_kj))

        # both linear layers on the spherical basis, and the normalisation of Y_l, as one
        normal = ((2 * torch.arange(spherical.shape[1], dtype=x.dtype, device=x.device) + 1) / (4 * math.pi)).sqrt()
        weight = torch.matmul(self.sbf1.weight.T, self.sbf2.weight.T).reshape(*spherical.shape[1:], -1)
        h = x_ji + functional.silu(self.up(path_sum(x_kj, weight * normal[:, None, None], spherical, paths)))
        h = functional.silu(self.linear(chain(self.before_skip, h))) + x
        return chain(self.after_skip, h)


class DimeNetOutput(nn.Module):
    """One output block: edges to latent contributions of atoms. The last layer starts near zero, not at it."""

    def __init__(self, config: DimeNetConfig) -> None:
        super().__init__()
        self.rbf = orthogonal_linear(config.n_radial, config.hidden, bias=False)
        self.up = orthogonal_linear(config.hidden, config.out)
        self.layers = nn.ModuleList(orthogonal_linear(config.out, config.out) for _ in range(config.n_output_layers))
        self.last = orthogonal_linear(config.out, config.latent, bias=False)
        with torch.no_grad():
            self.last.weight.mul_(0.1)

    def forward(self, x: Tensor, rbf: Tensor, geometry: EncoderGeometry) -> Tensor:
        """Edges ``[E, hidden]`` to atoms ``[N, latent]``."""
        h = self.up(geometry.sum_in_edges(x * self.rbf(rbf)))
        for layer in self.layers:
            h = functional.silu(layer(h))
        return self.last(h)


class DimeNet(nn.Module):
    """Crystals to vectors, by the mean over their atoms."""

    def __init__(self, config: DimeNetConfig) -> None:
        super().__init__()
        self.config = config
        self.rbf = BesselBasis(config.n_radial, config.cutoff)
        self.elements = nn.Parameter(torch.empty(config.n_elements, config.hidden).uniform_(-(3**0.5), 3**0.5))
        self.embedding_rbf = nn.Linear(config.n_radial, config.hidden)
        self.embedding = nn.Linear(3 * config.hidden, config.hidden)
        self.outputs = nn.ModuleList(DimeNetOutput(config) for _ in range(config.n_blocks + 1))
        self.interactions = nn.ModuleList(DimeNetInteraction(config) for _ in range(config.n_blocks))

    def forward(self, atom_types: Tensor, geometry: EncoderGeometry) -> Tensor:
        """Atomic numbers ``[N]`` and a graph to ``[B, latent]``."""
        rbf = self.rbf(geometry.distance)
        of_target, of_source, of_rbf = torch.split(self.embedding.weight, self.config.hidden, dim=1)
        ends = functional.linear(self.elements, torch.cat([of_target, of_source])).index_select(0, atom_types)
        targets, sources = torch.chunk(ends, 2, dim=1)
        out_valid = (
            torch.arange(geometry.out_edge.shape[1], device=targets.device) < geometry.out_degree[:, None]
        ).float()
        x = at_ends(targets, geometry.dst, geometry.in_edge, geometry.in_valid)
        x = x + at_ends(sources, geometry.src, geometry.out_edge, out_valid)
        x = x + functional.linear(functional.silu(self.embedding_rbf(rbf)), of_rbf, self.embedding.bias)
        x = functional.silu(x)
        per_atom = self.outputs[0](x, rbf, geometry)
        paths = geometry.paths()
        for interaction, output in zip(self.interactions, list(self.outputs)[1:], strict=True):
            x = interaction(x, rbf, geometry.spherical, paths)
            per_atom = per_atom + output(x, rbf, geometry)
        per_atom = per_atom.to(torch.promote_types(per_atom.dtype, torch.float32))
        total = torch.zeros(len(geometry.n_atoms), per_atom.shape[1], dtype=per_atom.dtype, device=per_atom.device)
        total = total.index_add(0, geometry.crystal, per_atom)
        return total / geometry.n_atoms[:, None]
