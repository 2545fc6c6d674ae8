"""Con-CDVAE: encoder, condition, heads, predictor and score network in one module.

==================  ==========================================================
paper               here
==================  ==========================================================
encoder, z          ``encode``: mu and log-variance of q(z | crystal)
Condition, eq. 10   ``condition``
z_con, eq. 11       ``mix_latent``
heads on z_con      ``heads``: atom count, lattice, composition
Predictor, eq. 12   ``predictor``: properties from z
s_theta             ``score``: the decoder at a noise level
==================  ==========================================================
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse.conditions import ClassProperty, Property, ScalarProperty
from druse.errors import InputError
from druse_export.models.blocks import SinusoidalEmbedding, check_sizes, check_time, mlp
from druse_export.models.condition import Condition
from druse_export.models.dimenet import DimeNet, DimeNetConfig, EncoderGeometry
from druse_export.models.gemnet import GemNet, GemNetConfig, ScoreGeometry


class ConCDVAEConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes and noise levels; the defaults are Con-CDVAE's. ``graph_mode`` is ``exact`` or ``upstream``."""

    conditions: tuple[Property, ...]
    predicted: tuple[Property, ...]
    max_atoms: int = 20
    latent: int = 256
    hidden: int = 256
    condition_width: int = 128
    n_levels: int = 50
    sigma_first: float = 10.0
    sigma_last: float = 0.01
    type_sigma_first: float = 5.0
    type_sigma_last: float = 0.01
    graph_mode: Literal["exact", "upstream"] = "exact"
    encoder: DimeNetConfig = DimeNetConfig()
    decoder: GemNetConfig = GemNetConfig()

    def __post_init__(self) -> None:
        for part in (self, self.encoder, self.decoder):
            check_sizes(part)
        if not self.conditions:
            raise InputError("`conditions` must name one property or more")
        if self.latent != self.decoder.latent:
            raise InputError(
                f"`latent` of model and decoder must be the same, got {self.latent} and {self.decoder.latent}"
            )
        sigmas = (self.sigma_first, self.sigma_last, self.type_sigma_first, self.type_sigma_last)
        if not (min(sigmas) > 0 and max(sigmas) < math.inf):
            raise InputError(f"noise levels must be above 0 and finite, got {sigmas}")
        check_time(self.decoder.time)


class HeadOutputs(NamedTuple):
    """Atom count logits ``[B, max_atoms + 1]``, scaled lattice ``[B, 6]``, composition logits ``[B, species]``."""

    n_atoms: Tensor
    lattice: Tensor
    composition: Tensor


class Heads(nn.Module):
    """Atom count, lattice and composition from z_con."""

    lattice_mean: Tensor
    lattice_std: Tensor

    def __init__(self, config: ConCDVAEConfig) -> None:
        super().__init__()

        def head(n_out: int) -> nn.Sequential:
            return mlp(config.latent, config.hidden, n_out, 1, batch_norm=True)

        self.n_atoms = head(config.max_atoms + 1)
        self.lattice = head(6)
        self.composition = head(config.decoder.n_species)
        self.register_buffer("lattice_mean", torch.zeros(6))
        self.register_buffer("lattice_std", torch.ones(6))

    def forward(self, z_con: Tensor) -> HeadOutputs:
        """``[B, latent]`` to the three outputs."""
        return HeadOutputs(self.n_atoms(z_con), self.lattice(z_con), self.composition(z_con))

    def lengths_and_angles(self, lattice: Tensor, n_atoms: Tensor) -> tuple[Tensor, Tensor]:
        """Angstrom and degrees from the scaled lattice: lengths are standardised after division by n_atoms^(1/3)."""
        values = lattice * self.lattice_std + self.lattice_mean
        return values[:, :3] * n_atoms[:, None].to(values.dtype) ** (1 / 3), values[:, 3:]

    def scaled_lattice(self, lengths: Tensor, angles: Tensor, n_atoms: Tensor) -> Tensor:
        """The inverse: the lattice head's target."""
        values = torch.cat([lengths / n_atoms[:, None].to(lengths.dtype) ** (1 / 3), angles], dim=1)
        return (values - self.lattice_mean) / self.lattice_std


class Predictor(nn.Module):
    """Properties from z: scalars normalised to [0, 1] over their range, classes as logits (eq. 12)."""

    def __init__(self, properties: Sequence[Property], latent: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.properties = tuple(properties)
        self.heads = nn.ModuleList()
        for spec in self.properties:
            if isinstance(spec, ScalarProperty):
                self.heads.append(mlp(latent, hidden, 1, 2, batch_norm=True))
            elif isinstance(spec, ClassProperty):
                self.heads.append(nn.Sequential(nn.Dropout(dropout), nn.Linear(latent, spec.n_classes)))
            else:
                raise InputError(f"property {spec.name!r} cannot be predicted; predict scalars and classes")

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """``[B, latent]`` to, by name, ``[B]`` normalised values or ``[B, classes]`` logits."""
        outputs = {}
        for spec, head in zip(self.properties, self.heads, strict=True):
            value = head(z)
            outputs[spec.name] = value.squeeze(-1) if isinstance(spec, ScalarProperty) else value
        return outputs

    def losses(self, z: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared error of normalised scalars, cross-entropy of classes, each averaged over the batch."""
        losses, outputs = {}, self(z)
        for spec in self.properties:
            predicted = outputs[spec.name]
            if isinstance(spec, ScalarProperty):
                target = (values[spec.name] - spec.minimum) / (spec.maximum - spec.minimum)
                losses[spec.name] = functional.mse_loss(predicted, target)
            else:
                losses[spec.name] = functional.cross_entropy(predicted, values[spec.name].long())
        return losses


def geometric_levels(first: float, last: float, n: int) -> Tensor:
    """``n`` noise levels from first to last in geometric progression, float64 rounded to float32."""
    logs = torch.linspace(0, 1, n, dtype=torch.float64)
    return (first * (last / first) ** logs).to(torch.float32)


class ConCDVAE(nn.Module):
    """The model of the paper's first training step; priors are modules of their own (`druse_export.models.prior`)."""

    sigmas: Tensor
    type_sigmas: Tensor

    def __init__(self, config: ConCDVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = DimeNet(config.encoder)
        self.mu = nn.Linear(config.latent, config.latent)
        self.log_var = nn.Linear(config.latent, config.latent)
        self.condition = Condition(config.conditions, width=config.condition_width)
        self.z_condition = mlp(config.latent + config.condition_width, config.hidden, config.latent, 1, batch_norm=True)
        self.heads = Heads(config)
        self.predictor = Predictor(config.predicted, config.latent, config.hidden)
        self.time = SinusoidalEmbedding(config.decoder.time)
        self.decoder = GemNet(config.decoder)
        self.register_buffer("sigmas", geometric_levels(config.sigma_first, config.sigma_last, config.n_levels))
        self.register_buffer(
            "type_sigmas", geometric_levels(config.type_sigma_first, config.type_sigma_last, config.n_levels)
        )

    def encode(self, atom_types: Tensor, geometry: EncoderGeometry) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, each ``[B, latent]``."""
        hidden = torch.tanh(self.encoder(atom_types, geometry))
        return self.mu(hidden), self.log_var(hidden)

    def mix_latent(self, z: Tensor, condition: Tensor) -> Tensor:
        """z_con of latents ``[B, latent]`` and embedded conditions ``[B, condition]`` (eq. 11)."""
        return self.z_condition(torch.cat([z, condition], dim=-1))

    def score(self, z_con: Tensor, level: Tensor, atom_types: Tensor, geometry: ScoreGeometry) -> tuple[Tensor, Tensor]:
        """The decoder at noise levels ``[B]``: sigma times the Cartesian score ``[N, 3]``, and element logits."""
        return self.decoder(torch.cat([z_con, self.time(level)], dim=-1), atom_types, geometry)
