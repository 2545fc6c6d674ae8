"""Models of TorchSim, which take many crystals in a call (Cohen et al., AI Sci. 1, 025003, 2025)."""

import functools
import importlib
import inspect
from typing import Any

import numpy as np
import torch

from druse._calculators import Evaluation
from druse._dependencies import require
from druse.crystals import Crystals
from druse.errors import InputError
from druse.io import to_ase

__all__ = ["TorchSimPotential"]


class TorchSimPotential:
    """A model of TorchSim as a `druse._calculators.Potential`.

    Args:
        model: ``module:Class`` of a model, such as ``torch_sim.models.lennard_jones:LennardJonesModel``.
        arguments: of the class. Where it takes them and they are not given: ``compute_stress=True``, and
            ``dtype="float64"``; names of types and devices become those of torch.

    Raises:
        InputError: there is no such model, or it gives no forces or no stress.
        MissingDependencyError: TorchSim is not installed.
    """

    def __init__(self, model: str = "", **arguments: Any) -> None:
        require("torch_sim", purpose="relaxing with TorchSim", extra="torchsim")
        module, colon, name = model.partition(":")
        if not colon:
            raise InputError(f"a model of TorchSim is torchsim:module:Class, got torchsim:{model}")
        try:
            kind: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise InputError(f"there is no model {model!r} ({error}); give torchsim:module:Class") from error
        known = inspect.signature(kind).parameters
        usual = {"compute_stress": True, "compute_forces": True, "dtype": "float64", "device": "cpu"}
        given: dict[str, Any] = {key: value for key, value in usual.items() if key in known} | arguments
        if "dtype" in given:
            given["dtype"] = getattr(torch, str(given["dtype"]))
        if "device" in given:
            given["device"] = torch.device(given["device"])
        self._model = kind(**given)
        if not (self._model.compute_forces and self._model.compute_stress):
            raise InputError(f"{model} gives no forces or no stress, by which crystals relax; take another model")

    def __call__(self, crystals: Crystals) -> Evaluation:
        """Of each crystal; there are no faults but what is not finite."""
        from torch_sim.io import atoms_to_state

        state = atoms_to_state(to_ase(crystals), self._model.device, self._model.dtype)
        found = {key: values.detach().cpu().numpy().astype(np.float64) for key, values in self._model(state).items()}
        return Evaluation(found["energy"], found["forces"], found["stress"], ("",) * len(crystals))
