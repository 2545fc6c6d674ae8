"""What the trainings of Con-CDVAE share: averaged weights, optimiser and schedule, logs, and the run's folder."""

import contextlib
import csv
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
import msgspec
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from druse._files import whole_file
from druse.errors import InputError
from druse_export.training.average import Average
from druse_export.training.settings import Machine, Settings

Module = TypeVar("Module", bound="TrainingModule")


class TrainingModule(lightning.LightningModule):
    """A model, its averaged twin, and how both move."""

    def __init__(self, settings: Settings, model: nn.Module) -> None:
        super().__init__()
        self.settings: Any = settings
        self.model: Any = model
        self.averaged = Average(model, settings.ema)

    @contextlib.contextmanager
    def seeded(self, step: int) -> Iterator[None]:
        """PyTorch's own draws (dropout) from seed and step alone; the caller's state is left as it was."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.settings.seed + 1_000_003 * step + self.global_rank)
            yield

    def require_finite(self, loss: Tensor, terms: Mapping[str, Tensor] | None = None) -> None:
        """Refuse to go on from a loss that is none; the checkpoint before is untouched.

        Raises:
            InputError: gives the terms.
        """
        if not torch.isfinite(loss):
            shown = ", ".join(f"{name} {float(value):.3g}" for name, value in (terms or {"loss": loss}).items())
            raise InputError(f"the loss is not finite at step {self.global_step} ({shown}); try a lower learning rate")

    def on_train_batch_end(self, *_arguments: Any) -> None:
        """Moves the averaged weights."""
        self.averaged.update(self.model)

    def _log(self, part: str, values: Mapping[str, Tensor], n: int) -> None:
        for name, value in values.items():
            self.log(
                f"{part}_{name}",
                value,
                on_step=False,
                on_epoch=True,
                batch_size=n,
                sync_dist=part == "val",
                prog_bar=name in ("loss", "coordinates"),
            )

    def configure_optimizers(self) -> Any:
        """Adam with the schedule of the settings."""
        settings = self.settings
        kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
        optimizer = kind(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.trainer.precision == "32-true",  # under mixed precision Lightning clips no fused optimiser
        )
        if settings.schedule == "constant":
            return optimizer
        if settings.schedule == "plateau":
            plateau = ReduceLROnPlateau(
                optimizer,
                factor=settings.plateau_factor,
                patience=settings.plateau_patience,
                min_lr=settings.learning_rate_last,
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        total = int(self.trainer.estimated_stepping_batches)
        last = settings.learning_rate_last / settings.learning_rate

        def factor(step: int) -> float:
            if step < settings.warmup_steps:
                return (step + 1) / settings.warmup_steps
            progress = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
            return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """A run that had lost its patience stays where it ended; Lightning would go on for an epoch each time."""
        stopping: Any = self.trainer.early_stopping_callback
        if stopping is not None and stopping.stopping_reason_message is not None:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Moves a plateau's rate, before the checkpoint: Lightning does it after, and never for a resumed epoch."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(self.trainer.callback_metrics["val_loss"])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """What Lightning calls to move the rate."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)


class Metrics(Callback):
    """Writes ``metrics.csv``, a row for each epoch; the rows travel in the checkpoint, so a resumed run keeps them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, _module: lightning.LightningModule) -> None:
        """Adds a row and writes the file anew; it appears whole or not at all."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate, **figures})
        if trainer.is_global_zero:
            with whole_file(self.path, newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows of the run that is resumed."""
        self.rows = list(state_dict["rows"])


class Termination(Callback):
    """Ends the run where it is when it is asked to (SIGTERM), and the processes that it has started with it.

    Lightning's own handler waits for the end of a step, and with several processes exchanges a tensor from within the
    handler, which waits for ever. What has been computed since the last checkpoint is computed again when the run goes
    on, so nothing is lost by ending at once. Whatever handled the signal before the run handles it now, after the rest.
    """

    def __init__(self) -> None:
        self.before: Any = None

    def on_fit_start(self, _trainer: lightning.Trainer, _module: lightning.LightningModule) -> None:
        """Takes note of what was there before Lightning."""
        self.before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def on_train_start(self, trainer: lightning.Trainer, _module: lightning.LightningModule) -> None:
        """Takes Lightning's place, which gives the signal back after the run."""
        if threading.current_thread() is not threading.main_thread():
            return

        def end(number: int, _frame: Any) -> None:
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.SIGTERM)
            signal.signal(signal.SIGTERM, self.before)
            os.kill(os.getpid(), number)

        signal.signal(signal.SIGTERM, end)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all; Lightning's are copied from the temporary folder of the machine."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes beside the file, then renames."""
        del storage_options
        with whole_file(Path(path), "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Reads tensors and plain values.

        Raises:
            InputError: the file is damaged, or holds anything else.
        """
        with readable(Path(path)):
            return super().load_checkpoint(path, *arguments, **options)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what PyTorch raises at a checkpoint that it cannot read into an `InputError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever a damaged stream makes PyTorch's unpickler stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} cannot be read as a checkpoint ({reason[:200]}); put a copy in its place, or begin again in "
            "another folder"
        ) from error


class Bar(RichProgressBar):
    """A bar for each epoch, on standard error, with the losses that matter."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Without Lightning's own count of runs."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}


def fit(
    settings: Settings,
    folder: Path,
    build: Callable[[], Module],
    loaders: Callable[[int, int], tuple[Any, Any]],
    *,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Module:
    """Train, or go on from the last checkpoint in ``folder``.

    Args:
        settings: stored as ``settings.json``; a folder with others is refused.
        folder: of the run: ``last.ckpt``, ``best.ckpt``, ``metrics.csv``, TensorBoard's files, settings.
        build: makes the module; called under the settings' seed.
        loaders: of training and validation, from the rank and the number of processes.
        machine: where; no part of what makes the run what it is.
        callbacks: of Lightning, in addition.
        progress: show a bar.

    Returns:
        The module after its last epoch.

    Raises:
        InputError: the folder holds a run with other settings.
    """
    claim(folder, settings)
    machine = machine or Machine()
    if machine.threads:
        torch.set_num_threads(machine.threads)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        module = build()
    each_epoch: Any = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    own: list[Callback] = [
        Termination(),
        Metrics(folder / "metrics.csv"),
        ModelCheckpoint(folder, filename="best", monitor="val_loss", **each_epoch),
        ModelCheckpoint(folder, filename="last", **each_epoch),  # `save_last` would write only when "best" is written
    ]
    if progress:
        own.append(Bar())
    if settings.patience:
        own.append(EarlyStopping("val_loss", patience=settings.patience))
    trainer = _trainer(
        machine,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.clip or None,
        gradient_clip_algorithm="value",
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=[*own, *callbacks],
        plugins=[WholeCheckpoints()],
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    last = folder / "last.ckpt"
    training, validation = loaders(trainer.global_rank, trainer.world_size)
    with _products(machine.precision):
        trainer.fit(module, training, validation, ckpt_path=last if last.is_file() else None, weights_only=True)
    return module


def _trainer(machine: Machine, **options: Any) -> lightning.Trainer:
    accelerator: Any = machine.accelerator
    try:
        return lightning.Trainer(
            accelerator=accelerator,
            devices=machine.devices,
            strategy="ddp" if machine.devices > 1 else "auto",
            precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
            **options,
        )
    except MisconfigurationException as error:
        raise InputError(
            f"this machine cannot train as asked ({str(error).splitlines()[0].strip()}); change machine.accelerator or "
            "machine.devices"
        ) from error


@contextlib.contextmanager
def _products(precision: str) -> Iterator[None]:
    """PyTorch's precision of float32 products on a GPU, as long as a run needs it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def claim(folder: Path, settings: Settings) -> None:
    """Store the settings in a run's folder, or check that they are those of the run that is there."""
    stored, text = folder / "settings.json", msgspec.json.format(msgspec.json.encode(settings))
    if stored.is_file() and stored.read_bytes() != text:
        raise InputError(f"{folder} holds a run with other settings; choose another folder, or the same settings")
    with whole_file(stored, "wb") as file:
        file.write(text)
