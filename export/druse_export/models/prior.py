"""The prior: a DDPM over latents, with a residual MLP shaped like a U-Net (eqs 3, 4, 14)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from druse.conditions import Property
from druse_export.models.blocks import SinusoidalEmbedding
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


class Prior(nn.Module):
    """p(z | properties) as a DDPM of ``n_steps`` steps with linear beta."""

    betas: Tensor
    alphas_bar: Tensor

    def __init__(
        self,
        properties: Sequence[Property],
        *,
        latent: int = 256,
        condition: int = 128,
        time: int = 64,
        n_steps: int = 300,
        beta_first: float = 1e-3,
        beta_last: float = 0.02,
    ) -> None:
        super().__init__()
        betas = torch.linspace(beta_first, beta_last, n_steps)
        self.register_buffer("betas", betas)
        self.register_buffer("alphas_bar", torch.cumprod(1 - betas, dim=0))
        self.condition = Condition(properties, width=condition)
        self.time = SinusoidalEmbedding(time)
        self.network = ResidualUNet(latent, condition, time)

    def predict_noise(self, z: Tensor, condition: Tensor, step: Tensor) -> Tensor:
        """eps_theta(z_t, condition, t): latents, embedded properties and steps ``[batch]`` to noise."""
        return self.network(z, condition, self.time(step))

    def loss(self, mu: Tensor, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the predicted noise at random steps (eq. 14); trained on mu, not on a sample of z."""
        step = torch.randint(len(self.betas), (len(mu),), device=mu.device, generator=generator)
        noise = torch.randn(mu.shape, device=mu.device, generator=generator)
        alpha_bar = self.alphas_bar[step][:, None]
        noisy = alpha_bar.sqrt() * mu + (1 - alpha_bar).sqrt() * noise
        return functional.mse_loss(self.predict_noise(noisy, condition, step), noise)
