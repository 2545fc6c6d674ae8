"""Trained weights as small files: safetensors in half precision, with what is needed to build the model again."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from druse._files import whole_file
from druse.errors import InputError
from druse_export.models.cgcnn import CGCNN, CGCNNConfig
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.prior import Prior, PriorConfig

Model = TypeVar("Model", bound=nn.Module)


class _Kind(NamedTuple, Generic[Model]):
    name: str
    build: Callable[[Any], Model]
    config: type


_CGCNN = _Kind("CGCNN", CGCNN, CGCNNConfig)
_VAE = _Kind("Con-CDVAE", ConCDVAE, ConCDVAEConfig)
_PRIOR = _Kind("prior", Prior, PriorConfig)


def save_weights(model: CGCNN | ConCDVAE | Prior, path: Path, *, facts: Mapping[str, str]) -> None:
    """Write a model; the file appears whole or not at all. ``facts`` (data, validation figures) travel with it.

    Parameters are kept in half precision (eleven bits), tables and statistics as they are.
    """
    parameters = dict(model.named_parameters())
    tensors = {
        name: (value.half() if name in parameters else value).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    content = save(tensors, metadata={**facts, "config": msgspec.json.encode(model.config).decode()})
    with whole_file(path, "wb") as file:
        file.write(content)


def read_cgcnn_weights(path: Path) -> tuple[CGCNN, dict[str, str]]:
    """The CGCNN of a file that `save_weights` wrote, in evaluation mode, and its facts.

    Raises:
        InputError: the file is missing, is no such file, or does not fit its own description.
    """
    return _read(path, _CGCNN)


def read_vae_weights(path: Path) -> tuple[ConCDVAE, dict[str, str]]:
    """The same for a model of step one."""
    return _read(path, _VAE)


def vae_config(path: Path) -> ConCDVAEConfig:
    """What `read_vae_weights` would build, without building it."""
    return _config(path, _VAE)[0]


def read_prior_weights(path: Path) -> tuple[Prior, dict[str, str]]:
    """The same for a prior."""
    return _read(path, _PRIOR)


def read_weights(path: Path) -> tuple[CGCNN | ConCDVAE | Prior, dict[str, str]]:
    """The same for a file of any of them; which one, its own description says."""
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                config = msgspec.json.decode((file.metadata() or {})["config"], type=dict[str, Any])
        except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
            raise InputError(f"{path.name} holds no weights of Druse: {str(error).splitlines()[0]}") from error
        if "task" in config:
            return _read(path, _CGCNN)
        if "encoder" not in config:
            return _read(path, _PRIOR)
    return _read(path, _VAE)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(path: Path) -> str:
    """SHA-256 of the tensors of a file by name, which tells a prior whose latents it was trained on.

    Not of the file: two of the same weights differ in the order of what is said of them.
    """
    found = hashlib.sha256()
    with safe_open(path, "np") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            found.update(f"{name} {tensor.dtype.str} {tensor.shape} ".encode())
            found.update(tensor.tobytes())
    return found.hexdigest()


def start_from(model: ConCDVAE, path: Path) -> tuple[str, ...]:
    """Copy the weights of another model of step one where name and shape agree; scale factors and tables too.

    Returns:
        The names of weights that begin at random, because the other model has none that fit.
    """
    other = _read(path, _VAE)[0].state_dict()
    own = model.state_dict()
    fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return tuple(name for name in own if name not in fitting)


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        return {k: v.float() if v.dtype == torch.float16 else v for k, v in weights.items()}


def _config(path: Path, kind: _Kind[Model]) -> tuple[Any, dict[str, str]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file of {kind.name} weights (.safetensors)")
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
        return msgspec.json.decode(facts.pop("config"), type=kind.config), facts
    except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise InputError(f"{path.name} does not hold a {kind.name}: {str(error).splitlines()[0]}") from error


def _read(path: Path, kind: _Kind[Model]) -> tuple[Model, dict[str, str]]:
    config, facts = _config(path, kind)
    try:
        weights = _tensors(path)
        with torch.device("meta"):  # nothing is made of sizes that the tensors have not
            planned = kind.build(config).state_dict()
        for name, wanted in planned.items():
            if name not in weights or weights[name].shape != wanted.shape:
                found = tuple(weights[name].shape) if name in weights else "none"
                raise InputError(f"{path.name}: {name} must have the shape {tuple(wanted.shape)}, got {found}")
        model = kind.build(config)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path.name} does not hold a {kind.name}: {str(error).splitlines()[0]}") from error
    return model.eval(), facts
