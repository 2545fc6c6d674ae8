"""What a generator's networks take and give, and rows through them in pieces."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from druse._score import in_parts
from druse.backends import Runner
from druse.bundle import ConCDVAEManifest, Network, Tensor
from druse.conditions import ClassProperty
from druse.errors import InputError

_DECODER = ("latent", "level", "species", "crystal", "radial", "legendre", "src", "dst", "in_edge", "valid", "slot")


def check_signatures(manifest: ConCDVAEManifest, name: str) -> None:
    """Networks with the inputs and outputs that `druse.model` gives and takes, or a sentence before anything runs."""
    conditions = [spec.name for spec in manifest.conditions]
    wanted = {
        "condition": ([*conditions, "z"], ["z_con"]),
        "heads": (["z_con"], ["n_atoms", "lattice", "composition"]),
        "latent_projection": (["z_con"], ["latent"]),
        "predictor": (["z"], [spec.name for spec in manifest.predicted]),
        "decoder": ([*_DECODER], ["force", "logits"]),
    }
    for key, prior in manifest.priors.items():
        wanted[f"priors/{key}/condition"] = ([spec.name for spec in prior.conditions], ["terms"])
        wanted[f"priors/{key}/network"] = (["z", "terms", "step"], ["eps"])
    for role, network in manifest.networks.items():
        has = ([tensor.name for tensor in network.inputs], [tensor.name for tensor in network.outputs])
        if has != wanted[role]:
            raise InputError(f"{name}: {role} must take and give {wanted[role]}, got {has}; build the bundle again")
    if len(manifest.type_sigmas) != len(manifest.sigmas):
        raise InputError(f"{name}: `sigmas` and `type_sigmas` must have the same length; build the bundle again")
    _check_widths(manifest, name)


def _check_widths(manifest: ConCDVAEManifest, name: str) -> None:
    """Rows as wide as the rest of the manifest says: native code and devices believe them."""
    latent, features = (manifest.latent,), _row(manifest.decoder.inputs[0])
    wanted: dict[str, dict[str, tuple[int | str, ...]]] = {
        "condition": {"z": latent, "z_con": latent},
        "heads": {
            "z_con": latent, "n_atoms": (manifest.max_atoms + 1,), "lattice": (6,), "composition": (manifest.n_species,)
        },
        "latent_projection": {"z_con": latent, "latent": features},
        "decoder": {"radial": (manifest.graph.n_radial,), "logits": (manifest.n_species,)},
        "predictor": {
            "z": latent,
            **{s.name: (s.n_classes,) if isinstance(s, ClassProperty) else () for s in manifest.predicted},
        },
    }  # fmt: skip
    for key, prior in manifest.priors.items():
        terms = _row(prior.condition.outputs[0])
        wanted[f"priors/{key}/condition"] = {"terms": terms}
        wanted[f"priors/{key}/network"] = {"z": latent, "terms": terms, "eps": latent}
    for role, network in manifest.networks.items():
        for tensor in (*network.inputs, *network.outputs):
            row = wanted[role].get(tensor.name, _row(tensor))
            per_crystal = role == "decoder" or tensor.name == "step" or tensor.shape[:1] == ("crystals",)
            if _row(tensor) != row or not per_crystal:
                raise InputError(
                    f"{name}: {role} must have {tensor.name} with the shape {['crystals', *row]}, got "
                    f"{list(tensor.shape)}; build the bundle again"
                )
    if len(features) != 1 or not isinstance(features[0], int):
        raise InputError(f"{name}: the decoder must take a number of features, got {list(features)}; build it again")


def _row(tensor: Tensor) -> tuple[int | str, ...]:
    """The shape of one row."""
    return tensor.shape[1:]


ROWS_TOGETHER = 512


def rows_in_parts(n: int, most: int = ROWS_TOGETHER) -> list[range]:
    """Rows in pieces, that fit a cache unless something else is said."""
    return [range(first, min(first + most, n)) for first in range(0, n, most)]


def run_rows(
    run: Runner, network: Network, inputs: Mapping[str, np.ndarray], pool: ThreadPoolExecutor | None = None
) -> tuple[np.ndarray, ...]:
    """A network whose rows do not depend on one another, on pieces of a few hundred rows.

    A backend may take another way to the same sums for a single row; every piece has at least four, copies of its last.
    """
    per_row = {t.name for t in network.inputs if t.shape[0] == "crystals"}
    n = len(inputs[next(t.name for t in network.inputs if t.name in per_row)])

    def part(piece: range) -> tuple[np.ndarray, ...]:
        missing = max(0, 4 - len(piece))
        chosen = {}
        for name, value in inputs.items():
            if name not in per_row:
                chosen[name] = value
            elif missing:
                chosen[name] = value[np.minimum(np.arange(piece.start, piece.stop + missing), piece.stop - 1)]
            else:
                chosen[name] = value[piece.start : piece.stop]
        outputs = run(chosen)
        for tensor, output in zip(network.outputs, outputs, strict=True):
            if output.shape != (max(4, len(piece)), *_row(tensor)):
                raise InputError(
                    f"{network.file} gives {tensor.name} with the shape {list(output.shape)}, the manifest says "
                    f"{list(tensor.shape)}; build the bundle again"
                )
        return tuple(output[: len(piece)] for output in outputs)

    parts = list(in_parts(rows_in_parts(n), part, pool))
    if not parts:
        return tuple(
            np.zeros([0 if k == "crystals" else int(k) for k in tensor.shape], tensor.dtype)
            for tensor in network.outputs
        )
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))
