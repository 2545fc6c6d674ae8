"""The score network: GemNet-T in dense blocks, without a scatter, a boolean mask or a triplet index array.

H undirected edges; edge streams are ``[2, H, channels]``, so the mirror of every directed edge is a flip of the first
axis. All edges into one atom form a dense block, found by the graph's ``in_edge``; ``slot`` leads back.

=====================  ===========================================================================================
GemNet (NeurIPS 2021)  here
=====================  ===========================================================================================
h_a, m_ca              ``h`` ``[N, atom]``, ``m`` ``[2, H, edge]``
e_RBF(d_ca)            ``radial`` ``[H, 128]``, computed outside (`druse.basis.radial_basis`)
e_CBF(d_ca, phi_cab)   its radial half ``R`` ``[H, c, l]`` from ``radial``, its angular half from unit vectors
sum over b             `druse_export.models.paths.triplet_sum`: the in-edges of each atom, one matrix product
bilinear layer         one matrix product, ``[2 H, c * trip] @ [c * trip, bilinear]``
F_ca                   sixteen channels summed over the output blocks, met by the radial basis once, at the end
=====================  ===========================================================================================

The energy branch of GemNet is not used by Con-CDVAE and is left out.
"""

import math
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse_export.models.blocks import (
    INV_SQRT_2,
    SILU_GAIN,
    Dense,
    Residual,
    Scaled,
    at_ends,
    chain,
    gather,
    he_orthogonal_,
    rearranged,
)
from druse_export.models.paths import Paths, triplet_sum


class GemNetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes of the score network; the defaults are Con-CDVAE's."""

    latent: int = 256
    time: int = 64
    atom: int = 128
    edge: int = 128
    triplet: int = 64
    rbf: int = 16
    cbf: int = 16
    bilinear: int = 64
    n_radial: int = 128
    n_spherical: int = 7
    n_blocks: int = 3
    n_before_skip: int = 1
    n_after_skip: int = 2
    n_concat: int = 1
    n_atom: int = 3
    n_species: int = 100
    cutoff: float = 9.0
    max_neighbors: int = 20


class ScoreGeometry(NamedTuple):
    """A graph of half edges as tensors, with what the network needs of its geometry.

    Attributes:
        src, dst: ``[H]`` ends of the half edges.
        crystal: ``[N]`` the crystal of each atom.
        in_edge: ``[N, D]`` directed edges into each atom; anything in range where ``valid`` is 0.
        valid: ``[N, D]`` 1 for an edge, 0 for padding.
        slot: ``[2 H]`` the place of each directed edge in the flattened ``in_edge``.
        unit: ``[H, 3]`` from source to target.
        radial: ``[H, n_radial]``.
        degree: ``[N]`` number of directed edges into each atom.
    """

    src: Tensor
    dst: Tensor
    crystal: Tensor
    in_edge: Tensor
    valid: Tensor
    slot: Tensor
    unit: Tensor
    radial: Tensor
    degree: Tensor

    def paths(self) -> Paths:
        """Sums for an edge into an atom run over all other edges into it."""
        edges = torch.arange(len(self.slot), dtype=torch.int32, device=self.slot.device)
        table = self.in_edge, self.degree
        return Paths(*table, self.slot, *table, self.slot, edges, edges, self.unit)


class Scale(nn.Module):
    """A fixed factor that keeps the variance of a sum or product; it travels in the checkpoint."""

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times the factor."""
        return x * self.factor


class EdgeUpdate(nn.Module):
    """Dense layer on [h_source, h_target, edge features], its weight in three pieces: two of them act on atoms."""

    def __init__(self, n_atom: int, n_feature: int, n_out: int) -> None:
        super().__init__()
        weight = he_orthogonal_(torch.empty(n_out, 2 * n_atom + n_feature))
        pieces = torch.split(weight, [n_atom, n_atom, n_feature], dim=1)
        self.source, self.target, self.feature = (nn.Parameter(piece.clone()) for piece in pieces)

    def forward(self, h: Tensor, feature: Scaled, geometry: ScoreGeometry) -> Scaled:
        """Atoms ``[N, atom]`` and features ``[2 or 1, H, feature]`` (before their weight) to ``[2, H, out]``."""
        n_half, into = len(geometry.src), geometry.in_edge
        sources, targets = torch.cat([geometry.src, geometry.dst]), torch.cat([geometry.dst, geometry.src])
        out_of = torch.where(into < n_half, into + n_half, into - n_half)  # the mirror of an edge into an atom
        ends = at_ends(functional.linear(h, self.source), sources, out_of, geometry.valid)
        ends = ends + at_ends(functional.linear(h, self.target), targets, into, geometry.valid)
        features = functional.linear(feature.value, self.feature * feature.factor)
        return Scaled(functional.silu(ends.reshape(2, n_half, ends.shape[1]) + features), SILU_GAIN)


class AtomUpdate(nn.Module):
    """Sum of the edges into each atom, weighted by their radial basis, then dense layers."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.radial = Dense(config.rbf, config.edge, activate=False)
        self.scale = Scale()
        self.dense = Dense(config.edge, config.atom)
        self.residuals = nn.ModuleList(Residual(config.atom) for _ in range(config.n_atom))

    def forward(self, m: Scaled, rbf_h: Tensor, geometry: ScoreGeometry) -> Scaled:
        """Edges ``[2, H, edge]`` to atoms ``[N, atom]``."""
        weighted = (m.value * self.radial.scaled(Scaled(rbf_h, m.factor)).value).flatten(0, 1)
        rows = rearranged(weighted, geometry.in_edge.flatten(), geometry.slot)
        rows = rows.reshape(*geometry.in_edge.shape, weighted.shape[1])
        total = torch.matmul(geometry.valid.to(rows.dtype)[:, None, :], rows).squeeze(1)
        return chain(self.residuals, self.dense.scaled(Scaled(self.scale(total), 1.0)))


class Triplets(nn.Module):
    """Messages from b -> a to c -> a by distance and angle, and to a -> c by the mirror."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.dense_ba = Dense(config.edge, config.edge)
        self.radial = Dense(config.rbf, config.edge, activate=False)
        self.scale_radial = Scale()
        self.down = Dense(config.edge, config.triplet)
        # [cbf, triplet, bilinear]
        self.bilinear = nn.Parameter(he_orthogonal_(torch.empty(config.cbf, config.triplet, config.bilinear)))
        self.scale_sum = Scale()
        self.up_ca = Dense(config.bilinear, config.edge)
        self.up_ac = Dense(config.bilinear, config.edge)

    def forward(self, m: Scaled, rbf3: Tensor, radial_cbf: Tensor, paths: Paths) -> Scaled:
        """Edges ``[2, H, edge]`` to the same; ``radial_cbf`` is ``[H, cbf, n_spherical]``."""
        n_half = m.value.shape[1]
        x, gain = self.dense_ba.scaled(m)
        x = self.scale_radial(x * self.radial.scaled(Scaled(rbf3, gain)).value)
        x, gain = self.down.scaled(Scaled(x, 1.0))
        t = triplet_sum(x.flatten(0, 1), radial_cbf, paths).reshape(2, n_half, -1)  # [2, H, cbf * triplet]
        t = self.scale_sum(torch.matmul(t, self.bilinear.flatten(0, 1) * gain))
        both = self.up_ca.scaled(Scaled(t, 1.0)), self.up_ac.scaled(Scaled(t, 1.0))
        return Scaled(both[0].value + both[1].value.flip(0), SILU_GAIN * INV_SQRT_2)


class Interaction(nn.Module):
    """One interaction block."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.dense_ca = Dense(config.edge, config.edge)
        self.triplets = Triplets(config)
        self.before_skip = nn.ModuleList(Residual(config.edge) for _ in range(config.n_before_skip))
        self.after_skip = nn.ModuleList(Residual(config.edge) for _ in range(config.n_after_skip))
        self.atom_update = AtomUpdate(config)
        self.concat = EdgeUpdate(config.atom, config.edge, config.edge)
        self.residual_m = nn.ModuleList(Residual(config.edge) for _ in range(config.n_concat))

    def forward(
        self,
        h: Tensor,
        m: Scaled,
        rbf3: Tensor,
        rbf_h: Tensor,
        radial_cbf: Tensor,
        geometry: ScoreGeometry,
        paths: Paths,
    ) -> tuple[Tensor, Scaled]:
        """Atoms and edges to the same."""
        x = self.dense_ca.scaled(m).plus(self.triplets(m, rbf3, radial_cbf, paths))
        m = chain(self.after_skip, m.plus(chain(self.before_skip, x)))
        h = Scaled(h, 1.0).plus(self.atom_update(m, rbf_h, geometry)).tensor()
        updated = chain(self.residual_m, self.concat(h, m, geometry))
        return h, m.plus(updated)


class ForceHead(nn.Module):
    """Edge forces of one output block, as coefficients of the radial basis."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.dense = Dense(config.edge, config.edge)
        self.residuals = nn.ModuleList(Residual(config.edge) for _ in range(config.n_atom))
        self.radial = Dense(config.rbf, config.edge, activate=False)
        self.scale = Scale()
        self.out = nn.Parameter(he_orthogonal_(torch.empty(1, config.edge)))

    def forward(self, m: Scaled) -> Tensor:
        """Edges ``[2, H, edge]`` to ``[2, H, rbf]``; the force is its product with the radial basis."""
        x = chain(self.residuals, self.dense.scaled(m))
        weight = self.scale(self.radial.weight * self.out.T)  # [edge, rbf]
        return torch.matmul(x.value, weight * x.factor)


class GemNet(nn.Module):
    """The decoder of Con-CDVAE: a Cartesian score and element logits for a noisy crystal."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.config = config
        self.rbf3 = Dense(config.n_radial, config.rbf, activate=False)
        self.rbf_h = Dense(config.n_radial, config.rbf, activate=False)
        self.rbf_out = Dense(config.n_radial, config.rbf, activate=False)
        # [n_spherical, n_radial, cbf]
        self.cbf3 = nn.Parameter(he_orthogonal_(torch.empty(config.n_spherical, config.n_radial, config.cbf)))
        self.elements = nn.Parameter(torch.empty(config.n_species, config.atom).uniform_(-math.sqrt(3), math.sqrt(3)))
        self.atom_latent = nn.Linear(config.atom + config.latent + config.time, config.atom)
        self.edge_embedding = EdgeUpdate(config.atom, config.n_radial, config.edge)
        self.interactions = nn.ModuleList(Interaction(config) for _ in range(config.n_blocks))
        self.forces = nn.ModuleList(ForceHead(config) for _ in range(config.n_blocks + 1))
        self.species = nn.Linear(config.atom, config.n_species)

    def edge_forces(self, z: Tensor, atom_types: Tensor, geometry: ScoreGeometry) -> tuple[Tensor, Tensor]:
        """Forces along the directed edges ``[2, H]`` and logits ``[N, n_species]``; arguments as of `forward`."""
        config = self.config
        # everything that the radial basis is multiplied with, in one product on undirected edges
        normal = torch.tensor(
            [math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(config.n_spherical)],
            device=self.cbf3.device,
            dtype=self.cbf3.dtype,
        )
        cbf = (self.cbf3 * normal[:, None, None]).permute(2, 0, 1).reshape(-1, config.n_radial)
        weight = torch.cat([self.rbf3.weight, self.rbf_h.weight, self.rbf_out.weight, cbf])
        rbf3, rbf_h, rbf_out, radial_cbf = torch.split(
            functional.linear(geometry.radial, weight), [config.rbf, config.rbf, config.rbf, cbf.shape[0]], dim=-1
        )
        radial_cbf = radial_cbf.reshape(-1, config.cbf, config.n_spherical)

        of_element, of_latent = torch.split(self.atom_latent.weight, [config.atom, config.latent + config.time], dim=1)
        table = functional.linear(self.elements, of_element)
        per_crystal = functional.linear(z, of_latent, self.atom_latent.bias)
        h = gather(table, atom_types - 1) + gather(per_crystal, geometry.crystal)
        m = self.edge_embedding(h, Scaled(geometry.radial[None], 1.0), geometry)

        force, paths = self.forces[0](m), geometry.paths()
        for interaction, head in zip(self.interactions, list(self.forces)[1:], strict=True):
            h, m = interaction(h, m, rbf3, rbf_h, radial_cbf, geometry, paths)
            force = force + head(m)
        return torch.sum(force * rbf_out, dim=-1), self.species(h)

    def forward(self, z: Tensor, atom_types: Tensor, geometry: ScoreGeometry) -> tuple[Tensor, Tensor]:
        """The score times sigma, and element logits.

        Args:
            z: ``[crystals, latent + time]``, z_con and the embedding of the noise level.
            atom_types: ``[N]`` atomic numbers.
            geometry: of the noisy crystals.

        Returns:
            ``[N, 3]`` Cartesian and ``[N, n_species]``.
        """
        force, logits = self.edge_forces(z, atom_types, geometry)
        vectors = torch.stack([force[0, :, None] * geometry.unit, force[1, :, None] * -geometry.unit])
        rows = rearranged(vectors.flatten(0, 1), geometry.in_edge.flatten(), geometry.slot)
        rows = rows.reshape(*geometry.in_edge.shape, 3)
        return torch.sum(rows * geometry.valid.to(rows.dtype)[..., None], dim=1), logits
