"""The Condition block: one embedding for each property, concatenated and mixed (eqs 8-10, 13)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.errors import InputError
from druse_export.models.blocks import mlp

N_ELEMENT_FEATURES = 92
_MOST_GAUSSIANS = 10_000


class ScalarEmbedding(nn.Module):
    """Gaussians on a grid, then dense layers (eq. 8)."""

    centres: Tensor

    def __init__(self, spec: ScalarProperty, width: int, n_layers: int) -> None:
        super().__init__()
        if not (spec.maximum - spec.minimum) / spec.spacing < _MOST_GAUSSIANS:
            raise InputError(
                f"property {spec.name!r} from {spec.minimum:g} to {spec.maximum:g} by {spec.spacing:g} needs more than "
                f"{_MOST_GAUSSIANS:,} Gaussians; give a coarser spacing"
            )
        n = spec.n_gaussians
        self.register_buffer("centres", torch.linspace(spec.minimum, spec.minimum + spec.spacing * (n - 1), n))
        self.mlp = mlp(n, width, width, n_layers)

    def forward(self, value: Tensor) -> Tensor:
        """Values ``[batch]`` to ``[batch, width]``."""
        spacing = torch.abs(self.centres[1] - self.centres[0])
        difference = value[:, None] - self.centres
        return self.mlp(torch.exp(-0.5 / spacing**2 * difference**2))


class ClassEmbedding(nn.Module):
    """A learnt vector for each class, then dense layers (eq. 9)."""

    def __init__(self, spec: ClassProperty, width: int, n_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.n_classes, width)
        self.mlp = mlp(width, width, width, n_layers)

    def forward(self, value: Tensor) -> Tensor:
        """Class numbers ``[batch]`` to ``[batch, width]``."""
        return self.mlp(self.embedding(value.long()))


class CompositionEmbedding(nn.Module):
    """Element features averaged by atomic fraction (eq. 13), then dense layers."""

    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.mlp = mlp(N_ELEMENT_FEATURES, width, width, n_layers)

    def forward(self, value: Tensor) -> Tensor:
        """Averaged features ``[batch, 92]`` to ``[batch, width]``."""
        return self.mlp(value)


class Condition(nn.Module):
    """Embeds the given properties, in order, and mixes them (eq. 10)."""

    def __init__(
        self,
        properties: Sequence[Property],
        *,
        width: int = 128,
        n_mix_layers: int = 2,
        embedding_width: int = 64,
        n_embedding_layers: int = 3,
    ) -> None:
        super().__init__()
        self.properties = tuple(properties)
        self.embeddings = nn.ModuleList()
        for spec in self.properties:
            if isinstance(spec, ScalarProperty):
                self.embeddings.append(ScalarEmbedding(spec, embedding_width, n_embedding_layers))
            elif isinstance(spec, ClassProperty):
                self.embeddings.append(ClassEmbedding(spec, embedding_width, n_embedding_layers))
            elif isinstance(spec, CompositionProperty):
                self.embeddings.append(CompositionEmbedding(embedding_width, n_embedding_layers))
        self.mix = mlp(embedding_width * len(self.properties), width, width, n_mix_layers)

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """One tensor for each property, by name, to ``[batch, width]``."""
        parts = [embedding(values[spec.name]) for spec, embedding in zip(self.properties, self.embeddings, strict=True)]
        return self.mix(torch.cat(parts, dim=-1))
