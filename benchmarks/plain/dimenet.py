"""DimeNet++ with periodic edges as the authors of Con-CDVAE run it, restated: the baseline's encoder.

For every edge j -> i its triplets k -> j -> i (k another atom than i) are rows of their own: 42 products of radial and
angular basis, and messages of 64 channels, both gathered, multiplied, and summed by ``scatter_add``.

Reference: Gasteiger, Giri, Margraf, Guennemann, arXiv 2011.14115.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn import functional

from druse import Graph
from druse_export.models.dimenet import DimeNet, DimeNetConfig
from druse_export.models.geometry import spherical_bessel_zeros
from plain.gemnet import sum_into
from plain.triplets import directed_edges, legendre, pairs_at


class PathGraph(NamedTuple):
    """Directed edges j -> i ``[E]`` and triplets k -> j -> i ``[T]`` as pairs of edges, with their basis functions."""

    crystal: Tensor
    n_atoms: Tensor
    src: Tensor
    dst: Tensor
    distance: Tensor
    kj: Tensor
    ji: Tensor
    spherical: Tensor


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def path_graph(graph: Graph, cart: Tensor, cells: Tensor, config: DimeNetConfig) -> PathGraph:
    """What the encoder takes, from a graph of half edges and positions ``[N, 3]``, in the type of these."""
    edges = directed_edges(graph, cart, cells)
    kj, ji = pairs_at(edges.src, edges.dst, graph.n_atoms)
    different = edges.src[kj] != edges.dst[ji]
    kj, ji = kj[different], ji[different]
    unit = edges.vector / edges.distance[:, None]
    angular = legendre(torch.sum(unit[ji] * unit[kj], dim=-1), config.n_spherical)
    radial = spherical_bessel(edges.distance, config)
    n_atoms = torch.tensor(graph.offsets).diff()
    return PathGraph(
        crystal=torch.repeat_interleave(torch.arange(graph.n_crystals), n_atoms),
        n_atoms=n_atoms,
        src=edges.src,
        dst=edges.dst,
        distance=edges.distance,
        kj=kj,
        ji=ji,
        spherical=(radial[kj] * angular[:, :, None]).flatten(1),
    )


@functools.cache
def bessel_constants(n_spherical: int, n_radial: int) -> tuple[np.ndarray, np.ndarray]:
    """The zeros z_ln of the spherical Bessel functions j_l, and sqrt 2 / |j_{l+1}(z_ln)|."""
    zeros = spherical_bessel_zeros(n_spherical, n_radial)
    return zeros, 2**0.5 / np.abs(special.spherical_jn(np.arange(n_spherical)[:, None] + 1, zeros))


def spherical_bessel(distance: Tensor, config: DimeNetConfig) -> Tensor:
    """Normalised j_l(z_ln d) under the envelope, ``[E, n_spherical, n_radial]``, by the upward recursion."""
    d = distance[:, None, None] / config.cutoff
    zeros, scale = (torch.from_numpy(a).to(d.dtype) for a in bessel_constants(config.n_spherical, config.n_radial))
    x = zeros * d
    before, value = torch.cos(x) / x, torch.sin(x) / x  # j_{-1} and j_0
    rows = [value[:, 0]]
    for order in range(1, config.n_spherical):
        before, value = value, (2 * order - 1) / x * value - before
        rows.append(value[:, order])
    return torch.stack(rows, dim=1) * scale * envelope(d)


def envelope(d: Tensor) -> Tensor:
    """The envelope with exponent 5, divided by the scaled distance."""
    return torch.where(d < 1, 1 / d - 28 * d**5 + 48 * d**6 - 21 * d**7, torch.zeros_like(d))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.silu(self.second(functional.silu(self.first(x))))


def residuals(n: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(n)))


class Bessel(nn.Module):
    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.frequencies = nn.Parameter(torch.arange(1, n_radial + 1) * torch.pi)

    def forward(self, distance: Tensor) -> Tensor:
        d = distance[:, None] / self.cutoff
        return envelope(d) * torch.sin(self.frequencies * d)


class Interaction(nn.Module):
    def __init__(self, config: DimeNetConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.rbf1 = nn.Linear(config.n_radial, config.basis, bias=False)
        self.rbf2 = nn.Linear(config.basis, hidden, bias=False)
        self.sbf1 = nn.Linear(config.n_spherical * config.n_radial, config.basis, bias=False)
        self.sbf2 = nn.Linear(config.basis, config.interaction, bias=False)
        self.kj = nn.Linear(hidden, hidden)
        self.ji = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, config.interaction, bias=False)
        self.up = nn.Linear(config.interaction, hidden, bias=False)
        self.before_skip = residuals(config.n_before_skip, hidden)
        self.linear = nn.Linear(hidden, hidden)
        self.after_skip = residuals(config.n_after_skip, hidden)

    def forward(self, x: Tensor, rbf: Tensor, graph: PathGraph) -> Tensor:
        x_ji = functional.silu(self.ji(x))
        x_kj = functional.silu(self.kj(x)) * self.rbf2(self.rbf1(rbf))
        x_kj = functional.silu(self.down(x_kj))
        messages = x_kj[graph.kj] * self.sbf2(self.sbf1(graph.spherical))
        h = x_ji + functional.silu(self.up(sum_into(messages, graph.ji, len(x))))
        return self.after_skip(functional.silu(self.linear(self.before_skip(h))) + x)


class Output(nn.Module):
    def __init__(self, config: DimeNetConfig) -> None:
        super().__init__()
        self.rbf = nn.Linear(config.n_radial, config.hidden, bias=False)
        self.up = nn.Linear(config.hidden, config.out)
        self.layers = nn.ModuleList(nn.Linear(config.out, config.out) for _ in range(config.n_output_layers))
        self.last = nn.Linear(config.out, config.latent, bias=False)

    def forward(self, x: Tensor, rbf: Tensor, graph: PathGraph) -> Tensor:
        h = self.up(sum_into(self.rbf(rbf) * x, graph.dst, len(graph.crystal)))
        for layer in self.layers:
            h = functional.silu(layer(h))
        return self.last(h)


class PlainDimeNet(nn.Module):
    """The encoder; its parameters are named and shaped as `druse_export.models.dimenet.DimeNet`'s."""

    def __init__(self, config: DimeNetConfig) -> None:
        super().__init__()
        self.rbf = Bessel(config.n_radial, config.cutoff)
        self.elements = nn.Parameter(torch.empty(config.n_elements, config.hidden))
        self.embedding_rbf = nn.Linear(config.n_radial, config.hidden)
        self.embedding = nn.Linear(3 * config.hidden, config.hidden)
        self.outputs = nn.ModuleList(Output(config) for _ in range(config.n_blocks + 1))
        self.interactions = nn.ModuleList(Interaction(config) for _ in range(config.n_blocks))

    def forward(self, atom_types: Tensor, graph: PathGraph) -> Tensor:
        """Atomic numbers ``[N]`` to ``[B, latent]``."""
        rbf = self.rbf(graph.distance)
        h = self.elements[atom_types]
        ends = [h[graph.dst], h[graph.src], functional.silu(self.embedding_rbf(rbf))]
        x = functional.silu(self.embedding(torch.cat(ends, dim=-1)))
        per_atom = self.outputs[0](x, rbf, graph)
        for interaction, output in zip(self.interactions, list(self.outputs)[1:], strict=True):
            x = interaction(x, rbf, graph)
            per_atom = per_atom + output(x, rbf, graph)
        return sum_into(per_atom, graph.crystal, len(graph.n_atoms)) / graph.n_atoms[:, None]


def load_dimenet(ours: DimeNet) -> PlainDimeNet:
    """The baseline with our weights."""
    plain = PlainDimeNet(ours.config)
    plain.load_state_dict(ours.state_dict())
    return plain
