"""Crystals for others: ASE and pymatgen objects, and files of extended XYZ, CIF, POSCAR, ASE, OPTIMADE and CSV."""

import csv
import itertools
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from druse._dependencies import require
from druse._files import in_a_table, whole_file, whole_folder
from druse._optimade import Properties, header, structure
from druse.crystals import Crystals
from druse.elements import SYMBOLS, formula_of
from druse.errors import InputError
from druse.lattice import parameters_from_cells, volumes, wrap

__all__ = [
    "FORMATS",
    "to_ase",
    "to_pymatgen",
    "write_ase_db",
    "write_cif",
    "write_crystals",
    "write_csv",
    "write_extxyz",
    "write_optimade",
    "write_poscar",
]

Facts = Sequence[Mapping[str, Any]]
"""For each crystal what there is to say of it, by name: text, numbers and truth values."""


class Named(NamedTuple):
    """One crystal on its way into a file: a batch of one, what is said of it, and its name."""

    crystal: Crystals
    info: Mapping[str, Any]
    name: str


def named(crystals: Iterable[Crystals], facts: Iterable[Mapping[str, Any]] | None = None) -> Iterator[Named]:
    """Single crystals with their facts; a name is the ``id`` in the facts, else the place."""
    infos = itertools.repeat({}) if facts is None else facts
    for place, (one, info) in enumerate(zip(crystals, infos, strict=facts is not None)):
        identity = info.get("id", place)
        yield Named(one, info, f"{identity:06d}" if isinstance(identity, int) else plain_name(str(identity)))


def plain_name(text: str) -> str:
    """A name as blocks of CIF and files in an archive have it."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text)


def _atoms(one: Named) -> Any:
    from ase import Atoms

    crystal = one.crystal
    return Atoms(
        numbers=crystal.species, cell=crystal.cells[0], scaled_positions=crystal.frac, pbc=True, info=dict(one.info)
    )


def to_ase(crystals: Iterable[Crystals], facts: Facts | None = None) -> list[Any]:
    """`ase.Atoms` of each crystal, with ``facts`` in ``atoms.info``.

    Raises:
        MissingDependencyError: ASE is not installed.
    """
    require("ase", purpose="making ase.Atoms", extra="cpu")
    return [_atoms(one) for one in named(crystals, facts)]


def to_pymatgen(crystals: Iterable[Crystals], facts: Facts | None = None) -> list[Any]:
    """`pymatgen.core.Structure` of each crystal, with ``facts`` in ``structure.properties``.

    Raises:
        MissingDependencyError: pymatgen is not installed.
    """
    require("pymatgen.core", purpose="making pymatgen structures", extra="screen")
    from pymatgen.core import Structure

    return [
        Structure(one.cells[0], one.species.tolist(), one.frac, properties=dict(info))
        for one, info, _ in named(crystals, facts)
    ]


def write_extxyz(path: Any, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """One file of extended XYZ, as ASE writes it; ``facts`` stand in the comment lines, ``stress`` as ``stress_``."""
    _write_extxyz(Path(path), named(crystals, facts))


_EXTXYZ_OWN = ("Lattice", "Properties", "pbc", "virial", "stress", "dipole", "dielectric_tensor", "polarization")
"""Names that mean something else than one number or text to ASE, which would not read the file again."""


def _write_extxyz(path: Path, crystals: Iterator[Named]) -> None:
    require("ase.io.extxyz", purpose="writing extended XYZ", extra="cpu")
    from ase.io.extxyz import write_xyz

    with whole_file(path, "w") as file:
        for one in crystals:
            info = {f"{name}_" if name in ("", *_EXTXYZ_OWN) else name: value for name, value in one.info.items()}
            write_xyz(file, _atoms(one._replace(info=info)), columns=["symbols", "positions"])


def write_cif(path: Any, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """CIF in space group P 1: a ``.zip`` of one file for each crystal, or one file with a block for each.

    Blocks are named by ``id`` in ``facts``, else by their place; other facts do not fit into CIF.
    """
    _write_cif(Path(path), named(crystals, facts))


def _write_cif(path: Path, crystals: Iterator[Named]) -> None:
    if path.suffix.lower() != ".zip":
        with whole_file(path, "w", encoding="ascii") as file:
            file.writelines(cif_text(one.crystal, one.name) for one in crystals)
        return
    _write_zip(path, ((f"{name}.cif", cif_text(one.crystal, one.name)) for one, name in _distinct(crystals)))


def _write_zip(path: Path, members: Iterator[tuple[str, str]]) -> None:
    with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members:
            member = zipfile.ZipInfo(name)  # without a date: the same bytes each time
            member.external_attr = 0o644 << 16
            archive.writestr(member, text, zipfile.ZIP_DEFLATED)


def _distinct(crystals: Iterator[Named]) -> Iterator[tuple[Named, str]]:
    """Each with a name that no other has, short enough for a file: the second ``a`` is ``a-2``."""
    taken: set[str] = set()
    for one in crystals:
        stem = one.name[:200]
        names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield one, name


def cif_text(crystal: Crystals, name: str) -> str:
    """A batch of one as a block of CIF.

    Not by ASE, which writes five digits of a coordinate and so moves atoms by 1e-4 Angstrom, nor by pymatgen, which is
    too much to install for this alone.
    """
    if not crystal.species.all():
        raise InputError("an atom of no element (number 0) cannot be written as CIF")
    lengths, angles = (values[0] for values in parameters_from_cells(crystal.cells))
    symbols = [SYMBOLS[z - 1] for z in crystal.species]
    counts: dict[str, int] = {}
    sites = []
    for symbol, place in zip(symbols, np.round(crystal.frac, 8) % 1.0, strict=True):
        counts[symbol] = counts.get(symbol, 0) + 1
        sites.append(f"{symbol} {symbol}{counts[symbol]} {place[0]:.8f} {place[1]:.8f} {place[2]:.8f} 1.0")
    total = " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))
    cell = [f"_cell_length_{axis} {value:.8f}" for axis, value in zip("abc", lengths, strict=True)]
    cell += [f"_cell_angle_{axis} {value:.8f}" for axis, value in zip(("alpha", "beta", "gamma"), angles, strict=True)]
    return "\n".join(
        [
            f"data_{name}",
            f"_chemical_formula_sum '{total}'",
            *cell,
            f"_cell_volume {volumes(crystal.cells)[0]:.8f}",
            "_space_group_name_H-M_alt 'P 1'",
            "_space_group_IT_number 1",
            "loop_",
            "_space_group_symop_operation_xyz",
            "'x, y, z'",
            "loop_",
            *(f"_atom_site_{key}" for key in ("type_symbol", "label", "fract_x", "fract_y", "fract_z", "occupancy")),
            *sites,
            "",
            "",
        ]
    )


def write_csv(path: Any, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """A table with a row for each crystal: its facts, formula, atom count, and CIF, as MP-20 has it.

    A fact that is said of some only is an empty field for the others.
    """
    _write_csv(Path(path), named(crystals, facts))


def _write_csv(path: Path, crystals: Iterator[Named]) -> None:
    columns: dict[str, None] = {}
    with whole_file(path, "w", newline="") as file, tempfile.TemporaryFile("w+b") as body:
        for one in crystals:
            species = one.crystal.species
            row = {"formula": formula_of(species), "n_atoms": len(species), "cif": cif_text(one.crystal, one.name)}
            row = {**one.info, **row}
            columns |= dict.fromkeys(row)
            cells = [in_a_table(row.get(name, "")) for name in columns]
            body.write(msgspec.json.encode(["" if cell is None else str(cell) for cell in cells]) + b"\n")
        body.seek(0)
        whole = csv.writer(file, lineterminator="\n")
        if columns:
            whole.writerow(map(in_a_table, columns))
        for line in body:  # not as CSV, whose reader takes no field of more than 131,072 characters
            cells = msgspec.json.decode(line, type=list[str])
            whole.writerow([*cells, *[""] * (len(columns) - len(cells))])


def write_poscar(path: Any, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """A ``.zip``, or a new folder, with a file ``NAME.vasp`` for each crystal: VASP's format has one a file.

    Raises:
        InputError: the folder exists and is not empty.
    """
    _write_poscar(Path(path), named(crystals, facts))


def _write_poscar(path: Path, crystals: Iterator[Named]) -> None:
    members = ((f"{name}.vasp", poscar_text(one.crystal, one.name)) for one, name in _distinct(crystals))
    if path.suffix.lower() == ".zip":
        _write_zip(path, members)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is there already; give the name of a new folder for POSCAR files, or of a .zip")
    with whole_folder(path) as part:
        for name, text in members:
            (part / name).write_text(text, encoding="ascii")


def poscar_text(crystal: Crystals, title: str) -> str:
    """A batch of one as POSCAR, atoms of an element together, elements by number.

    The vectors and coordinates of a left-handed cell, which VASP refuses, are negated: no atom moves.
    """
    if not crystal.species.all():
        raise InputError("an atom of no element (number 0) cannot be written as POSCAR")
    sign = -1.0 if np.linalg.det(crystal.cells[0]) < 0 else 1.0
    numbers, counts = np.unique(crystal.species, return_counts=True)
    rows = [*(sign * crystal.cells[0]), *wrap(sign * crystal.frac[np.argsort(crystal.species, kind="stable")])]
    places = [" ".join(f"{value:19.14f}" for value in row) for row in rows]
    elements = [" ".join(SYMBOLS[z - 1] for z in numbers), " ".join(map(str, counts)), "Direct"]
    return "\n".join([title, "1.0", *places[:3], *elements, *places[3:], ""])


def write_ase_db(path: Any, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """A data base of ASE (SQLite); ``facts`` are key-value pairs, as far as it takes them.

    An ``energy`` in them is the row's. Keys become words, those that ASE keeps for itself (``id``, ``fmax``) begin with
    ``druse_``, and a text that looks like a number is one. Rows have a time and a random name: bytes differ each time.
    """
    _write_ase_db(Path(path), named(crystals, facts))


def _write_ase_db(path: Path, crystals: Iterator[Named]) -> None:
    require("ase.db", purpose="writing a data base of ASE", extra="cpu")
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
        made = Path(folder) / "rows.db"
        with connect(made, type="db", use_lock_file=False) as base:
            for one in crystals:
                crystal, energy = one.crystal, one.info.get("energy")
                atoms = Atoms(crystal.species, cell=crystal.cells[0], positions=crystal.cart, pbc=True)
                if isinstance(energy, float) and math.isfinite(energy):
                    atoms.calc = SinglePointCalculator(atoms, energy=energy)
                base.write(atoms, key_value_pairs=_pairs(one.info))
        with made.open("rb") as source, whole_file(path, "wb") as file:
            shutil.copyfileobj(source, file)


def _pairs(info: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as key-value pairs of ASE, which refuses some names and some texts."""
    from ase.db.core import reserved_keys

    found: dict[str, Any] = {}
    for name, value in info.items():
        key = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        own = key in reserved_keys or not key[0].isalpha() or key in SYMBOLS
        plain = _number(value) if isinstance(value, str) else value
        if name != "energy" and plain != "" and not (isinstance(plain, float) and not math.isfinite(plain)):
            found.setdefault(f"druse_{key}" if own else key, plain)
    return found


def _number(text: str) -> Any:
    """A text as the number or truth value that ASE would take it for, else as it is."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_optimade(path: Any, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """JSON Lines of OPTIMADE: a header, a description, a structure a line; ``facts`` are its ``_druse_...``."""
    _write_optimade(Path(path), named(crystals, facts))


def _write_optimade(path: Path, crystals: Iterator[Named]) -> None:
    properties = Properties()
    with whole_file(path, "w", encoding="utf-8") as file, tempfile.TemporaryFile("w+", encoding="utf-8") as body:
        for one, name in _distinct(crystals):
            said = {key: value for key, value in one.info.items() if key != "id"}
            body.write(structure(one.crystal, name, properties(said)))
        body.seek(0)
        file.write(header(properties))  # which names there are is known by now only
        shutil.copyfileobj(body, file)


FORMATS: dict[str, Callable[[Path, Iterator[Named]], None]] = {
    "extxyz": _write_extxyz,
    "cif": _write_cif,
    "poscar": _write_poscar,
    "db": _write_ase_db,
    "jsonl": _write_optimade,
    "csv": _write_csv,
}
"""Extended XYZ, CIF, POSCAR, data base of ASE, JSON Lines of OPTIMADE, and a table with CIF, by name."""


def write_crystals(
    path: Any,
    crystals: Iterable[Crystals],
    facts: Facts | None = None,
    *,
    format: str = "",  # noqa: A002
) -> None:
    """A file of crystals, or a folder of POSCARs, that appears whole or not at all.

    Args:
        path: of it.
        crystals: a batch, or single ones.
        facts: of each crystal.
        format: one of `FORMATS`; empty: by the file's name.

    Raises:
        InputError: no format has this name.
    """
    write_named(path, named(crystals, facts), format)


def write_named(path: Any, crystals: Iterator[Named], format: str = "") -> None:  # noqa: A002
    """As `write_crystals`, of crystals that come one by one and need not be in memory together."""
    place = Path(path)
    kind = format or {".xyz": "extxyz", ".zip": "cif"}.get(place.suffix.lower(), place.suffix.lower().lstrip("."))
    if kind not in FORMATS:
        told = repr(kind) if kind else f"{place.name!r}, a name that ends with none of them"
        raise InputError(f"`format` must be one of {', '.join(FORMATS)}, got {told}")
    FORMATS[kind](place, crystals)


def text_of(value: Any) -> Any:
    """A value from an array as what files hold: numbers of Python, with single precision in its own digits."""
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value
