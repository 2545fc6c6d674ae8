"""The prior's network in native code, its weights those of the bundle's ONNX file.

`druse_export.bundles.networks.ExportedPrior` is the statement of the network, ``druse.h`` of the native one.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from druse import _native
from druse._arrays import CrystalIds, Latents, Status, as_array
from druse.errors import InputError
from druse.noise import Purpose
from druse.schedules import DDPMSchedule

FORMULATION = "residual-mlp-1"
"""What a manifest calls a network whose matrices are the initializers ``weights.0`` and so on, and ``steps``."""

PANEL = 32


class ResidualMLP:
    """The prior's network, ready to run."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str = "the network") -> None:
        """Packs the matrices ``weights.k`` ``[in, out]``; ``steps`` is ``[n_steps, sum of outs]``.

        Raises:
            InputError: they are not those of such a network.
        """
        matrices = [tensors[key] for k in range(len(tensors)) if (key := f"weights.{k}") in tensors]
        if not fits(matrices) or "steps" not in tensors:
            raise InputError(f"{name} has not the weights of its formulation {FORMULATION}; build the bundle again")
        self._steps = as_array("steps", tensors["steps"], np.float32, "steps", sum(m.shape[1] for m in matrices))
        self._widths = np.array([matrix.shape[1] for matrix in matrices], np.int32)
        self._packed = [packed(matrix) for matrix in matrices]
        self._pointers = (ctypes.c_void_p * len(matrices))(*map(_native.pointer, self._packed))
        self.latent, self.n_steps = int(matrices[0].shape[0]), len(self._steps)
        self._net = _native.ResidualMLP(
            len(matrices),
            self.latent,
            _native.pointer(self._widths),
            ctypes.addressof(self._pointers),
            _native.pointer(self._steps),
            self.n_steps,
            0,
        )

    @property
    def n_terms(self) -> int:
        """The width of ``terms``."""
        return int(self._widths.sum())

    def eps(self, z: Any, terms: Any, step: int, *, n_threads: int = 1, isa: str = "best") -> Latents:
        """The predicted noise; arguments as of `druse.model.Model.prior_step`."""
        z_, terms_ = self._rows(z, terms)
        out = np.empty_like(z_)
        _native.call(
            "druse_prior_eps",
            _native.cpu(n_threads, isa),
            self._net,
            len(z_),
            step,
            *map(_native.pointer, (z_, terms_, out)),
        )
        return out

    def denoise(
        self,
        z: Any,
        terms: Any,
        steps: range,
        schedule: DDPMSchedule,
        *,
        seed: int,
        crystal_ids: CrystalIds,
        n_threads: int = 1,
        isa: str = "best",
    ) -> tuple[Latents, Status]:
        """The reverse process; arguments as of `druse.model.Model.denoise`."""
        z_, terms_ = self._rows(z, terms)
        z_ = z_.copy()
        status = np.zeros(len(z_), np.uint32)
        alpha, alpha_bar, sigma = schedule
        factors = [np.ascontiguousarray(v) for v in (alpha**-0.5, (1 - alpha) / (1 - alpha_bar) ** 0.5, sigma)]
        _native.call(
            "druse_prior_chain",
            _native.cpu(n_threads, isa),
            self._net,
            _native.noise_key(seed, Purpose.LATENT_STEP, 0, crystal_ids),
            len(z_),
            steps[0],
            steps[-1],
            *map(_native.pointer, (*factors, terms_, z_, status)),
        )
        return z_, status

    def _rows(self, z: Any, terms: Any) -> tuple[np.ndarray, np.ndarray]:
        z_: np.ndarray = as_array("z", z, np.float32, "crystals", self.latent)
        terms_: np.ndarray = as_array("terms", terms, np.float32, len(z_), self.n_terms)
        return z_, terms_


def fits(matrices: Sequence[Any]) -> bool:
    """Whether the native network takes these matrices ``[in, out]``: its shape, and whole panels."""
    widths = [int(matrix.shape[1]) for matrix in matrices]
    inputs = [int(matrix.shape[0]) for matrix in matrices]
    if len(matrices) < 4 or len(matrices) % 2 or any(width % PANEL for width in widths):
        return False
    down = len(matrices) // 2 - 1
    mirrored = [*widths[:down], *widths[down - 1 :: -1], inputs[0], inputs[0]]
    return widths == mirrored and inputs[1:] == widths[:-1]


def packed(matrix: np.ndarray) -> np.ndarray:
    """A matrix ``[n_in, n_out]`` as native code reads it."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    n_in, n_out = matrix.shape
    panels = np.empty(n_in * -(-n_out // PANEL) * PANEL, np.float32)
    _native.call("druse_pack", n_in, n_out, *map(_native.pointer, (matrix, panels)))
    return panels
