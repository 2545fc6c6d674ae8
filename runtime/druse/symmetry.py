"""Space groups of crystals, by spglib through pymatgen (Togo, Shinohara and Tanaka, arXiv:1808.01590) or by moyo.

Tolerances are the paper's (section 3.1): 0.2 Angstrom, twenty times pymatgen's own, and 5 degrees.
"""

import logging
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

from druse._arrays import Int32
from druse._dependencies import require
from druse._entries import shown
from druse._fingerprints import as_structure
from druse._processes import time_limit
from druse._workable import unworkable
from druse.crystals import Crystals
from druse.errors import InputError
from druse.validity import TOO_CLOSE, structural_faults

__all__ = ["ANGLE_TOLERANCE", "SYMPREC", "Method", "SpaceGroups", "space_groups"]

SYMPREC = 0.2
"""Angstrom."""

ANGLE_TOLERANCE = 5.0
"""Degrees."""

Method = Literal["pymatgen", "moyo"]


class SpaceGroups(NamedTuple):
    """Of a batch of crystals.

    Attributes:
        numbers: ``[crystals]`` from 1 to 230; 0 where none was found.
        failures: for each crystal why; empty where there is one.
    """

    numbers: Int32[np.ndarray, "crystals"]
    failures: tuple[str, ...]


def space_groups(
    crystals: Crystals,
    *,
    method: Method = "pymatgen",
    symprec: float = SYMPREC,
    angle_tolerance: float = ANGLE_TOLERANCE,
    seconds: float | None = None,
) -> SpaceGroups:
    """Space groups, crystal by crystal: milliseconds each by pymatgen, a tenth of that by moyo.

    Args:
        crystals: what is no crystal (`druse.validity.structural_faults`) has none, nor has what would take minutes
            (a cell far longer than wide, atoms on top of one another); atoms may be close.
        method: ``pymatgen`` (SpacegroupAnalyzer, as in the paper) or ``moyo`` (moyopy).
        symprec: in Angstrom.
        angle_tolerance: in degrees; of pymatgen. moyo derives its own from ``symprec``, for with one that is given it
            did not come back from one crystal in a hundred (moyo 0.21).
        seconds: for one crystal, in a process that `druse._processes` started; None for no limit.

    Raises:
        MissingDependencyError: pymatgen or moyopy is not installed.
    """
    find = {"pymatgen": _by_pymatgen, "moyo": _by_moyo}.get(method)
    if find is None:
        raise InputError(f"`method` must be pymatgen or moyo, got {method!r}")
    require("pymatgen.symmetry.analyzer" if method == "pymatgen" else "moyopy", purpose="space groups", extra="screen")
    numbers, failures = np.zeros(len(crystals), np.int32), [""] * len(crystals)
    faults = structural_faults(crystals)
    for b, crystal in enumerate(crystals):
        if faults[b] not in ("", TOO_CLOSE):  # spglib does not survive numbers that are not finite
            failures[b] = faults[b]
            continue
        if reason := unworkable(crystal):
            failures[b] = reason
            continue
        try:
            with time_limit(seconds), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                numbers[b] = find(crystal, symprec, angle_tolerance)
        except Exception as error:
            text = str(error).strip().splitlines()
            failures[b] = shown(f"{type(error).__name__}: {text[0] if text else 'no reason given'}")
    return SpaceGroups(numbers, tuple(failures))


def _by_pymatgen(crystal: Crystals, symprec: float, angle_tolerance: float) -> int:
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    return int(SpacegroupAnalyzer(as_structure(crystal), symprec, angle_tolerance).get_space_group_number())


def _by_moyo(crystal: Crystals, symprec: float, angle_tolerance: float) -> int:  # noqa: ARG001
    import moyopy

    cell: Any = moyopy.Cell(crystal.cells[0].tolist(), crystal.frac.tolist(), crystal.species.tolist())
    log = logging.getLogger("moyo")  # it warns of what concerns operations, which nobody asked for
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return int(moyopy.MoyoDataset(cell, symprec=symprec).number)
    finally:
        log.setLevel(level)
