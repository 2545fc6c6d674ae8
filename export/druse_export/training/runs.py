"""A training run's folder: starting or resuming it, and the models that came out of it."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from druse.errors import InputError
from druse_export.data import CrystalTable, load_table, split_table
from druse_export.models.cgcnn import CGCNN, CGCNNConfig
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.prior import Prior
from druse_export.models.weights import read_vae_weights, save_weights, tensors_digest, vae_config
from druse_export.training import batches, cgcnn
from druse_export.training.cgcnn import train_cgcnn
from druse_export.training.job import KINDS, Data, Job, as_toml, job, store
from druse_export.training.module import claim, readable
from druse_export.training.prior import train_prior
from druse_export.training.properties import with_classes
from druse_export.training.settings import CGCNNSettings, PriorSettings, VAESettings
from druse_export.training.step_one import train_vae
from druse_export.training.toml import read_toml

WEIGHTS = "model.safetensors"
Tables = tuple[CrystalTable, CrystalTable]


def load_tables(data: Data, *, cache: Path | None = None, progress: Callable[[int, int], None] | None = None) -> Tables:
    """Training and validation data of a job, filtered."""

    def read(name: str) -> CrystalTable:
        table = with_classes(load_table(Path(name), cache=cache, progress=progress), data.classes)
        return table.filtered(
            max_atoms=data.max_atoms, max_hull=data.max_hull, max_gap=data.max_gap, min_density=data.min_density
        )

    train = read(data.train)
    if data.validation:
        return train, read(data.validation)
    parts = split_table(train, data.split_seed)
    return parts[0], parts[1]


def left_out(job: Job[Any], table: CrystalTable) -> dict[str, int]:
    """How many crystals of a table a job does not use, by reason.

    Raises:
        InputError: the table lacks a property altogether.
    """
    settings = job.settings
    if isinstance(settings, CGCNNSettings):
        wrong = cgcnn.left_out(table, settings.property)
    elif isinstance(settings, PriorSettings):
        wrong = batches.left_out(table, settings.prior.conditions, vae_config(weights_of(Path(job.data.weights))))
    else:
        wrong = batches.left_out(table, (*settings.model.conditions, *settings.model.predicted), settings.model)
    return {reason: int(mask.sum()) for reason, mask in wrong.items() if mask.any()}


def run(
    job: Job[Any], folder: Path, tables: Tables, *, callbacks: Sequence[Callback] = (), progress: bool = True
) -> Path:
    """Train, or go on; the job is stored as ``job.toml`` and the averaged model as ``model.safetensors``.

    The model kept is the one of the best validation loss.

    Returns:
        The file of weights.

    Raises:
        InputError: the folder holds a run with other settings, or data or settings cannot be used.
    """
    settings = job.settings
    folder.mkdir(parents=True, exist_ok=True)
    new = not (folder / "settings.json").is_file()
    if isinstance(settings, PriorSettings):
        weights = weights_of(Path(job.data.weights))
        if settings.model and settings.model != tensors_digest(weights):
            raise InputError(
                f"{weights} is not the model whose latents this prior was begun on; give that one, or another folder"
            )
        settings = msgspec.structs.replace(settings, model=tensors_digest(weights))
    claim(folder, settings)
    store(type(job)(data=job.data, settings=settings, machine=job.machine), folder)
    options: dict[str, Any] = {"machine": job.machine, "callbacks": callbacks, "progress": progress}
    try:
        if isinstance(settings, VAESettings):
            train_vae(settings, *tables, folder, **options)
        elif isinstance(settings, PriorSettings):
            train_prior(settings, read_vae_weights(weights)[0], *tables, folder, **options)
        else:
            train_cgcnn(settings, *tables, folder, **options)
    except InputError:
        if new and not any(folder.glob("*.ckpt")):  # nothing was begun that other settings could spoil
            for name in ("settings.json", "job.toml"):
                (folder / name).unlink(missing_ok=True)
        raise
    return keep_weights(folder) if getattr(rank_zero_only, "rank", 0) == 0 else folder / WEIGHTS


def weights_of(path: Path) -> Path:
    """The file of weights that a path names: itself, or the one in a run's folder, written now if need be."""
    if not path.is_dir():
        return path
    return path / WEIGHTS if (path / WEIGHTS).is_file() else keep_weights(path)


def stored_job(folder: Path) -> Job[Any]:
    """The job of a run's folder.

    Raises:
        InputError: the folder holds no run.
    """
    if not (folder / "job.toml").is_file():
        raise InputError(f"{folder} holds no run (no job.toml); say what to train, or give the folder of a run")
    content = read_toml(folder / "job.toml")
    settings = content.get("settings", {})
    kind = "vae" if "model" in settings and isinstance(settings["model"], dict) else "prior"
    return job(content, KINDS["cgcnn" if "property" in settings else kind])


def curve(folder: Path) -> list[dict[str, float]]:
    """The figures of a run, a row for each epoch: ``epoch``, ``step``, ``lr``, ``train_*`` and ``val_*``.

    Raises:
        InputError: no epoch has ended yet.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise InputError(f"{folder} holds no figures yet; let it train for an epoch")
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def best(folder: Path) -> dict[str, float]:
    """The row of the lowest validation loss."""
    return min(curve(folder), key=lambda row: row.get("val_loss", math.inf))


def keep_weights(folder: Path, *, out: Path | None = None, checkpoint: str = "best.ckpt") -> Path:
    """Write the averaged model of a run, with its job and its validation figures.

    Args:
        folder: of the run.
        out: file to write; ``model.safetensors`` in the folder if not given.
        checkpoint: ``best.ckpt`` or ``last.ckpt``.

    Returns:
        The file.

    Raises:
        InputError: the run has no such checkpoint.
    """
    stored = stored_job(folder)
    settings = stored.settings
    path = folder / checkpoint
    if not path.is_file():
        raise InputError(f"{folder} has no {checkpoint} yet; let it train for an epoch")
    with readable(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "averaged.model."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    model = _untrained(settings)
    model.load_state_dict(state)
    epoch = int(content["epoch"])
    rows = [row for row in curve(folder) if int(row["epoch"]) == epoch]
    facts = {"epoch": str(epoch), "step": str(content["global_step"])}
    facts |= {k: f"{v:.6g}" for k, v in (rows[-1] if rows else {}).items() if k.startswith("val_")}
    names = {name: Path(getattr(stored.data, name)).name for name in ("train", "validation", "weights")}
    if isinstance(settings, VAESettings) and settings.start:
        settings = msgspec.structs.replace(settings, start=Path(settings.start).name)
    data = msgspec.structs.replace(stored.data, **names)
    nameless = msgspec.structs.replace(stored, data=data, settings=settings)
    out = out or folder / WEIGHTS
    save_weights(model, out, facts={**facts, "job": as_toml(nameless)})  # weights travel; paths stay at home
    return out


def _untrained(settings: Any) -> ConCDVAE | Prior | CGCNN:
    if isinstance(settings, VAESettings):
        return ConCDVAE(settings.model)
    if isinstance(settings, PriorSettings):
        return Prior(settings.prior)
    if isinstance(settings, CGCNNSettings):
        return CGCNN(CGCNNConfig(task=settings.task, n_out=2 if settings.task == "classification" else 1))
    raise InputError(f"no model is known for settings of type {type(settings).__name__}")


def conditions_of(weights: Path, wanted: str) -> list[str]:
    """Assignments that condition a prior for a model of step one.

    Args:
        weights: of the model.
        wanted: ``default`` for the model's own conditions, ``full`` for the released full prior's, or names with
            commas between them.
    """
    config = vae_config(weights)
    given = {"default": msgspec.to_builtins(config.conditions), "full": "full"}
    conditions = given.get(wanted, [name.strip() for name in wanted.split(",")])
    return [f"settings.prior.latent={config.latent}", f"settings.prior.conditions={_inline(conditions)}"]


def _inline(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)
