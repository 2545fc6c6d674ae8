"""Training of CGCNN property models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional

from druse.elements import element_features
from druse.errors import InputError
from druse_export.data import CrystalTable
from druse_export.models.cgcnn import CGCNN, CGCNNConfig, NeighborTable, crystal_table
from druse_export.training.batches import loaders
from druse_export.training.module import TrainingModule, fit
from druse_export.training.settings import CGCNNSettings, Machine


class Batches(torch.utils.data.Dataset[tuple[NeighborTable, Tensor]]):
    """Crystals with their neighbours, found once; an item is a batch, asked for by a list of indices."""

    def __init__(self, table: CrystalTable, settings: CGCNNSettings, config: CGCNNConfig) -> None:
        table = table.select(~np.any(list(left_out(table, settings.property).values()), axis=0))
        values = table.properties[settings.property]
        if not len(values):
            raise InputError(f"no crystal of the data has a value of {settings.property!r} and elements that are known")
        crystals = table.crystals
        self.offsets = crystals.offsets
        self.whole = crystal_table(crystals, config)
        if settings.threshold is not None:
            self.targets = torch.from_numpy((values > settings.threshold).astype(np.int64))
        else:
            self.targets = torch.from_numpy(values.astype(np.float32))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: list[int]) -> tuple[NeighborTable, Tensor]:
        chosen = np.asarray(indices)
        sizes = np.diff(self.offsets)[chosen]
        first = np.cumsum(sizes) - sizes
        shift = np.repeat(first - self.offsets[:-1][chosen], sizes)
        atoms = np.arange(sizes.sum()) - shift
        return (
            NeighborTable(
                atom_types=self.whole.atom_types[atoms],
                neighbor=self.whole.neighbor[atoms] + torch.from_numpy(shift)[:, None],
                distance=self.whole.distance[atoms],
                crystal=torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes)),
                n_atoms=torch.from_numpy(sizes),
            ),
            self.targets[chosen],
        )


def left_out(table: CrystalTable, name: str) -> dict[str, np.ndarray]:
    """Which crystals have no such property, or elements that are not described: masks ``[crystals]`` by reason.

    Raises:
        InputError: the table lacks the property altogether.
    """
    if name not in table.properties:
        known = ", ".join(sorted(table.properties))
        raise InputError(f"the data set has no property {name!r}; it has {known}")
    n_known, missing = len(element_features()) - 1, ~np.isfinite(table.properties[name])
    owner = np.repeat(np.arange(len(table)), table.crystals.n_atoms)
    unknown = np.isin(np.arange(len(table)), owner[table.crystals.species > n_known])
    return {f"without {name}": missing, f"with elements beyond number {n_known}": unknown & ~missing}


class CGCNNModule(TrainingModule):
    """Losses, metrics and optimiser of a CGCNN."""

    settings: CGCNNSettings

    def training_step(self, batch: tuple[NeighborTable, Tensor], _index: int) -> Tensor:
        """Mean squared error of standardised values, or negative log-likelihood."""
        table, target = batch
        with self.seeded(self.global_step):
            out = self.model(table)
        loss = self._loss(out, target)
        self.require_finite(loss)
        self._log("train", {"loss": loss}, len(target))
        return loss

    def validation_step(self, batch: tuple[NeighborTable, Tensor], _index: int) -> None:
        """Loss, and mean absolute error in the property's unit or accuracy, of the averaged weights."""
        table, target = batch
        averaged: Any = self.averaged.model
        out = averaged(table)
        if self.settings.task == "classification":
            metric = {"accuracy": (out.argmax(1) == target).float().mean()}
        else:
            metric = {"mae": torch.mean(torch.abs(out * averaged.target_std + averaged.target_mean - target))}
        self._log("val", {"loss": self._loss(out, target), **metric}, len(target))

    def _loss(self, out: Tensor, target: Tensor) -> Tensor:
        if self.settings.task == "classification":
            return functional.nll_loss(out, target)
        return functional.mse_loss(out, (target - self.model.target_mean) / self.model.target_std)


def train_cgcnn(
    settings: CGCNNSettings,
    train: CrystalTable,
    validation: CrystalTable,
    folder: Path,
    *,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> CGCNN:
    """Train a property model. Arguments and errors are those of `druse_export.training.module.fit`.

    Returns:
        The averaged model, in evaluation mode.
    """
    config = CGCNNConfig(task=settings.task, n_out=2 if settings.task == "classification" else 1)
    batches, held = Batches(train, settings, config), Batches(validation, settings, config)
    if settings.task == "regression" and not batches.targets.max() > batches.targets.min():
        raise InputError(
            f"the property {settings.property!r} has the one value {float(batches.targets[0]):g} in the training data; "
            "nothing can be learnt from it"
        )

    def build() -> CGCNNModule:
        model = CGCNN(config)
        if settings.task == "regression":
            model.target_mean.copy_(batches.targets.mean())
            model.target_std.copy_(batches.targets.std())
        return CGCNNModule(settings, model)

    def both(rank: int, world: int) -> tuple[Any, Any]:
        return loaders(batches, held, settings, rank=rank, world=world)

    module = fit(settings, folder, build, both, machine=machine or Machine(), callbacks=callbacks, progress=progress)
    averaged: Any = module.averaged.model
    return averaged.eval()
