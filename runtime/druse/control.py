"""Strict control: what a crystal must and must not be, held by masks rather than hoped for.

A mask never depends on the model: a crystal of a fixed formula has exactly those atoms, whatever the network prefers.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np

from druse._arrays import Bool, Int32, UInt8
from druse.conditions import CRYSTAL_SYSTEMS
from druse.elements import SYMBOLS, parse_formula
from druse.errors import InputError

__all__ = ["Control", "Masks"]


class Masks(NamedTuple):
    """A control, as arrays.

    Attributes:
        n_atoms: ``[max_atoms + 1]`` whether a crystal may have so many atoms; never 0.
        elements: ``[species]`` whether an element may occur, hydrogen first.
        unit: ``[species]`` atoms of each element in the smallest whole formula, or None where none is asked for.
    """

    n_atoms: Bool[np.ndarray, "counts"]
    elements: Bool[np.ndarray, "species"]
    unit: Int32[np.ndarray, "species"] | None

    def atoms_of(self, n_atoms: int) -> Int32[np.ndarray, "atoms"]:
        """Atomic numbers of the formula, repeated to so many atoms; for a control with a formula only."""
        if self.unit is None:
            raise InputError("this control has no `formula`")
        times = n_atoms // int(self.unit.sum())
        return np.repeat(np.arange(1, len(self.unit) + 1, dtype=np.int32), times * self.unit)

    @property
    def allowed(self) -> UInt8[np.ndarray, "species"] | None:
        """``elements`` for `druse.sampling.langevin_update`; None where everything may occur."""
        return None if self.elements.all() else self.elements.astype(np.uint8)


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every crystal must be.

    Attributes:
        formula: exactly this composition, as ``LiFePO4``; empty for any.
        z: formula units in the cell, of the formula as it is written; 0 for any number.
        elements: symbols from which alone a crystal may be made; empty for all.
        exclude: symbols that may not occur.
        n_atoms: fewest and most atoms in the cell; None for what the model can.
        crystal_system: of the lattice, see `druse.bravais.constrain`; empty for any.
    """

    formula: str = ""
    z: int = 0
    elements: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    n_atoms: tuple[int, int] | None = None
    crystal_system: str = ""

    def __bool__(self) -> bool:
        return self != Control()

    def masks(self, max_atoms: int, n_species: int) -> Masks:
        """The control for a model.

        Raises:
            InputError: it cannot be met, by this model or by any.
        """
        if self.crystal_system and self.crystal_system not in CRYSTAL_SYSTEMS:
            raise InputError(
                f"`crystal_system` must be one of {', '.join(CRYSTAL_SYSTEMS)}, got {self.crystal_system!r}"
            )
        counts = np.arange(max_atoms + 1) > 0
        if self.n_atoms is not None:
            low, high = self.n_atoms
            if not 1 <= low <= high:
                raise InputError(f"`n_atoms` must be a number or a range from 1 up, such as 4-12, got {low}-{high}")
            if low > max_atoms:
                raise InputError(f"`n_atoms` must be at most {max_atoms}, which the model was trained for, got {low}")
            counts &= (np.arange(max_atoms + 1) >= low) & (np.arange(max_atoms + 1) <= high)
        elements = self._elements(n_species)
        if not self.formula:
            if self.z:
                raise InputError("`z` counts formula units: give `formula` too")
            return Masks(counts, elements, None)
        unit = self._unit(n_species)
        total = int(unit.sum())
        forbidden = [SYMBOLS[k] for k in np.flatnonzero((unit > 0) & ~elements)]
        if forbidden:
            raise InputError(
                f"`formula` {self.formula} has {', '.join(forbidden)}, which `elements` or `exclude` forbid"
            )
        fits = np.arange(max_atoms + 1) % total == 0
        if self.z:
            fits &= np.arange(max_atoms + 1) == total * self.z
        else:
            unit //= np.gcd.reduce(unit[unit > 0])
            fits = np.arange(max_atoms + 1) % int(unit.sum()) == 0
        if not (fits & counts).any():
            size = f"{total * max(1, self.z)} atoms" + (f" with z = {self.z}" if self.z else "")
            within = "" if self.n_atoms is None else f" and `n_atoms` {self.n_atoms[0]}-{self.n_atoms[1]}"
            raise InputError(
                f"`formula` {self.formula} has {size}; no whole number of formula units fits the model's "
                f"{max_atoms} atoms{within}"
            )
        return Masks(fits & counts, elements, unit)

    def _elements(self, n_species: int) -> Bool[np.ndarray, "species"]:
        allowed = np.zeros(n_species, bool)
        allowed[_numbers("elements", self.elements, n_species) - 1 if self.elements else slice(None)] = True
        if self.exclude:
            allowed[_numbers("exclude", self.exclude, n_species) - 1] = False
        if not allowed.any():
            raise InputError("`elements` and `exclude` leave no element; allow at least one")
        return allowed

    def _unit(self, n_species: int) -> Int32[np.ndarray, "species"]:
        unit = np.zeros(n_species, np.int32)
        for number, amount in parse_formula(self.formula).items():
            if number > n_species:
                raise InputError(f"`formula` {self.formula} has {SYMBOLS[number - 1]}, which the model does not know")
            if amount != int(amount) or amount > 10_000:
                raise InputError(f"`formula` must have whole numbers of atoms, got {self.formula}")
            unit[number - 1] = int(amount)
        return unit


def _numbers(name: str, symbols: Any, n_species: int) -> np.ndarray:
    """Atomic numbers of symbols."""
    for symbol in symbols:
        if symbol not in SYMBOLS:
            raise InputError(f"`{name}` must be symbols of elements such as Li, Fe and O, got {symbol!r}")
        if SYMBOLS.index(symbol) >= n_species:
            raise InputError(
                f"`{name}` has {symbol}, which the model does not know; it knows up to {SYMBOLS[n_species - 1]}"
            )
    return np.array([SYMBOLS.index(symbol) + 1 for symbol in symbols])
