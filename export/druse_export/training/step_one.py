"""Step one as a function: tables and settings in, a run's folder and a model out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from druse.errors import InputError
from druse_export.data import CrystalTable
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.weights import start_from
from druse_export.training.batches import CrystalBatches, Stream, loaders
from druse_export.training.module import fit
from druse_export.training.settings import Machine, VAESettings
from druse_export.training.vae import VAEModule, fit_scales


def train_vae(
    settings: VAESettings,
    train: CrystalTable,
    validation: CrystalTable,
    folder: Path,
    *,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> ConCDVAE:
    """Step one. Arguments and errors are those of `fit`; returns the averaged model, in evaluation mode."""
    config, machine = settings.model, machine or Machine()
    properties = tuple({spec.name: spec for spec in (*config.conditions, *config.predicted)}.values())
    batches, held = (CrystalBatches(table, properties, config) for table in (train, validation))

    if config.encoder.latent != config.latent:
        raise InputError(
            f"`latent` of model and encoder must be the same, got {config.latent} and {config.encoder.latent}"
        )
    if min(len(batches), settings.batch_size) < 2:
        raise InputError(
            f"a batch must have 2 crystals or more, for their normalisation, got {len(batches):,} crystals of training "
            f"data and `batch_size` {settings.batch_size}"
        )

    def build() -> VAEModule:
        model = ConCDVAE(config)
        if settings.start:
            start_from(model, Path(settings.start))
            return VAEModule(settings, model, len(batches))
        every = Stream(len(batches), 256, settings.seed)
        first = batches[next(iter(every))]
        scaled = model.heads.scaled_lattice(*_parameters(batches))
        model.heads.lattice_mean.copy_(scaled.mean(0))
        # what is the same in every crystal, such as angles of 90 degrees, has no scale of its own
        model.heads.lattice_std.copy_(scaled.std(0).clamp(min=1e-3))
        fit_scales(model, first, settings.seed)
        return VAEModule(settings, model, len(batches))

    def both(rank: int, world: int) -> tuple[Any, Any]:
        return loaders(batches, held, settings, rank=rank, world=world, workers=machine.workers)

    module = fit(settings, folder, build, both, machine=machine, callbacks=callbacks, progress=progress)
    averaged: Any = module.averaged.model
    return averaged.eval()


def _parameters(batches: CrystalBatches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from druse.lattice import parameters_from_cells

    lengths, angles = parameters_from_cells(batches.table.crystals.cells)
    return (
        torch.from_numpy(lengths).float(),
        torch.from_numpy(angles).float(),
        torch.from_numpy(batches.table.crystals.n_atoms),
    )
