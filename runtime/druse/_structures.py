"""A row understood: its crystal, in the cell that the source gives, and what the source says of it."""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from druse._dependencies import require
from druse._limits import LIMITS, Limits, Row
from druse._optimade import PREFIX
from druse.elements import SYMBOLS
from druse.errors import InputError
from druse.lattice import cells_from_parameters, volumes

__all__ = ["Understood", "faults", "understand_row"]

_NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS, 1)}
_ID_KEYS = ("material_id", "entry_id", "id")
_FAR = 1e6  # cells; beyond, a coordinate has no digits left


class Understood(NamedTuple):
    """One entry.

    Attributes:
        id: its name, where the text has one; else empty.
        cell: ``[3, 3]`` row vectors in Angstrom.
        frac: ``[atoms, 3]``, as the source has them.
        species: ``[atoms]`` atomic numbers.
        facts: what the text says besides.
    """

    id: str
    cell: np.ndarray
    frac: np.ndarray
    species: np.ndarray
    facts: Mapping[str, Any]


def understand_row(row: Row, limits: Limits = LIMITS) -> Understood | str:
    """The crystal of a row, or why there is none. Nothing in it is executed."""
    if row.format == "broken":
        return row.text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _READERS[row.format](row.text, limits)
        n_atoms = len(found.species)
        if found.frac.shape != (n_atoms, 3) or found.cell.shape != (3, 3):
            return "it has not three coordinates for each atom, or not three vectors of a cell"
        (fault,) = faults(found.cell[None], np.array([0, n_atoms]), found.frac, found.species, limits)
    except InputError as error:
        return str(error)
    except Exception as error:
        text = str(error).strip().splitlines()
        return f"{type(error).__name__}: {text[0][:300] if text else 'no reason given'}"
    return fault or found


def faults(
    cells: np.ndarray, offsets: np.ndarray, frac: np.ndarray, species: np.ndarray, limits: Limits = LIMITS
) -> list[str]:
    """Of each crystal of a batch why it cannot be one; empty where it can.

    Args:
        cells: ``[crystals, 3, 3]``.
        offsets: ``[crystals + 1]``.
        frac: ``[atoms, 3]``.
        species: ``[atoms]``, any integers.
        limits: of atoms and cells.
    """
    n = len(cells)
    n_atoms = np.diff(offsets)
    owner = np.repeat(np.arange(n), n_atoms)

    def has_atom(wrong: np.ndarray) -> np.ndarray:
        return np.bincount(owner[wrong], minlength=n) > 0

    with np.errstate(all="ignore"):
        edges = np.linalg.norm(cells, axis=2)
        finite = np.isfinite(edges).all(1)
        volume = volumes(np.where(finite[:, None, None], cells, 1.0))
        flatness = np.where(finite, volume / edges.prod(1), 1.0)
        wrong: list[tuple[np.ndarray, str]] = [
            (n_atoms == 0, "it has no atoms"),
            (n_atoms > limits.atoms, "{n} atoms, more than " + str(limits.atoms)),
            (has_atom((species < 1) | (species > len(SYMBOLS))), "an atom of no element"),
            (~finite | has_atom(~np.isfinite(frac).all(1)), "its coordinates or cell are not finite"),
            (edges.max(1) > limits.longest, f"an edge of its cell is longer than {limits.longest:,g} Å"),
            (edges.min(1) < limits.shortest, f"an edge of its cell is shorter than {limits.shortest:g} Å"),
            (~(flatness > limits.flatness), "its cell is flat"),
            (volume < limits.crowding * n_atoms, f"less than {limits.crowding:g} Å³ for each atom"),
            (has_atom((np.abs(frac) > _FAR).any(1)), "an atom lies a million cells away"),
        ]
    reasons = [""] * n
    for mask, reason in reversed(wrong):
        for k in np.flatnonzero(mask):
            reasons[k] = reason.format(n=n_atoms[k])
    return reasons


def _number(symbol: Any) -> int:
    if symbol in ("D", "T"):
        raise InputError(f"{symbol} is an isotope, not an element; write H")
    if not isinstance(symbol, str) or symbol not in _NUMBERS:
        raise InputError(f"{str(symbol)[:20]!r} is no element")
    return _NUMBERS[symbol]


def _floats(value: Any, *shape: int) -> np.ndarray:
    return np.array(value, np.float64).reshape(shape)


def _counted(n_atoms: int, limits: Limits) -> None:
    if n_atoms > limits.atoms:
        raise InputError(f"{n_atoms:,} atoms, more than {limits.atoms}")


def _cif(text: str, limits: Limits) -> Understood:
    require("pymatgen.io.cif", purpose="reading CIF", extra="screen")
    from pymatgen.io.cif import CifParser

    try:
        parser = CifParser.from_str(_harmless(text))
    except ZeroDivisionError as error:
        raise InputError("it has no atoms, or another loop without values") from error
    blocks = list(parser.as_dict().values())
    for block in blocks:
        _check_block(block, limits)
    try:
        structure = parser.parse_structures(primitive=False)[0]
    except ValueError as error:
        reasons = [text.splitlines()[-1] for text in parser.warnings if text.startswith("No structure parsed")]
        reason = reasons[0] if reasons else str(error)
        raise InputError("its cell is flat" if reason.startswith("thickness") else reason) from error
    if not structure.is_ordered:
        raise InputError("its sites are partly occupied")
    n_sites = min((len(block["_atom_site_label"]) for block in blocks if "_atom_site_label" in block), default=0)
    if len(structure) < n_sites:
        raise InputError(f"{len(structure)} atoms from {n_sites} sites; the others are of no element, or fall together")
    species = np.array([_number(site.specie.symbol) for site in structure], np.int32)
    return Understood("", np.array(structure.lattice.matrix), np.array(structure.frac_coords), species, {})


_LINE = 8192
"""Characters of a line with many quotes; CIF allows 2,048 in any, and pymatgen's time grows with their square."""


def _harmless(text: str) -> str:
    """Without empty lines, over a million of which pymatgen takes hours."""
    lines = [line.rstrip() for line in text.splitlines() if not line.isspace()]
    if any(len(line) > _LINE and line.count("'") + line.count('"') > _LINE // 80 for line in lines):
        raise InputError(f"a line with quotes is longer than {_LINE} characters")
    return "\n".join(filter(None, lines))


def _check_block(block: Mapping[str, Any], limits: Limits) -> None:
    """Refuse what would take hours or gigabytes to multiply by symmetry, and what pymatgen would take for another."""
    sites = max((len(values) for key, values in block.items() if _is_loop(key, values, "_atom_site_")), default=0)
    if sites > limits.atoms:
        raise InputError(f"{sites:,} sites, more than {limits.atoms}")
    operations = 1
    for names in (("_symmetry_equiv_pos", "_space_group_symop"), ("_space_group_symop_magn_centering",)):
        operations *= max((len(v) for k, v in block.items() if any(_is_loop(k, v, name) for name in names)), default=1)
        if operations > limits.operations:
            raise InputError(f"{operations:,} symmetry operations, more than {limits.operations}")
    for axis in "xyz":
        if any("n" in str(value).lower() for value in block.get(f"_atom_site_fract_{axis}", ())):  # nan and inf
            raise InputError("its coordinates or cell are not finite")
    for symbol in block.get("_atom_site_type_symbol", ()):
        letters = re.match(r"[A-Za-z]*", str(symbol))
        name = (letters[0] if letters else "").capitalize()
        _number(name or str(symbol))


def _is_loop(key: str, values: Any, name: str) -> bool:
    return key.startswith(name) and isinstance(values, list)


def _extxyz(text: str, limits: Limits) -> Understood:
    require("ase.io.extxyz", purpose="reading extended XYZ", extra="cpu")
    from ase.io.extxyz import key_val_str_to_dict

    lines = text.splitlines()
    n_atoms = int(lines[0])
    _counted(n_atoms, limits)
    facts: dict[str, Any] = dict(key_val_str_to_dict(lines[1])) if lines[1].strip() else {}
    if "Lattice" not in facts:
        raise InputError("it has no cell (Lattice)")
    _periodic(facts.pop("pbc", True))
    cell = _floats(facts.pop("Lattice"), 3, 3).T
    places, width = _places(str(facts.pop("Properties", "species:S:1:pos:R:3")))
    fields = [line.split(None, width) for line in lines[2 : 2 + n_atoms]]
    if len(fields) != n_atoms or any(len(one) < width for one in fields):
        raise InputError(f"a line of an atom has fewer than {width} columns")
    if "species" in places:
        species = [_number(one[places["species"]].capitalize()) for one in fields]
    else:
        species = [int(one[places["Z"]]) for one in fields]
    first = places["pos"]
    cart = _floats([one[first : first + 3] for one in fields], n_atoms, 3)
    name = next((facts.pop(key) for key in _ID_KEYS if key in facts), "")
    return Understood(str(name), cell, _fractional(cart, cell), np.array(species, np.int32), facts)


def _places(properties: str) -> tuple[dict[str, int], int]:
    """The first column of what matters, and how many columns there are."""
    fields = properties.split(":")
    places, width = {}, 0
    for name, kind, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        expected = {"species": ("S", 1), "Z": ("I", 1), "pos": ("R", 3)}.get(name)
        if expected is not None and expected != (kind, int(count)):
            raise InputError(f"its column {name} is {kind}:{count}, not {expected[0]}:{expected[1]}")
        places[name] = width
        width += int(count)
        if not 0 < int(count) <= 1000:
            raise InputError(f"its column {name[:20]} has {count[:20]} numbers")
    if "pos" not in places or not ({"species", "Z"} & set(places)):
        raise InputError("it has no column of positions (pos), or none of elements (species or Z)")
    return places, width


def _periodic(pbc: Any) -> None:
    if not np.all(pbc):
        raise InputError("it is not periodic in all three directions (pbc)")


def _fractional(cart: np.ndarray, cell: np.ndarray) -> np.ndarray:
    if not (np.isfinite(cell).all() and np.isfinite(cart).all()):
        raise InputError("its coordinates or cell are not finite")
    if not abs(np.linalg.det(cell)) > 0:
        raise InputError("its cell is flat")
    return np.linalg.solve(cell.T, cart.T).T


_COUNTS = re.compile(r"\s*\d+(\s+\d+)*\s*([#!].*)?$")


def _poscar(text: str, limits: Limits) -> Understood:
    """As VASP reads it; the elements must be named, above the counts or behind the coordinates."""
    lines = text.splitlines()
    if len(lines) < 7:
        raise InputError("it ends before its atoms")
    scale = _floats(lines[1].split()[:3], -1)
    cell = _floats([line.split()[:3] for line in lines[2:5]], 3, 3)
    start = next((k for k in range(5, min(len(lines), 60)) if _COUNTS.match(lines[k])), None)
    if start is None or not all(line.strip()[:1].isalpha() for line in lines[5:start]):
        raise InputError("no line says how many atoms there are of each element")
    names = [name for line in lines[5:start] for name in re.split(r"[#!]", line)[0].split()]
    counts: list[int] = []
    while start < len(lines) and _COUNTS.match(lines[start]) and (not counts or len(counts) < len(names)):
        counts += [int(count) for count in re.split(r"[#!]", lines[start])[0].split()]
        start += 1
    _counted(sum(counts), limits)
    if names and len(names) != len(counts):
        raise InputError(f"{len(names)} elements, but {len(counts)} counts")
    rest = [*lines[start:], "", ""]
    selective = rest[0].strip().lower().startswith("s")
    mode = rest[selective].strip().lower()
    fields = [line.split() for line in rest[selective + 1 :][: sum(counts)]]
    if len(fields) != sum(counts) or any(len(one) < 3 for one in fields):
        raise InputError(f"fewer than {sum(counts)} lines of three coordinates")
    symbols = [name for name, count in zip(names, counts, strict=False) for _ in range(count)]
    if not names:
        symbols = [one[-1] if one[-1][0].isalpha() and len(one[-1]) < 3 else "" for one in fields]
        if not all(symbols) or (set(symbols) <= {"T", "F"}):
            raise InputError("it does not name its elements (VASP 4); add a line of them above the counts")
    factors = np.full(3, (-scale[0] / abs(np.linalg.det(cell))) ** (1 / 3) if scale[0] < 0 else scale[0])
    factors = scale if len(scale) == 3 and (scale > 0).all() else factors
    cell = cell * factors
    places = _floats([one[:3] for one in fields], len(fields), 3)
    frac = _fractional(places * factors, cell) if mode[:1] in ("c", "k") else places
    species = [_number(re.split(r"[_/.]", symbol)[0]) for symbol in symbols]
    return Understood("", cell, frac, np.array(species, np.int32), {})


def _json(text: str, limits: Limits) -> Understood:
    """A structure of pymatgen, one inside of a computed entry, atoms of ASE, or a structure of OPTIMADE.

    No class that it names is looked up.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise InputError("it is no structure, but another kind of JSON")
    if isinstance(found.get("attributes"), dict) and "species_at_sites" in found["attributes"]:
        return _optimade(found, limits)
    facts = _scalars(found)
    for key in ("data", "parameters", "key_value_pairs", "properties"):
        if isinstance(found.get(key), dict):
            facts = {**_scalars(found[key]), **facts}
    structure = found.get("structure", found)
    if not isinstance(structure, dict):
        raise InputError("its structure is no object")
    if structure is not found and isinstance(structure.get("properties"), dict):
        facts = {**_scalars(structure["properties"]), **facts}
    name = next((str(facts.pop(key)) for key in _ID_KEYS if facts.get(key) not in (None, "")), "")
    facts = {key: value for key, value in facts.items() if not key.startswith(("@", "_"))}
    if "sites" in structure and "lattice" in structure:
        cell, frac, species = _pymatgen(structure, limits)
    elif "numbers" in structure and "positions" in structure:
        cell, frac, species = _ase(structure, limits)
        facts = {key: value for key, value in facts.items() if key not in _ASE_KEYS}
    else:
        raise InputError("it is no structure: it has neither lattice and sites, nor numbers and positions")
    return Understood(name, cell, frac, species, facts)


_ASE_KEYS = ("unique_id", "ctime", "mtime", "user", "calculator", "pbc")


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}


def _pymatgen(structure: Mapping[str, Any], limits: Limits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lattice, sites = structure["lattice"], structure["sites"]
    _counted(len(sites), limits)
    _periodic(lattice.get("pbc", True))
    if "matrix" in lattice:
        cell = _floats(lattice["matrix"], 3, 3)
    else:
        lengths, angles = (
            [float(lattice[key]) for key in keys] for keys in (("a", "b", "c"), ("alpha", "beta", "gamma"))
        )
        cell = cells_from_parameters(np.array([lengths]), np.array([angles]))[0]
    species = []
    for site in sites:
        occupants = site["species"]
        if len(occupants) != 1 or not math.isclose(float(occupants[0].get("occu", 1.0)), 1.0, abs_tol=1e-8):
            raise InputError("its sites are partly occupied")
        species.append(_number(occupants[0]["element"]))
    if all("abc" in site for site in sites):
        frac = _floats([site["abc"] for site in sites], len(sites), 3)
    else:
        frac = _fractional(_floats([site["xyz"] for site in sites], len(sites), 3), cell)
    return cell, frac, np.array(species, np.int32)


def _ase(atoms: Mapping[str, Any], limits: Limits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, positions, vectors, pbc = (_numbers(atoms.get(key)) for key in ("numbers", "positions", "cell", "pbc"))
    _counted(len(numbers), limits)
    if not vectors:
        raise InputError("it has no cell")
    _periodic(bool(pbc) and pbc)
    cell = _floats(vectors, 3, 3)
    return cell, _fractional(_floats(positions, len(numbers), 3), cell), np.array(numbers, np.int32).reshape(-1)


def _optimade(entry: Mapping[str, Any], limits: Limits) -> Understood:
    """An entry of OPTIMADE; of its attributes stay the provider's own, by their names without the prefix of Druse."""
    attributes = entry["attributes"]
    names, vectors = attributes["species_at_sites"], attributes["lattice_vectors"]
    _counted(len(names), limits)
    if list(attributes.get("dimension_types") or [1, 1, 1]) != [1, 1, 1]:
        raise InputError("it is not periodic in all three directions (dimension_types)")
    numbers = {}
    for one in attributes["species"]:
        shares = zip(one["chemical_symbols"], one["concentration"], strict=True)
        occupants = [(symbol, float(share)) for symbol, share in shares if share]
        if len(occupants) != 1 or not math.isclose(occupants[0][1], 1.0, abs_tol=1e-8):
            raise InputError("its sites are partly occupied")
        numbers[one["name"]] = occupants[0][0]
    species = np.array([_number(numbers[name]) for name in names], np.int32)
    cell = _floats(vectors, 3, 3)
    frac = _fractional(_floats(attributes["cartesian_site_positions"], len(names), 3), cell)
    own = {key.removeprefix(PREFIX).lstrip("_"): value for key, value in attributes.items() if key.startswith("_")}
    return Understood(str(entry.get("id", "")), cell, frac, species, _scalars(own))


def _numbers(value: Any) -> Sequence[Any]:
    """An array as ASE writes it: a list, or an object with its shape, type and numbers."""
    if isinstance(value, dict):
        value = value.get("array", value)
    if isinstance(value, dict):
        value = value["__ndarray__"][2]
    return value if isinstance(value, list) else []


_READERS = {"cif": _cif, "extxyz": _extxyz, "poscar": _poscar, "json": _json}
