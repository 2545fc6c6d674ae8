"""CGCNN: properties of a crystal from its graph (Xie and Grossman, Phys. Rev. Lett. 120, 145301, 2018).

Each atom has exactly ``n_neighbors`` neighbours, the nearest within the cutoff, in a dense table; an atom with fewer is
filled up, as the authors' code does, with atom 0 of its crystal at the cutoff plus 1 Angstrom.

=================  ===============================================================
paper              here
=================  ===============================================================
v_i                ``atoms``: embedded element features
u_(i,j)            ``gaussians``: the distance on a grid, width = spacing
eq. 5              ``Convolution``: gate (sigmoid) times core (softplus), summed
pooling            mean over the atoms of a crystal
=================  ===============================================================
"""

from typing import Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse import properties
from druse.crystals import Crystals
from druse.elements import element_features
from druse.errors import InputError
from druse.graphs import Graph, radius_graph
from druse_export.models.blocks import check_sizes


class CGCNNConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes; the defaults are the authors'. ``n_out`` is 1 for regression, the number of classes for classification."""

    task: Literal["regression", "classification"] = "regression"
    n_out: int = 1
    atom: int = 64
    hidden: int = 128
    n_convolutions: int = 3
    n_neighbors: int = 12
    cutoff: float = 8.0
    spacing: float = 0.2

    def __post_init__(self) -> None:
        check_sizes(self)
        if not 0 < self.cutoff < 1e3 or not 1 <= self.cutoff / max(self.spacing, 1e-9) < 1e4:
            raise InputError(
                f"`cutoff` and `spacing` must be of a grid of distances, got {self.cutoff}, {self.spacing}"
            )


class NeighborTable(NamedTuple):
    """A batch of crystals as CGCNN sees it.

    Attributes:
        atom_types: ``[N]`` atomic numbers.
        neighbor: ``[N, n_neighbors]`` atom indices.
        distance: ``[N, n_neighbors]`` Angstrom.
        crystal: ``[N]`` the crystal of each atom.
        n_atoms: ``[B]`` atoms of each crystal.
    """

    atom_types: Tensor
    neighbor: Tensor
    distance: Tensor
    crystal: Tensor
    n_atoms: Tensor


def neighbor_table(graph: Graph, species: np.ndarray, config: CGCNNConfig) -> NeighborTable:
    """`druse.properties.neighbor_table` as tensors, with what else the network takes."""
    neighbor, distance = properties.neighbor_table(graph, config.n_neighbors, config.cutoff)
    sizes = np.diff(graph.offsets)
    return NeighborTable(
        atom_types=torch.from_numpy(species.astype(np.int64)),
        neighbor=torch.from_numpy(neighbor),
        distance=torch.from_numpy(distance),
        crystal=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        n_atoms=torch.from_numpy(sizes),
    )


def crystal_table(crystals: Crystals, config: CGCNNConfig) -> NeighborTable:
    """The neighbours of crystals, found here: exactly as many as the network takes, ties by order."""
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=config.cutoff, max_neighbors=config.n_neighbors,
        shell_tolerance=None,
    )  # fmt: skip
    return neighbor_table(graph, crystals.species, config)


class Convolution(nn.Module):
    """v_i' = softplus(v_i + norm(sum over j of sigmoid(gate) softplus(core)))."""

    def __init__(self, atom: int, n_gaussians: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * atom + n_gaussians, 2 * atom)
        self.norm_edges = nn.BatchNorm1d(2 * atom)
        self.norm_atoms = nn.BatchNorm1d(atom)

    def forward(self, v: Tensor, gaussians: Tensor, neighbor: Tensor) -> Tensor:
        """Atoms ``[N, atom]`` and edges ``[N, M, gaussians]`` to atoms."""
        n_atoms, width = neighbor.shape
        here, there, edge = torch.split(self.linear.weight, [v.shape[1], v.shape[1], gaussians.shape[-1]], dim=1)
        ends = functional.linear(v, torch.cat([here, there]))
        own, other = torch.chunk(ends, 2, dim=1)
        z = own[:, None] + other.index_select(0, neighbor.reshape(-1)).reshape(n_atoms, width, -1)
        z = z + functional.linear(gaussians, edge, self.linear.bias)
        z = self.norm_edges(z.flatten(0, 1)).reshape(n_atoms, width, -1)
        gate, core = torch.chunk(z, 2, dim=-1)
        summed = torch.sum(torch.sigmoid(gate) * functional.softplus(core), dim=1)
        return functional.softplus(v + self.norm_atoms(summed))


class CGCNN(nn.Module):
    """The network, with the mean and standard deviation of its training targets."""

    centres: Tensor
    features: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, config: CGCNNConfig) -> None:
        super().__init__()
        self.config = config
        n_gaussians = round(config.cutoff / config.spacing) + 1
        self.register_buffer("centres", torch.arange(n_gaussians) * config.spacing, persistent=False)
        self.register_buffer("features", torch.tensor(element_features()), persistent=False)
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))
        self.embedding = nn.Linear(self.features.shape[1], config.atom)
        self.convolutions = nn.ModuleList(Convolution(config.atom, n_gaussians) for _ in range(config.n_convolutions))
        self.hidden = nn.Linear(config.atom, config.hidden)
        self.dropout = nn.Dropout(0.5 if config.task == "classification" else 0.0)
        self.out = nn.Linear(config.hidden, config.n_out)

    def embed(self, atom_types: Tensor, neighbor: Tensor, distance: Tensor) -> Tensor:
        """Atoms, their neighbours and distances, as in `NeighborTable`, to features ``[N, atom]``."""
        v = self.embedding(self.features.index_select(0, atom_types))
        gaussians = torch.exp(-(((distance[..., None] - self.centres) / self.config.spacing) ** 2))
        for convolution in self.convolutions:
            v = convolution(v, gaussians, neighbor)
        return v

    def read_out(self, mean: Tensor) -> Tensor:
        """The mean over each crystal's atoms ``[B, atom]`` to what `forward` gives."""
        h = functional.softplus(self.hidden(functional.softplus(mean)))
        out = self.out(self.dropout(h))
        return out.squeeze(-1) if self.config.task == "regression" else functional.log_softmax(out, dim=-1)

    def forward(self, table: NeighborTable) -> Tensor:
        """``[B]`` standardised values, or ``[B, n_out]`` log-probabilities."""
        v = self.embed(table.atom_types, table.neighbor, table.distance)
        total = torch.zeros(len(table.n_atoms), v.shape[1], dtype=v.dtype, device=v.device)
        return self.read_out(total.index_add(0, table.crystal, v) / table.n_atoms[:, None])

    def in_units(self, out: Tensor) -> Tensor:
        """What `forward` gives as values in the property's unit, or as probabilities."""
        return out * self.target_std + self.target_mean if self.config.task == "regression" else out.exp()

    def predict(self, table: NeighborTable) -> Tensor:
        """``[B]`` values in the property's unit, or ``[B, n_out]`` probabilities."""
        return self.in_units(self(table))
