"""Step two: the prior over latents of a trained model, given properties (eq. 14)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset

from druse.errors import InputError
from druse_export.data import CrystalTable
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.prior import Prior
from druse_export.training.batches import CrystalBatches, InOrder, loaders, property_values, usable
from druse_export.training.module import TrainingModule, fit
from druse_export.training.settings import Machine, PriorSettings
from druse_export.training.vae import Draws


class Latents(NamedTuple):
    """Means and log-variances ``[crystals, latent]`` of the encoder, float32."""

    mu: np.ndarray
    log_var: np.ndarray


@torch.no_grad()
def encode_table(
    model: ConCDVAE,
    table: CrystalTable,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """What the encoder says of each crystal of a table.

    Args:
        model: in evaluation mode.
        table: of crystals with at most the model's number of atoms.
        batch_size: crystals at once.
        progress: called with crystals done and crystals in all.
    """
    device = model.sigmas.device
    batches = CrystalBatches(table, (), model.config)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for indices in InOrder(len(batches), batch_size):
        batch = batches[indices]
        geometry = type(batch.encoder)(*(field.to(device) for field in batch.encoder))
        mu, log_var = model.encode(batch.atom_types.to(device), geometry)
        found.append((mu.float().cpu().numpy(), log_var.float().cpu().numpy()))
        if progress is not None:
            progress(indices[-1] + 1, len(batches))
    return Latents(np.concatenate([mu for mu, _ in found]), np.concatenate([log_var for _, log_var in found]))


class LatentBatch(NamedTuple):
    """Encoder means ``[B, latent]`` and property values by name."""

    mu: Tensor
    values: dict[str, Tensor]


class LatentBatches(Dataset[LatentBatch]):
    """Latents and properties; items are batches, asked for by lists of indices."""

    def __init__(self, mu: np.ndarray, values: dict[str, Tensor]) -> None:
        self.mu, self.values = torch.from_numpy(mu), values

    def __len__(self) -> int:
        return len(self.mu)

    def __getitem__(self, indices: Sequence[int]) -> LatentBatch:
        chosen = torch.as_tensor(indices)
        return LatentBatch(self.mu[chosen], {name: values[chosen] for name, values in self.values.items()})


class PriorModule(TrainingModule):
    """Loss and optimiser of step two."""

    settings: PriorSettings

    def training_step(self, batch: LatentBatch, _index: int) -> Tensor:
        """Mean squared error of the predicted noise at random steps."""
        loss = self._loss(self.model, batch, 3, self.global_step)
        self.require_finite(loss)
        self._log("train", {"loss": loss}, len(batch.mu))
        return loss

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """The same for the averaged weights, with the same steps and noise each time."""
        loss = self._loss(self.averaged.model, batch, 4, index)
        self._log("val", {"loss": loss}, len(batch.mu))

    def _loss(self, prior: Any, batch: LatentBatch, purpose: int, index: int) -> Tensor:
        draws = Draws((self.settings.seed, purpose, index, self.global_rank), self.device)
        step = draws.levels(len(batch.mu), len(prior.betas))
        noise = draws.normal(*batch.mu.shape)
        return prior.loss(batch.mu, prior.condition(batch.values), step, noise)


def train_prior(
    settings: PriorSettings,
    model: ConCDVAE,
    train: CrystalTable,
    validation: CrystalTable,
    folder: Path,
    *,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Prior:
    """Step two, on the means of ``model``'s encoder.

    Other arguments and errors are those of `druse_export.training.module.fit`.

    Returns:
        The averaged prior, in evaluation mode.
    """
    machine = machine or Machine()
    if machine.threads:  # for encoding too: two runs side by side with every core each wait for one another
        torch.set_num_threads(machine.threads)
    if settings.prior.latent != model.config.latent:
        raise InputError(
            f"`latent` of the prior must be the model's, {model.config.latent}, got {settings.prior.latent}"
        )

    if machine.accelerator != "cpu" and torch.cuda.is_available():
        model = model.cuda()  # for encoding

    def batches(table: CrystalTable) -> LatentBatches:
        chosen = usable(table, settings.prior.conditions, model.config)
        return LatentBatches(encode_table(model, chosen).mu, property_values(chosen, settings.prior.conditions))

    trained, held = batches(train), batches(validation)

    def build() -> PriorModule:
        return PriorModule(settings, Prior(settings.prior))

    def both(rank: int, world: int) -> tuple[Any, Any]:
        return loaders(trained, held, settings, rank=rank, world=world)

    module = fit(settings, folder, build, both, machine=machine, callbacks=callbacks, progress=progress)
    averaged: Any = module.averaged.model
    return averaged.eval()
