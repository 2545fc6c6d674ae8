"""GemNet-T as the authors of Con-CDVAE run it, restated: the baseline of the training benchmark.

Every directed edge is a row. The edges b -> a of each triplet b -> a <- c are gathered into a tensor with a row for
each triplet, written into a padded block ``[edges, Kmax, triplet]``, contracted with the angular and the radial basis,
and multiplied by the bilinear weights in one product for each of the 64 channels, whose results are then summed. Atoms
collect their edges by ``scatter_add``. The energy branch, which upstream computes and does not use, is left out.

Reference: Gasteiger, Becker, Guennemann, NeurIPS 2021; the efficient form of the bilinear layer is its section 5.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from druse import Graph
from druse_export.models.gemnet import GemNet, GemNetConfig
from plain.triplets import directed_edges, legendre, pairs_at, ragged_range


class TripletGraph(NamedTuple):
    """Directed edges ``[E]`` and triplets ``[T]``, sorted by ``id3_ca``, with their geometry."""

    crystal: Tensor
    src: Tensor
    dst: Tensor
    swap: Tensor
    unit: Tensor
    radial: Tensor
    id3_ba: Tensor
    id3_ca: Tensor
    id3_ragged: Tensor
    angular: Tensor
    n_atoms: int


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def triplet_graph(graph: Graph, cart: Tensor, cells: Tensor, config: GemNetConfig) -> TripletGraph:
    """What the network takes, from a graph of half edges and positions ``[N, 3]``, in the type of these."""
    edges = directed_edges(graph, cart, cells)
    unit = edges.vector / edges.distance[:, None]
    id3_ba, id3_ca = pairs_at(edges.dst, edges.dst, graph.n_atoms)
    different = id3_ba != id3_ca
    id3_ba, id3_ca = id3_ba[different], id3_ca[different]
    cosine = torch.sum(unit[id3_ca] * unit[id3_ba], dim=-1).clamp(-1, 1)
    return TripletGraph(
        crystal=torch.repeat_interleave(torch.arange(graph.n_crystals), torch.tensor(graph.offsets).diff()),
        src=edges.src,
        dst=edges.dst,
        swap=edges.swap,
        unit=unit,
        radial=radial_basis(edges.distance, config),
        id3_ba=id3_ba,
        id3_ca=id3_ca,
        id3_ragged=ragged_range(torch.bincount(id3_ca, minlength=len(unit))),
        angular=legendre(cosine, config.n_spherical),
        n_atoms=graph.n_atoms,
    )


def radial_basis(distance: Tensor, config: GemNetConfig) -> Tensor:
    """Gaussians under the polynomial envelope, ``[E, n_radial]``."""
    d = distance[:, None] / config.cutoff
    envelope = torch.where(d < 1, 1 - 21 * d**5 + 35 * d**6 - 15 * d**7, torch.zeros_like(d))
    centres = torch.linspace(0, 1, config.n_radial, dtype=d.dtype)
    return envelope * torch.exp(-0.5 * ((d - centres) * (config.n_radial - 1)) ** 2)


def sum_into(rows: Tensor, index: Tensor, n: int) -> Tensor:
    """Rows summed where they belong, ``[E, channels]`` to ``[n, channels]``, by what torch_scatter calls on a CPU."""
    return rows.new_zeros(n, rows.shape[1]).scatter_add(0, index[:, None].expand_as(rows), rows)


class Dense(nn.Linear):
    """A linear layer without bias, and the scaled SiLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(super().forward(x)) * (1 / 0.6)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Dense(width, width)
        self.second = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second(self.first(x))) * (1 / math.sqrt(2))


def residuals(n: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(n)))


class Scale(nn.Module):
    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class EdgeEmbedding(nn.Module):
    def __init__(self, n_atom: int, n_feature: int, n_out: int) -> None:
        super().__init__()
        self.dense = Dense(2 * n_atom + n_feature, n_out)

    def forward(self, h: Tensor, feature: Tensor, graph: TripletGraph) -> Tensor:
        return self.dense(torch.cat([h[graph.src], h[graph.dst], feature], dim=-1))


class AtomUpdate(nn.Module):
    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.radial = nn.Linear(config.rbf, config.edge, bias=False)
        self.scale = Scale()
        self.dense = Dense(config.edge, config.atom)
        self.residuals = residuals(config.n_atom, config.atom)

    def forward(self, m: Tensor, rbf_h: Tensor, graph: TripletGraph) -> Tensor:
        total = sum_into(m * self.radial(rbf_h), graph.dst, graph.n_atoms)
        return self.residuals(self.dense(self.scale(total)))


class Bilinear(nn.Module):
    """Sum over the neighbours, the spherical basis, and the bilinear weight ``[triplet, cbf, bilinear]``."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.triplet, config.cbf, config.bilinear))

    def forward(self, x: Tensor, basis: tuple[Tensor, Tensor], graph: TripletGraph) -> Tensor:
        radial, angular = basis  # [E, cbf, spherical], [E, spherical, Kmax]
        padded = x.new_zeros(angular.shape[0], angular.shape[2], x.shape[1])
        padded[graph.id3_ca, graph.id3_ragged] = x
        summed = torch.matmul(radial, torch.matmul(angular, padded))  # [E, cbf, triplet]
        return torch.matmul(summed.permute(2, 0, 1), self.weight).sum(dim=0)


class Triplets(nn.Module):
    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.dense_ba = Dense(config.edge, config.edge)
        self.radial = nn.Linear(config.rbf, config.edge, bias=False)
        self.scale_radial = Scale()
        self.down = Dense(config.edge, config.triplet)
        self.bilinear = Bilinear(config)
        self.scale_sum = Scale()
        self.up_ca = Dense(config.bilinear, config.edge)
        self.up_ac = Dense(config.bilinear, config.edge)

    def forward(self, m: Tensor, rbf3: Tensor, basis: tuple[Tensor, Tensor], graph: TripletGraph) -> Tensor:
        x = self.down(self.scale_radial(self.dense_ba(m) * self.radial(rbf3)))
        x = self.scale_sum(self.bilinear(x[graph.id3_ba], basis, graph))
        return (self.up_ca(x) + self.up_ac(x)[graph.swap]) * (1 / math.sqrt(2))


class Interaction(nn.Module):
    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.dense_ca = Dense(config.edge, config.edge)
        self.triplets = Triplets(config)
        self.before_skip = residuals(config.n_before_skip, config.edge)
        self.after_skip = residuals(config.n_after_skip, config.edge)
        self.atom_update = AtomUpdate(config)
        self.concat = EdgeEmbedding(config.atom, config.edge, config.edge)
        self.residual_m = residuals(config.n_concat, config.edge)

    def forward(
        self, h: Tensor, m: Tensor, rbf3: Tensor, rbf_h: Tensor, basis: tuple[Tensor, Tensor], graph: TripletGraph
    ) -> tuple[Tensor, Tensor]:
        x = (self.dense_ca(m) + self.triplets(m, rbf3, basis, graph)) * (1 / math.sqrt(2))
        m = self.after_skip((m + self.before_skip(x)) * (1 / math.sqrt(2)))
        h = (h + self.atom_update(m, rbf_h, graph)) * (1 / math.sqrt(2))
        return h, (m + self.residual_m(self.concat(h, m, graph))) * (1 / math.sqrt(2))


class ForceHead(nn.Module):
    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.dense = Dense(config.edge, config.edge)
        self.residuals = residuals(config.n_atom, config.edge)
        self.radial = nn.Linear(config.rbf, config.edge, bias=False)
        self.scale = Scale()
        self.out = nn.Linear(config.edge, 1, bias=False)

    def forward(self, m: Tensor, rbf_out: Tensor) -> Tensor:
        return self.out(self.scale(self.residuals(self.dense(m)) * self.radial(rbf_out)))


class PlainGemNet(nn.Module):
    """The decoder; `load_gemnet` gives it the weights of a `druse_export.models.gemnet.GemNet`."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.rbf3, self.rbf_h, self.rbf_out = (nn.Linear(config.n_radial, config.rbf, bias=False) for _ in range(3))
        self.cbf3 = nn.Parameter(torch.empty(config.n_spherical, config.n_radial, config.cbf))
        self.elements = nn.Embedding(config.n_species, config.atom)
        self.atom_latent = nn.Linear(config.atom + config.latent + config.time, config.atom)
        self.edge_embedding = EdgeEmbedding(config.atom, config.n_radial, config.edge)
        self.interactions = nn.ModuleList(Interaction(config) for _ in range(config.n_blocks))
        self.forces = nn.ModuleList(ForceHead(config) for _ in range(config.n_blocks + 1))
        self.species = nn.Linear(config.atom, config.n_species)

    def basis(self, graph: TripletGraph) -> tuple[Tensor, Tensor]:
        """The circular basis: radial part ``[E, cbf, spherical]``, angular part ``[E, spherical, Kmax]``, padded."""
        radial = torch.matmul(graph.radial[None], self.cbf3).permute(1, 2, 0)
        k_max = int(graph.id3_ragged.max()) + 1
        angular = graph.angular.new_zeros(len(graph.radial), k_max, graph.angular.shape[1])
        angular[graph.id3_ca, graph.id3_ragged] = graph.angular
        return radial, angular.transpose(1, 2)

    def forward(self, z: Tensor, atom_types: Tensor, graph: TripletGraph) -> tuple[Tensor, Tensor]:
        """Score times sigma ``[N, 3]`` and element logits ``[N, n_species]``, as of `GemNet.forward`."""
        h = self.atom_latent(torch.cat([self.elements(atom_types - 1), z[graph.crystal]], dim=1))
        m = self.edge_embedding(h, graph.radial, graph)
        rbf3, rbf_h, rbf_out = self.rbf3(graph.radial), self.rbf_h(graph.radial), self.rbf_out(graph.radial)
        basis = self.basis(graph)
        force = self.forces[0](m, rbf_out)
        for interaction, head in zip(self.interactions, list(self.forces)[1:], strict=True):
            h, m = interaction(h, m, rbf3, rbf_h, basis, graph)
            force = force + head(m, rbf_out)
        return sum_into(force * graph.unit, graph.dst, graph.n_atoms), self.species(h)


def gemnet_state(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the state of a `GemNet` that of a `PlainGemNet`; it also maps gradients."""
    state = {}
    for name, value in ours.items():
        stem, _, last = name.rpartition(".")
        if last == "source":
            pieces = [value, ours[f"{stem}.target"], ours[f"{stem}.feature"]]
            state[f"{stem}.dense.weight"] = torch.cat(pieces, dim=1)
        elif last == "bilinear":
            state[f"{name}.weight"] = value.transpose(0, 1)
        elif last in ("elements", "out"):
            state[f"{name}.weight"] = value
        elif last not in ("target", "feature"):
            state[name] = value
    return state


def load_gemnet(ours: GemNet) -> PlainGemNet:
    """The baseline with our weights."""
    plain = PlainGemNet(ours.config)
    plain.load_state_dict(gemnet_state(ours.state_dict()))
    return plain
