"""The prior: a DDPM over latents, with a residual MLP shaped like a U-Net (eqs 3, 4, 14)."""

import itertools

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse.conditions import Property
from druse.errors import InputError
from druse_export.models.blocks import SinusoidalEmbedding, check_sizes, check_time
from druse_export.models.condition import Condition


class ResidualUNet(nn.Module):
    """Layers 256-128-64-32-32-64-128-256, each fed [x, condition, time]; skips from the way down to the way up."""

    def __init__(self, latent: int, condition: int, time: int, n_layers: int = 3) -> None:
        super().__init__()
        widths = [latent // 2**k for k in range(n_layers + 1)]
        extra = condition + time
        self.down = nn.ModuleList(nn.Linear(a + extra, b) for a, b in itertools.pairwise(widths))
        self.middle = nn.Linear(widths[-1] + extra, widths[-1])
        self.up = nn.ModuleList(nn.Linear(b + extra, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.out = nn.Linear(latent + extra, latent)

    def forward(self, z: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """Noisy latents ``[batch, latent]`` to the predicted noise, the same shape."""

        def fed(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(torch.cat([x, condition, time], dim=-1))

        x, skips = z, []
        for layer in self.down:
            x = torch.relu(fed(layer, x))
            skips.append(x)
        x = torch.relu(fed(self.middle, x))
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = torch.relu(fed(layer, x + skip))
        return fed(self.out, x + z)


class PriorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the prior is conditioned on, its sizes and its ladder; the defaults are Con-CDVAE's."""

    conditions: tuple[Property, ...]
    latent: int = 256
    condition: int = 128
    time: int = 64
    n_steps: int = 300
    beta_first: float = 1e-3
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)
        check_time(self.time)
        if not self.conditions:
            raise InputError("`conditions` must name one property or more")
        if not (0 < self.beta_first < 1 and 0 < self.beta_last < 1):
            raise InputError(
                f"`beta_first` and `beta_last` must be between 0 and 1, got {self.beta_first}, {self.beta_last}"
            )


class Prior(nn.Module):
    """p(z | properties) as a DDPM with linear beta."""

    betas: Tensor
    alphas_bar: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        betas = torch.linspace(config.beta_first, config.beta_last, config.n_steps)
        self.register_buffer("betas", betas)
        self.register_buffer("alphas_bar", torch.cumprod(1 - betas, dim=0))
        self.condition = Condition(config.conditions, width=config.condition)
        self.time = SinusoidalEmbedding(config.time)
        self.network = ResidualUNet(config.latent, config.condition, config.time)

    def predict_noise(self, z: Tensor, condition: Tensor, step: Tensor) -> Tensor:
        """eps_theta(z_t, condition, t): latents, embedded properties and steps ``[batch]`` to noise."""
        return self.network(z, condition, self.time(step))

    def loss(self, mu: Tensor, condition: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the predicted noise (eq. 14); trained on mu, not on a sample of z.

        Args:
            mu: ``[batch, latent]``.
            condition: ``[batch, condition]``, embedded.
            step: ``[batch]`` of the diffusion, uniform in the ladder.
            noise: ``[batch, latent]`` standard normal.
        """
        alpha_bar = self.alphas_bar[step][:, None]
        noisy = alpha_bar.sqrt() * mu + (1 - alpha_bar).sqrt() * noise
        return functional.mse_loss(self.predict_noise(noisy, condition, step), noise)
