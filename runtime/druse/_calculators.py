"""Calculators of ASE, and batched potentials, by the names that a person types.

A batched potential takes many crystals in a call. Packages offer theirs by the entry point group ``druse.potentials``:
under the name of the calculator whose energies they give, something that makes a `Potential` when it is called. One of
TorchSim's models is `torchsim:module:Class`.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from druse._dependencies import require
from druse.crystals import Crystals
from druse.errors import DruseError, InputError

GROUP = "druse.potentials"
CHGNET, TORCHSIM = "chgnet", "torchsim:"


class Evaluation(NamedTuple):
    """What a potential says of a batch of crystals.

    Attributes:
        energy: ``[crystals]`` eV, of all atoms of each; NaN where there is a fault.
        forces: ``[atoms, 3]`` eV/Angstrom.
        stress: ``[crystals, 3, 3]`` eV/Angstrom^3: the energy's derivative by strain, by volume, as in ASE.
        faults: for each crystal why there is nothing; empty where there is.
    """

    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    faults: tuple[str, ...]


Potential: TypeAlias = Callable[[Crystals], Evaluation]
"""Energies, forces and stresses of many crystals at once."""


def calculator_class(name: str) -> Callable[..., Any]:
    """What makes calculators of this name.

    Args:
        name: of one of ASE's calculators (``emt``, ``lj``), ``chgnet``, or ``module:Class``, which is imported: only
            what a person gave, never what stands in a file.

    Raises:
        InputError: there is none.
        MissingDependencyError: CHGNet is not installed.
    """
    module, colon, attribute = name.partition(":")
    if name == CHGNET:
        require("chgnet", purpose="relaxing with CHGNet", extra="relax")
        module, colon, attribute = "chgnet.model.dynamics", ":", "CHGNetCalculator"
    try:
        with quiet():
            if colon:
                found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
            else:
                from ase.calculators.calculator import get_calculator_class

                found = get_calculator_class(name)
    except Exception as error:
        raise InputError(
            f"there is no calculator {name!r} ({first_line(error)}); give a name of ASE's, such as emt, or chgnet, or "
            "module:Class of a module that Python finds"
        ) from error
    if not callable(found):
        raise InputError(f"the calculator {name!r} is no class but {type(found).__name__}; give one as module:Class")
    return found


class Calculators:
    """Calculators of one process, each made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bytes], Any] = {}

    def get(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """A calculator that remembers nothing of another structure.

        Raises:
            InputError: there is none, or it does not take these arguments.
        """
        key = name, msgspec.json.encode(arguments, order="sorted")
        if key not in self._made:
            make = calculator_class(name)
            try:
                with quiet():
                    self._made[key] = make(**{**({"use_device": "cpu"} if name == CHGNET else {}), **arguments})
            except Exception as error:
                raise InputError(f"the calculator {name!r} could not be made: {first_line(error)}") from error
            _check_arguments(name, self._made[key], arguments)
        made = self._made[key]
        if not hasattr(made, "reset"):
            del self._made[key]
        else:
            made.reset()
        return made

    def forget(self) -> None:
        """Calculators that were interrupted may be in any state; make new ones next time."""
        self._made.clear()


def _check_arguments(name: str, made: Any, arguments: Mapping[str, Any]) -> None:
    """Calculators of ASE keep whatever they are given as a parameter, so a wrong name would change nothing."""
    parameters = getattr(made, "default_parameters", None)
    if not parameters:
        return
    taken = {word for kind in type(made).__mro__ for word in inspect.signature(kind.__init__).parameters}  # type: ignore[misc]
    for argument in arguments:
        if argument not in parameters and argument not in taken:
            raise InputError(f"the calculator {name!r} has no {argument!r}, but {', '.join(sorted(parameters))}")


def has_potential(name: str) -> bool:
    """Whether there is a batched potential for this calculator, installed or not."""
    return bool(importlib.metadata.entry_points(group=GROUP, name=name.partition(":")[0]))


def only_batched(name: str) -> bool:
    """Whether this is a batched potential that no calculator of ASE goes with."""
    return name.startswith(TORCHSIM)


class Potentials:
    """Batched potentials of one process, each made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bytes], Potential] = {}

    def get(self, name: str, arguments: Mapping[str, Any]) -> Potential:
        """A batched potential.

        Args:
            name: of an entry point; what stands behind a colon is its first argument.
            arguments: of it.

        Raises:
            InputError: there is none, or it cannot be made.
            MissingDependencyError: a package that it needs is not installed.
        """
        key = name, msgspec.json.encode(arguments, order="sorted")
        if key not in self._made:
            kind, colon, model = name.partition(":")
            entries = list(importlib.metadata.entry_points(group=GROUP, name=kind))
            if not entries:
                known = sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})
                raise InputError(
                    f"no batched potential goes by the name {name!r}, but {', '.join(known) or 'none'}; "
                    "leave out --batched"
                )
            try:
                with quiet():
                    self._made[key] = entries[0].load()(*([model] if colon else []), **arguments)
            except DruseError:
                raise
            except Exception as error:
                raise InputError(f"the potential {name!r} could not be made: {first_line(error)}") from error
        return self._made[key]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and without what is printed from Python."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].strip()[:200] if text else 'no reason given'}"
