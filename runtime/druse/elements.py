"""Elements: symbols, and the features that CGCNN and the composition condition describe them by."""

import functools
import re
from importlib import resources
from typing import Any

import numpy as np

from druse._arrays import Float32
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


_TOKEN = re.compile(r"([A-Z][a-z]?|\(|\))(\d+(?:\.\d+)?)?")


def parse_formula(formula: str) -> dict[int, float]:
    """Atoms of each element in a formula, by atomic number: ``Ba(TiO3)2`` to ``{56: 1, 22: 2, 8: 6}``.

    Raises:
        InputError: it is no formula, or names something that is no element.
    """
    text = formula.replace(" ", "")
    stack: list[dict[int, float]] = [{}]
    place = 0
    for match in _TOKEN.finditer(text):
        symbol, count = match[1], match[2]
        known = symbol in "()" or symbol in SYMBOLS
        if match.start() != place or not known or (symbol == "(" and count) or (symbol == ")" and len(stack) == 1):
            break
        place = match.end()
        if symbol == "(":
            stack.append({})
            continue
        group = stack.pop() if symbol == ")" else {SYMBOLS.index(symbol) + 1: 1.0}
        for number, amount in group.items():
            stack[-1][number] = stack[-1].get(number, 0.0) + amount * float(count or 1)
    total = stack[0]
    if place != len(text) or len(stack) != 1 or not total or min(total.values()) <= 0:
        raise InputError(
            f"cannot read {formula!r} as a formula at {formula[place:]!r}; write such as BaTiO3 or Ca(OH)2"
        )
    return total


def formula_of(species: Any) -> str:
    """The formula of atoms given by their atomic numbers, elements in order of number: ``[22, 8, 8]`` to ``O2Ti``."""
    numbers, counts = np.unique(np.asarray(species), return_counts=True)
    return "".join(f"{SYMBOLS[z - 1]}{n if n > 1 else ''}" for z, n in zip(numbers, counts, strict=True))
