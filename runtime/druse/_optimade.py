"""Crystals as structures of OPTIMADE 1.1, in its JSON Lines form for whole data bases.

The first line is a header, the second describes the properties that are Druse's own, and each other line is a
structure. Source: OPTIMADE API specification 1.1.0, sections "Structures Entries" and "Database-Provider-Specific
Namespace Prefixes"; the form of the file is that of optimade-maker.
"""

import itertools
import json
import math
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from druse.crystals import Crystals
from druse.elements import SYMBOLS, formula_of
from druse.errors import InputError

__all__ = ["PREFIX", "Properties", "header", "structure"]

PREFIX = "_druse_"
_TYPES = {bool: "boolean", int: "integer", float: "float", str: "string"}


class Properties:
    """The names under which facts are written, which may have small letters, digits and ``_`` only."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._types: dict[str, str] = {}

    def __call__(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Facts by their names; a number that is not finite, which JSON cannot hold, is null."""
        return {self._name(key, value): _finite(value) for key, value in facts.items()}

    def _name(self, key: str, value: Any) -> str:
        if key not in self._names:
            plain = PREFIX + re.sub(r"[^a-z0-9_]", "_", key.lower())
            taken = set(self._names.values())
            more = (f"{plain}_{n}" for n in itertools.count(2))
            self._names[key] = plain if plain not in taken else next(name for name in more if name not in taken)
            self._types[key] = _TYPES[type(value)]
        return self._names[key]

    def described(self) -> dict[str, Any]:
        """Of each name what OPTIMADE's ``info`` says."""
        return {name: {"description": key, "type": self._types[key]} for key, name in self._names.items()}


def header(properties: Properties) -> str:
    """The two lines before the structures."""
    info = {"type": "info", "id": "structures", "properties": properties.described()}
    return f"{json.dumps({'x-optimade': {'meta': {'api_version': '1.1.0'}}})}\n{json.dumps(info)}\n"


def structure(crystal: Crystals, identity: str, said: Mapping[str, Any]) -> str:
    """One line.

    Args:
        crystal: a batch of one.
        identity: its ``id``, unique in the file.
        said: properties of `Properties`.

    Raises:
        InputError: an atom is of no element.
    """
    if not crystal.species.all():
        raise InputError("an atom of no element (number 0) cannot be written as a structure of OPTIMADE")
    symbols = [SYMBOLS[z - 1] for z in crystal.species]
    counts = {symbol: symbols.count(symbol) for symbol in sorted(set(symbols))}
    attributes = {
        "immutable_id": None,
        "last_modified": None,
        "elements": list(counts),
        "nelements": len(counts),
        "elements_ratios": [count / len(symbols) for count in counts.values()],
        "chemical_formula_descriptive": formula_of(crystal.species),
        "chemical_formula_reduced": _formula(_reduced(counts)),
        "chemical_formula_hill": _formula(_hill(counts)),
        "chemical_formula_anonymous": _formula(
            dict(zip(_letters(), sorted(_reduced(counts).values(), reverse=True), strict=False))
        ),
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": crystal.cells[0].tolist(),
        "cartesian_site_positions": crystal.cart.tolist(),
        "nsites": len(symbols),
        "species": [{"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in counts],
        "species_at_sites": symbols,
        "structure_features": [],
        **said,
    }
    entry = {"type": "structures", "id": identity, "attributes": attributes}
    return f"{json.dumps(entry, allow_nan=False)}\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reduced(counts: Mapping[str, int]) -> dict[str, int]:
    factor = int(np.gcd.reduce(list(counts.values()))) if counts else 1
    return {symbol: count // factor for symbol, count in counts.items()}


def _hill(counts: Mapping[str, int]) -> dict[str, int]:
    """Carbon, hydrogen, then the others by letter; all by letter where there is no carbon."""
    first = ("C", "H") if "C" in counts else ()
    order = [*(symbol for symbol in first if symbol in counts), *(s for s in counts if s not in first)]
    return {symbol: counts[symbol] for symbol in order}


def _letters() -> Iterator[str]:
    """A, B, ..., Z, Aa, Ba, ..., Za, Ab, ..."""
    for second in ("", *string.ascii_lowercase):
        yield from (first + second for first in string.ascii_uppercase)


def _formula(counts: Mapping[str, int]) -> str:
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts.items())
