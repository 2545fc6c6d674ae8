"""What is trained and how: one typed structure for each command, the same in TOML, in flags and in a run's folder."""

from typing import Literal

import msgspec

from druse.errors import InputError
from druse_export.models.con_cdvae import ConCDVAEConfig
from druse_export.models.prior import PriorConfig


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a run is computed; a run may be resumed with another one.

    Attributes:
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: GPUs, or processes on the CPU, that share the work by DDP, each with ``batch_size`` crystals a step.
        precision: of the networks' products: ``fp32``; ``tf32``, another one on a GPU only; or ``bf16``, which what
            stands between the products has, too.
        workers: processes that prepare batches.
        threads: of each process on the CPU; 0 for PyTorch's choice.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.devices < 1 or min(self.workers, self.threads) < 0:
            raise InputError("`devices` must be 1 or more, `workers` and `threads` 0 or more")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every training has.

    Attributes:
        epochs: at most; an epoch ends with a validation and a checkpoint.
        steps_per_epoch: 0 for a pass over the data.
        batch_size: crystals a step and device.
        learning_rate: of Adam, at its peak.
        learning_rate_last: where the schedule ends.
        schedule: ``plateau``: times ``plateau_factor`` after ``plateau_patience`` epochs without a better validation
            loss. ``cosine``: a rise over ``warmup_steps``, then down to the last along a cosine. ``constant``.
        weight_decay: above 0 makes Adam AdamW.
        clip: gradients are clipped to this size by value; 0 for none.
        ema: share of the averaged weights that stays at each step, less in the first ones; 0 for none. Validation and
            the result use the averaged weights.
        patience: epochs without a better validation loss after which training stops; 0 for never.
        seed: of weights, order and noise.
    """

    epochs: int = 500
    steps_per_epoch: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-3
    learning_rate_last: float = 1e-4
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    plateau_factor: float = 0.6
    plateau_patience: int = 30
    warmup_steps: int = 200
    weight_decay: float = 0.0
    clip: float = 0.5
    ema: float = 0.999
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise InputError("`epochs` and `batch_size` must be 1 or more")
        if min(self.steps_per_epoch, self.warmup_steps, self.patience, self.seed) < 0:
            raise InputError("`steps_per_epoch`, `warmup_steps`, `patience` and `seed` must be 0 or more")
        if not (self.learning_rate > 0 and min(self.learning_rate_last, self.clip, self.weight_decay) >= 0):
            raise InputError(
                "`learning_rate` must be above 0, `learning_rate_last`, `clip` and `weight_decay` 0 or more"
            )
        if not (0 < self.plateau_factor < 1 and self.plateau_patience >= 0):
            raise InputError(
                "`plateau_factor` must be between 0 and 1, `plateau_patience` 0 or more, got "
                f"{self.plateau_factor} and {self.plateau_patience}"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"`ema` must be 0 or more and below 1, got {self.ema}")


class LossWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights of the terms of the joint loss (eq. 12); ``property`` 0 is the ablation of section 3.3."""

    n_atoms: float = 1.0
    lattice: float = 10.0
    coordinates: float = 10.0
    types: float = 1.0
    composition: float = 1.0
    kl: float = 0.01
    property: float = 3.0


class VAESettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Step one: encoder, heads, Predictor and decoder together.

    Attributes:
        model: its properties, sizes, noise levels and graph.
        loss: weights of the terms.
        teacher_forcing: passes over the data during which the decoder sees the true lattice.
        draws: noise levels that the decoder sees of each crystal in a step.
        start: file of weights to begin from (safetensors, of any VAE); what does not fit it begins at random.
    """

    model: ConCDVAEConfig
    loss: LossWeights = LossWeights()
    teacher_forcing: float = 200.0
    draws: int = 1
    start: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise InputError("`draws` must be 1 or more")


class PriorSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Step two: the prior over latents.

    Attributes:
        prior: what latents are drawn for, its sizes and its ladder.
        model: SHA-256 of the weights of step one, whose latents these are.
    """

    prior: PriorConfig
    model: str = ""
    epochs: int = 500
    batch_size: int = 128


class CGCNNSettings(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A CGCNN for one property.

    Attributes:
        property: column of the data set.
        task: ``regression``, or ``classification`` into below or at ``threshold`` (class 0) and above it (class 1).
        threshold: in the property's unit; for classification only.
    """

    property: str
    task: Literal["regression", "classification"] = "regression"
    threshold: float | None = None
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    learning_rate_last: float = 0.0
    schedule: Literal["plateau", "cosine", "constant"] = "cosine"
    warmup_steps: int = 500
    weight_decay: float = 1e-2
    clip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.task == "classification") != (self.threshold is not None):
            raise InputError("`threshold` must be given for classification, and only there")
