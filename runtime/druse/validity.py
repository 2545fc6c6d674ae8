"""Whether crystals can be: atoms apart from one another, and charges that balance, in the sense of CDVAE's metrics.

A fault is a reason in words; the empty string is a good crystal.
"""

import functools
import math
import warnings
from typing import NamedTuple

import numpy as np

from druse._dependencies import require
from druse.crystals import Crystals
from druse.elements import SYMBOLS
from druse.graphs import COINCIDENT, EMPTY, NON_FINITE, SINGULAR, STOPPED, describe_status, radius_graph
from druse.lattice import volumes

__all__ = ["MIN_DISTANCE", "MIN_VOLUME", "TOO_CLOSE", "compositional_faults", "structural_faults"]

MIN_DISTANCE = 0.5
"""Atoms of a valid structure are at least as far apart, in Angstrom (Court et al., J. Chem. Inf. Model. 60, 4518, 2020;
Xie et al., ICLR 2022)."""

MIN_VOLUME = 0.1
"""Of a cell, in cubic Angstrom."""

TOO_CLOSE = f"atoms closer than {MIN_DISTANCE} Å"
"""The one structural fault of what is a crystal all the same."""


def structural_faults(crystals: Crystals) -> tuple[str, ...]:
    """What is wrong with each structure: atoms closer than `MIN_DISTANCE`, a cell below `MIN_VOLUME`, or no crystal.

    All pairs count, in all periodic images. CDVAE leaves out the images of an atom itself, which matter only where the
    cell has an edge below 0.5 Angstrom.
    """
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=MIN_DISTANCE, max_neighbors=1, incidence=False
    )
    with np.errstate(invalid="ignore", over="ignore"):
        small = ~(volumes(crystals.cells) >= MIN_VOLUME)
    owner = np.repeat(np.arange(len(crystals)), crystals.n_atoms)
    close = (graph.status & COINCIDENT) > 0
    close[owner[graph.dst[graph.distance < MIN_DISTANCE]]] = True
    unknown = np.zeros(len(crystals), bool)
    unknown[owner[crystals.species == 0]] = True
    return tuple(
        _structural_fault(int(graph.status[b]), bool(unknown[b]), bool(small[b]), bool(close[b]))
        for b in range(len(crystals))
    )


def _structural_fault(status: int, unknown: bool, small: bool, close: bool) -> str:
    if status & (EMPTY | NON_FINITE):
        return describe_status(status & (EMPTY | NON_FINITE))[0]
    if unknown:
        return "an atom is of no element"
    if small:
        return f"a cell below {MIN_VOLUME} Å³"
    if status & SINGULAR:
        return describe_status(SINGULAR)[0]
    if close:
        return TOO_CLOSE
    return next(iter(describe_status(status & STOPPED)), "")


class _Element(NamedTuple):
    """What SMACT knows: oxidation states of its set of 2014, Pauling's electronegativity."""

    symbol: str
    states: tuple[int, ...]
    electronegativity: float | None
    metal: bool


def compositional_faults(crystals: Crystals) -> tuple[str, ...]:
    """What is wrong with each composition, as CDVAE asks SMACT (Davies et al., Chem 1, 617, 2016).

    A composition is good if one oxidation state for each element makes it neutral while every cation is less
    electronegative than every anion, if it is a single element, or if all its elements are metals. Oxidation states are
    those of SMACT's set of 2014, its default when CDVAE was published; newer releases of SMACT have another default,
    by which other shares are valid.

    Raises:
        MissingDependencyError: SMACT is not installed.
    """
    require("smact", purpose="judging compositions", extra="evaluate")
    faults = []
    for start, stop in zip(crystals.offsets[:-1], crystals.offsets[1:], strict=True):
        numbers, counts = np.unique(crystals.species[start:stop], return_counts=True)
        divisor = math.gcd(*counts.tolist()) or 1
        faults.append(_compositional_fault(tuple(numbers.tolist()), tuple((counts // divisor).tolist())))
    return tuple(faults)


@functools.lru_cache(maxsize=65536)
def _compositional_fault(numbers: tuple[int, ...], counts: tuple[int, ...]) -> str:
    if not numbers:
        return describe_status(EMPTY)[0]
    if numbers[0] == 0:
        return "an atom is of no element"
    if len(numbers) == 1:
        return ""
    elements = [_element(z) for z in numbers]
    if all(element.metal for element in elements):
        return ""
    for element in elements:
        if not element.states or element.electronegativity is None:
            what = "oxidation states" if not element.states else "electronegativity"
            return f"SMACT knows no {what} of {element.symbol}"
    if not _balances([element.states for element in elements], counts):
        return "no oxidation states make it neutral"
    for limit in {element.electronegativity or 0.0 for element in elements}:
        sides = [
            tuple(q for q in element.states if (q >= 0 if (element.electronegativity or 0.0) <= limit else q <= 0))
            for element in elements
        ]
        if _balances(sides, counts):
            return ""
    return "neutral only with cations that are not less electronegative than anions"


def _balances(states: list[tuple[int, ...]], counts: tuple[int, ...]) -> bool:
    """Whether one state for each element, times its count, can add up to zero."""
    sums = {0}
    for of_element, count in zip(states, counts, strict=True):
        sums = {total + count * state for total in sums for state in of_element}
    return 0 in sums


@functools.cache
def _element(number: int) -> _Element:
    symbol = SYMBOLS[number - 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import smact

        try:
            known = smact.Element(symbol)
        except (KeyError, NameError):  # what the releases of SMACT raise for elements after lawrencium
            return _Element(symbol, (), None, False)
    states = tuple(known.oxidation_states_smact14 or ())
    return _Element(symbol, states, known.pauling_eneg, symbol in smact.metals)
