"""Properties that a model is conditioned on or predicts: their names, kinds, units and ranges."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from druse._arrays import Float32, as_array, number
from druse.elements import N_FEATURES, element_features, parse_formula
from druse.errors import InputError

__all__ = [
    "CRYSTAL_SYSTEMS",
    "ClassProperty",
    "CompositionProperty",
    "Property",
    "ScalarProperty",
    "crystal_system",
    "encode",
]

CRYSTAL_SYSTEMS = ("triclinic", "trigonal", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic")
"""Con-CDVAE's codes are the places in this list."""

_FIRST_SPACE_GROUP = (
    (1, "triclinic"), (3, "monoclinic"), (16, "orthorhombic"), (75, "tetragonal"), (143, "trigonal"),
    (168, "hexagonal"), (195, "cubic"),
)  # fmt: skip


def crystal_system(space_group: int) -> str:
    """The crystal system of a space group number, by the ranges of the International Tables.

    Raises:
        InputError: not a number from 1 to 230.
    """
    if not 1 <= space_group <= 230:
        raise InputError(f"`space_group` must be a number from 1 to 230, got {space_group!r}")
    return [system for first, system in _FIRST_SPACE_GROUP if first <= space_group][-1]


class ScalarProperty(msgspec.Struct, frozen=True, tag="scalar", forbid_unknown_fields=True):
    """A real number, embedded by Gaussians on a grid (eq. 8).

    Attributes:
        name: of the property, also its column in a table.
        minimum: lowest value that the model was made for, and the grid's start.
        maximum: highest.
        spacing: of the grid, and the width of its Gaussians.
        unit: eV/atom, eV, ...; empty for a pure number.
    """

    name: str
    minimum: float
    maximum: float
    spacing: float
    unit: str = ""

    def __post_init__(self) -> None:
        if not (self.maximum > self.minimum and self.spacing > 0):
            raise InputError(
                f"property {self.name!r} must have minimum < maximum and spacing > 0, got {self.minimum} to "
                f"{self.maximum} by {self.spacing}"
            )

    @property
    def n_gaussians(self) -> int:
        """Gaussians on the grid, which ends at or above the maximum."""
        return math.ceil((self.maximum - self.minimum) / self.spacing) + 1


class ClassProperty(msgspec.Struct, frozen=True, tag="class", forbid_unknown_fields=True):
    """One of several classes, each with a learnt vector (eq. 9).

    Attributes:
        name: of the property, also its column in a table.
        n_classes: classes are numbered from 0.
        labels: their names in that order; empty where numbers say enough.
    """

    name: str
    n_classes: int
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n_classes < 1 or (self.labels and len(self.labels) != self.n_classes):
            raise InputError(
                f"property {self.name!r} must have at least one class and as many labels as classes or none, got "
                f"{self.n_classes} classes and {len(self.labels)} labels"
            )


class CompositionProperty(msgspec.Struct, frozen=True, tag="composition", forbid_unknown_fields=True):
    """A chemical formula, as element features averaged by atomic fraction (eq. 13)."""

    name: str = "formula"


Property = ScalarProperty | ClassProperty | CompositionProperty


def encode(properties: Sequence[Property], values: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    """Values of properties as the networks take them.

    Args:
        properties: those that are wanted.
        values: by name: numbers; class numbers or labels; formulas, or ``[n, 92]`` averaged element features. One for
            all, or one for each.
        n: how many.

    Returns:
        By name: scalars ``[n]`` float32, classes ``[n]`` int32, compositions ``[n, 92]`` float32.

    Raises:
        InputError: a property is missing or not among those wanted, or a value is not one of its values.
    """
    n = number("n", n, "a whole number from 0 up", lambda n: n >= 0, integer=True)
    names = [spec.name for spec in properties]
    if not isinstance(values, Mapping) or set(names) != set(values):
        got = ", ".join(map(str, values)) or "none" if isinstance(values, Mapping) else repr(values)
        raise InputError(f"values must be given of exactly the properties {', '.join(names) or '(none)'}; got {got}")
    return {spec.name: _encode(spec, _whole(spec.name, values[spec.name]), n) for spec in properties}


def _whole(name: str, value: Any) -> Any:
    """The value, text in an array without axes as text."""
    try:
        return value.item() if np.ndim(value) == 0 and isinstance(value, np.ndarray) else value
    except ValueError as error:
        raise InputError(f"`{name}` must be one value for all, or one for each; got rows of several lengths") from error


def _encode(spec: Property, value: Any, n: int) -> np.ndarray:
    if isinstance(spec, CompositionProperty):
        return _compositions(spec.name, value, n)
    if isinstance(spec, ClassProperty):
        return _classes(spec, value, n)
    return _finite(spec.name, _for_each(value, n), n)


def _finite(name: str, value: Any, *shape: int) -> np.ndarray:
    wide: np.ndarray = as_array(name, value, np.float64, *shape)
    good = np.abs(wide) <= np.finfo(np.float32).max
    if not good.all():
        raise InputError(f"`{name}` must be finite in float32, got {wide[~good][0]}")
    return wide.astype(np.float32)


def _classes(spec: ClassProperty, value: Any, n: int) -> np.ndarray:
    if isinstance(value, str):
        value = _class_number(spec, value)
    elif np.ndim(value) == 1 and any(isinstance(entry, str) for entry in value):
        value = [_class_number(spec, entry) for entry in value]
    given = np.asarray(_for_each(value, n))
    if given.dtype.kind == "f":  # a column of a table with gaps
        good = (given >= 0) & (given < spec.n_classes) & (given == np.round(given))
        if not good.all():
            raise InputError(
                f"`{spec.name}` must be whole class numbers from 0 to {spec.n_classes - 1}, got {given[~good][0]}"
            )
        given = given.astype(np.int32)
    numbers = as_array(spec.name, given, np.int32, n)
    if n and not (numbers.min() >= 0 and numbers.max() < spec.n_classes):
        raise InputError(
            f"`{spec.name}` must be class numbers from 0 to {spec.n_classes - 1}, got {numbers.min()} to "
            f"{numbers.max()}"
        )
    return np.ascontiguousarray(numbers)


def _for_each(value: Any, n: int) -> Any:
    return np.broadcast_to(np.asarray(value), n) if np.ndim(value) == 0 else value


def _class_number(spec: ClassProperty, entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    if entry not in spec.labels:
        known = f"one of {', '.join(spec.labels)}" if spec.labels else f"a number from 0 to {spec.n_classes - 1}"
        raise InputError(f"`{spec.name}` must be {known}, got {entry!r}")
    return spec.labels.index(entry)


def _compositions(name: str, value: Any, n: int) -> np.ndarray:
    if isinstance(value, str):
        value = np.broadcast_to(_averaged(name, value), (n, N_FEATURES))
    elif np.ndim(value) == 1 and all(isinstance(entry, str) for entry in value):
        rows = {entry: _averaged(name, entry) for entry in set(value)}
        value = np.array([rows[entry] for entry in value]).reshape(-1, N_FEATURES)
    return _finite(name, value, n, N_FEATURES)


def _averaged(name: str, formula: str) -> Float32[np.ndarray, "features"]:
    """Element features averaged by atomic fraction."""
    features, amounts = element_features(), parse_formula(formula)
    if max(amounts) >= len(features):
        raise InputError(f"`{name}`: {formula} has an element beyond number {len(features) - 1}; none is described")
    numbers, counts = np.array(list(amounts)), np.array(list(amounts.values()))
    averaged: np.ndarray = counts @ features[numbers].astype(np.float64) / counts.sum()
    return averaged.astype(np.float32)
