"""Training of CGCNN property models."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning
import msgspec
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler

from druse.errors import InputError
from druse.graphs import radius_graph
from druse_export.data import CrystalTable
from druse_export.models.cgcnn import CGCNN, CGCNNConfig, NeighborTable, neighbor_table


class CGCNNSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained and how.

    Attributes:
        property: column of the data set.
        task: ``regression``, or ``classification`` into below or at ``threshold`` (class 0) and above it (class 1).
        threshold: in the property's unit; for classification only.
        epochs: passes over the training data.
        batch_size: crystals a step.
        learning_rate: of Adam at its peak; it rises for a tenth of the steps and falls to zero along a cosine.
        weight_decay: of AdamW.
        seed: of the weights and the order of crystals.
        ema: share of the averaged weights that stays at each step, less in the first ones; 0 for none.
    """

    property: str
    task: Literal["regression", "classification"] = "regression"
    threshold: float | None = None
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0
    ema: float = 0.999

    def __post_init__(self) -> None:
        if (self.task == "classification") != (self.threshold is not None):
            raise InputError("`threshold` must be given for classification, and only there")
        if min(self.epochs, self.batch_size) < 1 or self.learning_rate <= 0 or not 0 <= self.ema < 1:
            raise InputError("`epochs` and `batch_size` must be 1 or more, `learning_rate` above 0, `ema` in [0, 1)")


class Batches(torch.utils.data.Dataset[tuple[NeighborTable, Tensor]]):
    """Crystals with their neighbours, found once; an item is a batch, asked for by a list of indices."""

    def __init__(self, table: CrystalTable, settings: CGCNNSettings, config: CGCNNConfig) -> None:
        if settings.property not in table.properties:
            known = ", ".join(sorted(table.properties))
            raise InputError(f"the data set has no property {settings.property!r}; it has {known}")
        values = table.properties[settings.property]
        table = table.select(np.isfinite(values))
        values = table.properties[settings.property]
        crystals = table.crystals
        graph = radius_graph(
            crystals.frac,
            crystals.cells,
            crystals.offsets,
            cutoff=config.cutoff,
            max_neighbors=config.n_neighbors,
            shell_tolerance=None,
        )
        self.offsets = crystals.offsets
        self.whole = neighbor_table(graph, crystals.species, config)
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


class EpochShuffle(Sampler[list[int]]):
    """Batches in an order of seed and epoch alone, so that a resumed run sees what an undisturbed one does."""

    def __init__(self, size: int, batch_size: int, seed: int, *, shuffle: bool) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        for start in range(0, self.size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def loader(batches: Batches, settings: CGCNNSettings, *, shuffle: bool) -> DataLoader[Any]:
    """Batches in order, or in the epoch's order."""
    sampler = EpochShuffle(len(batches), settings.batch_size, settings.seed, shuffle=shuffle)
    return DataLoader(batches, sampler=sampler, batch_size=None)


class CGCNNModule(lightning.LightningModule):
    """Losses, metrics and optimiser of a CGCNN; ``averaged`` holds the moving average of its weights."""

    def __init__(self, settings: CGCNNSettings, config: CGCNNConfig, total_steps: int) -> None:
        super().__init__()
        self.settings, self.total_steps = settings, total_steps
        self.model = CGCNN(config)

        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():
                return current
            # short memory at first, or the random start would stay in the average for thousands of steps
            keep = min(settings.ema, (1 + float(count)) / (10 + float(count)))
            return averaged.lerp(current, 1 - keep)

        self.averaged = torch.optim.swa_utils.AveragedModel(self.model, avg_fn=average, use_buffers=True)

    def _loss(self, out: Tensor, target: Tensor) -> Tensor:
        if self.settings.task == "classification":
            return functional.nll_loss(out, target)
        return functional.mse_loss(out, (target - self.model.target_mean) / self.model.target_std)

    def training_step(self, batch: tuple[NeighborTable, Tensor], _index: int) -> Tensor:
        """Mean squared error of standardised values, or negative log-likelihood."""
        table, target = batch
        loss = self._loss(self.model(table), target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(target))
        return loss

    def on_train_batch_end(self, *_arguments: Any) -> None:
        """Moves the averaged weights."""
        self.averaged.update_parameters(self.model)

    def validation_step(self, batch: tuple[NeighborTable, Tensor], _index: int) -> None:
        """Mean absolute error in the property's unit, or accuracy, of the averaged weights."""
        table, target = batch
        averaged: Any = self.averaged.module
        if self.settings.task == "classification":
            metric = (averaged.predict(table).argmax(1) == target).float().mean()
            self.log("val_accuracy", metric, prog_bar=True, batch_size=len(target))
        else:
            metric = torch.mean(torch.abs(averaged.predict(table) - target))
            self.log("val_mae", metric, prog_bar=True, batch_size=len(target))

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up and a cosine."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        warm = max(1, self.total_steps // 10)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, self.total_steps - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_cgcnn(
    settings: CGCNNSettings,
    train: CrystalTable,
    validation: CrystalTable,
    folder: Path,
    *,
    callbacks: list[Callback] | None = None,
    progress: bool = True,
) -> CGCNN:
    """Train, or go on from the last checkpoint in ``folder``.

    Args:
        settings: stored as ``settings.json``; a folder with others is refused.
        train: training data.
        validation: data that only measures.
        folder: of the run: checkpoints, ``metrics.csv``, settings.
        callbacks: of Lightning, in addition.
        progress: show a bar.

    Returns:
        The averaged model.

    Raises:
        InputError: the property is unknown, or the folder holds a run with other settings.
    """
    stored, text = folder / "settings.json", msgspec.json.encode(settings)
    if stored.is_file() and stored.read_bytes() != text:
        raise InputError(f"{folder} holds a run with other settings; choose another folder, or the same settings")
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(text)
    torch.manual_seed(settings.seed)
    config = CGCNNConfig(task=settings.task, n_out=2 if settings.task == "classification" else 1)
    batches, held = Batches(train, settings, config), Batches(validation, settings, config)
    loaders = loader(batches, settings, shuffle=True), loader(held, settings, shuffle=False)
    module = CGCNNModule(settings, config, settings.epochs * len(loaders[0]))
    if settings.task == "regression":
        models: tuple[Any, ...] = (module.model, module.averaged.module)
        for model in models:
            model.target_mean.copy_(batches.targets.mean())
            model.target_std.copy_(batches.targets.std())
    last = folder / "last.ckpt"
    trainer = lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[ModelCheckpoint(folder, save_last=True, save_top_k=0), *(callbacks or [])],
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, *loaders, ckpt_path=last if last.is_file() else None)
    trained: Any = module.averaged.module
    return trained.eval()
