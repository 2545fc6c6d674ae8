"""The files that VASP reads, as text: INCAR, KPOINTS and POSCAR of a relaxation as in appendix C of the paper.

==============  =======================================================  =============================
appendix C      VASP                                                     here
==============  =======================================================  =============================
cutoff          ``ENCUT``: 1.5 times the largest ``ENMAX``               `incar`
conjugate gr.   ``IBRION = 2``                                           `incar`
all free        ``ISIF = 3``: positions, shape and volume of the cell    `incar`
forces          ``EDIFFG = -0.001`` eV/Å, every atom's norm              `incar`
k-points        spacing 2π 0.03 /Å, as vaspkit counts them               `k_mesh`
==============  =======================================================  =============================
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from druse._arrays import Int64
from druse.crystals import Crystals
from druse.elements import SYMBOLS
from druse.errors import InputError
from druse.lattice import plane_spacings

Value = bool | int | float | str

BASE: dict[str, Value] = {
    "GGA": "PE",
    "PREC": "Accurate",
    "ALGO": "Normal",
    "LREAL": False,
    "LASPH": True,
    "EDIFF": 1e-7,
    "NELM": 200,
    "NELMIN": 4,
    "ISMEAR": 0,
    "SIGMA": 0.05,
    "IBRION": 2,
    "ISIF": 3,
    "EDIFFG": -0.001,
    "NSW": 300,
    "LWAVE": False,
    "LCHARG": False,
}
"""Tags that are the same for every structure; `docs/dft.md` has the reason of each."""

_MOMENT = 0.6  # Bohr magnetons, of an element that the Materials Project names no moment for


def k_mesh(cells: Any, kspacing: float) -> Int64[np.ndarray, "crystals 3"]:
    """Points along each reciprocal vector: |b_i| / (2π kspacing), rounded to the nearest, but 1 at least.

    So counts vaspkit (task 102) in its published source; halves go up, as Fortran's NINT has it. The mesh is centred on
    Gamma, which suits every lattice, hexagonal ones included.

    Args:
        cells: ``[crystals, 3, 3]`` in Angstrom.
        kspacing: in 2π/Angstrom: vaspkit's Kmesh-Resolved Value.
    """
    wanted = 1.0 / (plane_spacings(cells) * kspacing)
    return np.maximum(np.floor(wanted + 0.5 + 1e-9), 1).astype(np.int64)


def n_kpoints(mesh: Sequence[int]) -> int:
    """Points of a mesh centred on Gamma that time reversal leaves; symmetry of the crystal leaves fewer."""
    own_inverse = np.prod([2 if n % 2 == 0 else 1 for n in mesh])
    return int((np.prod(mesh) + own_inverse) // 2)


def ordered(crystal: Crystals) -> Crystals:
    """The crystal with the atoms of an element together, elements in the order of IUPAC's formulas.

    VASP wants right-handed cells: a left-handed one is written with its vectors and fractional coordinates negated,
    which moves no atom.
    """
    rank = _ranks()[crystal.species]
    order = np.argsort(rank, kind="stable")
    sign = -1.0 if np.linalg.det(crystal.cells[0]) < 0 else 1.0
    frac = sign * crystal.frac[order]
    return crystal.replace(frac=frac - np.floor(frac), cells=sign * crystal.cells + 0.0, species=crystal.species[order])


def primitive(crystal: Crystals) -> Crystals:
    """The same crystal in a primitive cell, found by pymatgen."""
    from druse._fingerprints import as_structure

    found = as_structure(crystal).get_primitive_structure()
    return Crystals(
        np.array(found.frac_coords),
        np.array(found.lattice.matrix)[None],
        np.array([0, len(found)]),
        np.array(found.atomic_numbers, np.int32),
    )


def elements_of(crystal: Crystals) -> tuple[list[str], list[int]]:
    """Symbols and counts of the elements of an `ordered` crystal, in its order."""
    numbers, first, counts = np.unique(crystal.species, return_index=True, return_counts=True)
    order = np.argsort(first)
    return [SYMBOLS[z - 1] for z in numbers[order]], counts[order].tolist()


def folder_name(number: int, width: int, crystal: Crystals) -> str:
    """``0007-LiFePO4``: sortable, unique by its number, letters and digits only."""
    symbols, counts = elements_of(crystal)
    factor = int(np.gcd.reduce(counts))
    formula = "".join(f"{s}{n // factor if n > factor else ''}" for s, n in zip(symbols, counts, strict=True))
    return f"{number:0{width}d}-{formula[:60]}"


def poscar(crystal: Crystals, title: str) -> str:
    """POSCAR of an `ordered` crystal, to the last digit of its coordinates."""
    symbols, counts = elements_of(crystal)
    rows = [*crystal.cells[0], None, *crystal.frac]
    numbers = [
        f"{' '.join(symbols)}\n{' '.join(map(str, counts))}\nDirect"
        if row is None
        else " ".join(f"{value:21.16f}" for value in row)
        for row in rows
    ]
    return "\n".join([title, "1.0", *numbers, ""])


def kpoints(mesh: Sequence[int], kspacing: float) -> str:
    """KPOINTS of a mesh centred on Gamma."""
    return f"spacing 2 pi {kspacing:g} / Angstrom\n0\nGamma\n{mesh[0]} {mesh[1]} {mesh[2]}\n0 0 0\n"


def incar(crystal: Crystals, title: str, encut: float, *, spin: str, extra: Mapping[str, str]) -> str:
    """INCAR of an `ordered` crystal.

    Args:
        crystal: one.
        title: becomes SYSTEM.
        encut: in eV.
        spin: ``mp``: polarised, with the starting moments of the Materials Project; ``none``: not.
        extra: tags that take the place of ours, or come after them.
    """
    tags: dict[str, Value] = {"SYSTEM": title, "ENCUT": encut, **BASE, "ISPIN": 1}
    if spin == "mp":
        known = moments()
        runs = zip(*elements_of(crystal), strict=True)
        tags |= {"ISPIN": 2, "MAGMOM": " ".join(f"{n}*{known.get(s, _MOMENT):g}" for s, n in runs)}
    return "".join(f"{name} = {_text(value)}\n" for name, value in {**tags, **extra}.items())


def checked_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a user, in capitals.

    Raises:
        InputError: a name that is none, or a value that would not stay on its line.
    """
    found = {}
    for name, value in tags.items():
        key, text = str(name).strip().upper(), _text(value).strip()
        if not (key.isidentifier() and key.isascii()):
            raise InputError(f"an INCAR tag must be a word such as NCORE, got {name!r}")
        if not text or not (text.isprintable() and text.isascii()) or set(text) & set(";#!\\"):
            raise InputError(f"the INCAR tag {key} must have a value of one line without ; # ! \\, got {text!r}")
        found[key] = text
    return found


@functools.cache
def moments() -> dict[str, float]:
    """Starting moments of elements in Bohr magnetons, as the Materials Project's relaxations have them."""
    from pymatgen.io.vasp.sets import MPRelaxSet

    return {name: float(value) for name, value in MPRelaxSet.CONFIG["INCAR"]["MAGMOM"].items() if name in SYMBOLS}


@functools.cache
def _ranks() -> np.ndarray:
    """Places of the elements in a formula, by atomic number."""
    from pymatgen.core import Element

    order = sorted(
        range(1, len(SYMBOLS) + 1), key=lambda z: (Element.from_Z(z).iupac_ordering if z <= 103 else 1000, z)
    )
    ranks = np.zeros(len(SYMBOLS) + 1, np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return ".TRUE." if value else ".FALSE."
    return f"{value:.10g}" if isinstance(value, float) else str(value)
