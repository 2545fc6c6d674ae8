"""Properties that a model is conditioned on or predicts: their names, kinds, units and ranges."""

import math

import msgspec

from druse.errors import InputError

__all__ = ["CRYSTAL_SYSTEMS", "ClassProperty", "CompositionProperty", "Property", "ScalarProperty", "crystal_system"]

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
