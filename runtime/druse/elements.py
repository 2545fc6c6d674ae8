"""Elements: symbols, and the features that CGCNN and the composition condition describe them by."""

import functools
import math
import re
from importlib import resources
from typing import Any

import numpy as np

from druse._arrays import Float32, as_array
from druse.errors import InputError

__all__ = ["N_FEATURES", "SYMBOLS", "element_features", "formula_of", "parse_formula"]

N_FEATURES = 92

_LIST = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc
Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi
Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = tuple(_LIST.split())
"""Symbols in order: that of atomic number Z is ``SYMBOLS[Z - 1]``."""


@functools.cache
def element_features() -> Float32[np.ndarray, "elements features"]:
    """``[101, 92]`` features by atomic number, row 0 empty (read-only).

    Source: Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018).
    """
    text = resources.files("druse").joinpath("data", "element_features.txt").read_text("ascii")
    rows = [line for line in text.splitlines() if line and not line.startswith("#")]
    features = np.zeros((len(rows) + 1, N_FEATURES), np.float32)
    features[1:] = [[float(bit) for bit in row] for row in rows]
    features.flags.writeable = False
    return features


_TOKEN = re.compile(r" *([A-Z][a-z]?|\(|\))(?: *([0-9]+(?:\.[0-9]+)?))? *")


def parse_formula(formula: str) -> dict[int, float]:
    """Atoms of each element in a formula, by atomic number: ``Ba(TiO3)2`` to ``{56: 1, 22: 2, 8: 6}``.

    Raises:
        InputError: it is no formula, or names something that is no element.
    """
    if not isinstance(formula, str):
        raise InputError(f"a formula must be text such as BaTiO3, got {formula!r}")
    groups: list[dict[int, float]] = [{}]
    place = 0
    while place < len(formula):
        match = _TOKEN.match(formula, place)
        if match is None or (match[1] not in "()" and match[1] not in SYMBOLS):
            raise _unreadable(formula, place, "no element")
        symbol, count = match[1], float(match[2] or 1)
        if not 0 < count < math.inf or (symbol == "(" and match[2]):
            raise _unreadable(formula, place, "a count that cannot be")
        if symbol == "(":
            groups.append({})
        else:
            if symbol == ")" and (len(groups) == 1 or not groups[-1]):
                raise _unreadable(formula, place, "a bracket that closes nothing")
            group = groups.pop() if symbol == ")" else {SYMBOLS.index(symbol) + 1: 1.0}
            for number, amount in group.items():
                groups[-1][number] = groups[-1].get(number, 0.0) + amount * count
        place = match.end()
    if len(groups) != 1 or not groups[0]:
        raise _unreadable(formula, place, "a bracket left open" if len(groups) != 1 else "nothing")
    amounts = groups[0].values()
    if not (min(amounts) > 0 and sum(amounts) < math.inf):  # products of counts that were numbers each
        raise _unreadable(formula, 0, "counts that cannot be")
    return groups[0]


def _unreadable(formula: str, place: int, what: str) -> InputError:
    whole = formula if len(formula) <= 60 else f"{formula[:60]}..."
    rest = f"at {formula[place : place + 20]!r}" if place < len(formula) else "at its end"
    return InputError(f"cannot read {whole!r} as a formula: {what} {rest}; write such as BaTiO3 or Ca(OH)2")


def formula_of(species: Any) -> str:
    """The formula of atoms given by their atomic numbers, elements in order of number: ``[22, 8, 8]`` to ``O2Ti``.

    Raises:
        InputError: one is no atomic number.
    """
    numbers, counts = np.unique(as_array("species", species, np.int64, "atoms"), return_counts=True)
    if len(numbers) and not (numbers[0] >= 1 and numbers[-1] <= len(SYMBOLS)):
        raise InputError(
            f"`species` must be atomic numbers from 1 to {len(SYMBOLS)}, got {numbers[0]} to {numbers[-1]}"
        )
    return "".join(f"{SYMBOLS[z - 1]}{n if n > 1 else ''}" for z, n in zip(numbers, counts, strict=True))
