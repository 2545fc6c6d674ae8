"""Predictions beside DFT, as in figure 6 of the paper, and the mean changes of its table 3."""

import csv
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._files import read_small
from druse.elements import SYMBOLS
from druse.errors import InputError

_LARGEST = 1 << 20  # bytes of a file of references

PROPERTIES = {"formation_energy_per_atom": "formation_energy_per_atom_dft", "band_gap": "band_gap_dft"}
"""The column of DFT for each property that is predicted."""

CHANGES = ("delta_a", "delta_b", "delta_c", "delta_alpha", "delta_beta", "delta_gamma", "rmsd", "rmsd_angstrom")
"""Columns whose means are table 3."""


class Agreement(NamedTuple):
    """A column of predictions, or of targets, beside DFT.

    Attributes:
        column: of the predictions.
        dft: the column it is compared with.
        n: structures that have both.
        mae: mean absolute error, in the column's unit; NaN for none.
        rmse: root mean square error.
        r2: one less the share of DFT's variance that is left; NaN for fewer than two structures, or equal ones.
        failed: structures that have a prediction and whose relaxation failed: "Err" in figure 6.
    """

    column: str
    dft: str
    n: int
    mae: float
    rmse: float
    r2: float
    failed: int


def agreements(columns: Mapping[str, np.ndarray], failed: np.ndarray) -> list[Agreement]:
    """Every prediction and target of a property that DFT has too.

    Args:
        columns: by name, ``[entries]``.
        failed: ``[entries]``: whose relaxation failed.
    """
    found = []
    for name, values in columns.items():
        known = PROPERTIES.get(_property(name))
        if known is not None and known in columns and values.dtype.kind == "f":
            found.append(_agreement(name, values, known, columns[known], failed))
    return found


def mean_changes(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means of the columns of table 3, and of how many structures each is."""
    found = {}
    for name in CHANGES:
        values = columns[name][np.isfinite(columns[name])]
        found[name] = {"mean": float(values.mean()) if len(values) else math.nan, "n": len(values)}
    return found


def read_references(path: Path) -> dict[int, float]:
    """Energies of elements in eV an atom, by atomic number: ``Li = -1.90`` in TOML, or CSV ``element,energy_per_atom``.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        text = read_small(Path(path), _LARGEST).decode("utf-8")
        rows: Sequence[tuple[Any, Any]]
        if Path(path).suffix.lower() == ".toml":
            rows = list(tomllib.loads(text).items())
        else:
            rows = [(row["element"], row["energy_per_atom"]) for row in csv.DictReader(text.splitlines())]
        found = {_number(element): _energy(value) for element, value in rows}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give energies of elements") from error
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)[:120]
        raise InputError(
            f"{path} must hold an energy in eV an atom for each element, as TOML (Li = -1.90) or CSV with the columns "
            f"element and energy_per_atom; it does not ({reason})"
        ) from error
    if not found:
        raise InputError(f"{path} holds no energy of an element")
    return found


def elemental_energies(species: Sequence[np.ndarray], energy_per_atom: np.ndarray) -> dict[int, tuple[float, int]]:
    """Of each element of which a structure of nothing else is there: the lowest energy an atom, and whose it is."""
    found: dict[int, tuple[float, int]] = {}
    for k, numbers in enumerate(species):
        energy = float(energy_per_atom[k])
        if len(numbers) and np.all(numbers == numbers[0]) and math.isfinite(energy):
            element = int(numbers[0])
            if element not in found or energy < found[element][0]:
                found[element] = (energy, k)
    return found


def formation_energies(
    species: Sequence[np.ndarray], energy_per_atom: np.ndarray, references: Mapping[int, float]
) -> np.ndarray:
    """Energy an atom less that of its elements, in eV; NaN where an element has no reference."""
    found = np.full(len(species), math.nan)
    for k, numbers in enumerate(species):
        if len(numbers):
            found[k] = energy_per_atom[k] - np.mean([references.get(int(z), math.nan) for z in numbers])
    return found


def _property(column: str) -> str:
    """What a column is of, be it ``band_gap|model|1|eV``, ``predicted_band_gap`` or ``target_band_gap``."""
    return column.partition("|")[0].removeprefix("predicted_").removeprefix("target_")


def _agreement(name: str, values: np.ndarray, dft: str, truth: np.ndarray, failed: np.ndarray) -> Agreement:
    both = np.isfinite(values) & np.isfinite(truth) & ~failed
    errors, known = values[both] - truth[both], truth[both]
    spread = float(np.sum((known - known.mean()) ** 2)) if len(known) > 1 else 0.0
    return Agreement(
        name,
        dft,
        int(both.sum()),
        float(np.mean(np.abs(errors))) if len(errors) else math.nan,
        float(np.sqrt(np.mean(errors**2))) if len(errors) else math.nan,
        1 - float(np.sum(errors**2)) / spread if spread > 0 else math.nan,
        int(np.sum(np.isfinite(values) & failed)),
    )


def _number(element: Any) -> int:
    symbol = str(element).strip()
    if symbol not in SYMBOLS:
        raise ValueError(f"{symbol[:20]!r} is no element")
    return SYMBOLS.index(symbol) + 1


def _energy(value: Any) -> float:
    energy = float(value)
    if not math.isfinite(energy) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no energy")
    return energy
