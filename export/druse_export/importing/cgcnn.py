"""CGCNN checkpoints of Con-CDVAE's authors."""

from pathlib import Path

import torch
from torch import Tensor

from druse.errors import InputError
from druse_export.importing.checkpoints import plain, read_checkpoint
from druse_export.importing.weights import Rule, load_weights, same
from druse_export.models.cgcnn import CGCNN, CGCNNConfig

_STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def read_cgcnn(path: Path) -> CGCNN:
    """The model of a checkpoint (``.pth.tar``). Nothing in it is executed.

    Raises:
        InputError: it is refused, or is no CGCNN; every gap is listed.
    """
    content = read_checkpoint(path)
    try:
        settings = plain(content["args"])
        weights: dict[str, Tensor] = dict(content["state_dict"])
        task = settings["task"]
        config = CGCNNConfig(
            task=task,
            n_out=weights["fc_out.weight"].shape[0],
            atom=int(settings["atom_fea_len"]),
            hidden=int(settings["h_fea_len"]),
            n_convolutions=int(settings["n_conv"]),
        )
        if int(settings["n_h"]) != 1 or task not in ("regression", "classification"):
            raise InputError(f"{path.name}: only models with one hidden layer (n_h = 1) can be read")
        scale = content["normalizer"] if task == "regression" else {"mean": 0.0, "std": 1.0}
        weights["normalizer.mean"] = torch.as_tensor(scale["mean"], dtype=torch.float32)
        weights["normalizer.std"] = torch.as_tensor(scale["std"], dtype=torch.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path.name} lacks or mangles {error}; is it a CGCNN checkpoint?") from error
    rules = same([("embedding", "embedding"), ("hidden", "conv_to_fc"), ("out", "fc_out")])
    for k in range(config.n_convolutions):
        ours, theirs = f"convolutions.{k}", f"convs.{k}"
        rules += same([(f"{ours}.linear", f"{theirs}.fc_full")])
        rules += same([(f"{ours}.norm_edges", f"{theirs}.bn1"), (f"{ours}.norm_atoms", f"{theirs}.bn2")], _STATISTICS)
    rules += [Rule("target_mean", "normalizer.mean"), Rule("target_std", "normalizer.std")]
    model = CGCNN(config)
    load_weights(model, rules, weights, source=path.name)
    return model.eval()
