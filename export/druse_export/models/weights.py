"""Trained weights as small files: safetensors in half precision, with what is needed to build the model again."""

from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from druse.errors import InputError
from druse_export.models.cgcnn import CGCNN, CGCNNConfig


def save_cgcnn(model: CGCNN, path: Path, *, facts: dict[str, str]) -> None:
    """Write a model. ``facts`` (property, unit, data, validation figure) travel with it.

    Half precision keeps eleven bits; predictions move by less than the last digit that is ever quoted.
    """
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={**facts, "config": msgspec.json.encode(model.config).decode()})
    part.replace(path)


def read_cgcnn_weights(path: Path) -> tuple[CGCNN, dict[str, str]]:
    """The model of a file that `save_cgcnn` wrote, in evaluation mode, and its facts.

    Raises:
        InputError: the file is missing, is no such file, or does not fit its own description.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file of CGCNN weights (.safetensors)")
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            config = msgspec.json.decode(facts.pop("config"), type=CGCNNConfig)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        model = CGCNN(config)
        model.load_state_dict({k: v.float() if v.dtype == torch.float16 else v for k, v in weights.items()})
    except (SafetensorError, KeyError, msgspec.MsgspecError, RuntimeError) as error:
        raise InputError(f"{path.name} does not hold a CGCNN: {str(error).splitlines()[0]}") from error
    return model.eval(), facts
