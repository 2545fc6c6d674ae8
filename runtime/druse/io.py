"""Crystals for others: ASE and pymatgen objects, and files of extended XYZ, CIF and CSV."""

import csv
import itertools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._dependencies import require
from druse._files import whole_file
from druse.crystals import Crystals
from druse.elements import SYMBOLS, formula_of
from druse.errors import InputError
from druse.lattice import parameters_from_cells, volumes

__all__ = ["FORMATS", "to_ase", "to_pymatgen", "write_cif", "write_crystals", "write_csv", "write_extxyz"]

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


def write_extxyz(path: Path, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """One file of extended XYZ, as ASE writes it; ``facts`` stand in the comment lines, ``stress`` as ``stress_``."""
    _write_extxyz(path, named(crystals, facts))


_EXTXYZ_OWN = ("Lattice", "Properties", "pbc", "virial", "stress", "dipole", "dielectric_tensor", "polarization")
"""Names that mean something else than one number or text to ASE, which would not read the file again."""


def _write_extxyz(path: Path, crystals: Iterator[Named]) -> None:
    require("ase.io.extxyz", purpose="writing extended XYZ", extra="cpu")
    from ase.io.extxyz import write_xyz

    with whole_file(path, "w") as file:
        for one in crystals:
            info = {f"{name}_" if name in ("", *_EXTXYZ_OWN) else name: value for name, value in one.info.items()}
            write_xyz(file, _atoms(one._replace(info=info)), columns=["symbols", "positions"])


def write_cif(path: Path, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """CIF in space group P 1: a ``.zip`` of one file for each crystal, or one file with a block for each.

    Blocks are named by ``id`` in ``facts``, else by their place; other facts do not fit into CIF.
    """
    _write_cif(path, named(crystals, facts))


def _write_cif(path: Path, crystals: Iterator[Named]) -> None:
    if path.suffix.lower() != ".zip":
        with whole_file(path, "w", encoding="ascii") as file:
            file.writelines(cif_text(one.crystal, one.name) for one in crystals)
        return
    with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in crystals:
            member = zipfile.ZipInfo(f"{one.name}.cif")  # without a date: the same bytes each time
            member.external_attr = 0o644 << 16
            archive.writestr(member, cif_text(one.crystal, one.name), zipfile.ZIP_DEFLATED)


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


def write_csv(path: Path, crystals: Iterable[Crystals], facts: Facts | None = None) -> None:
    """A table with a row for each crystal: its facts, formula, atom count, and CIF, as MP-20 has it."""
    _write_csv(path, named(crystals, facts))


def _write_csv(path: Path, crystals: Iterator[Named]) -> None:
    with whole_file(path, "w", newline="") as file:
        writer: Any = None
        for one in crystals:
            species = one.crystal.species
            row = {"formula": formula_of(species), "n_atoms": len(species), "cif": cif_text(one.crystal, one.name)}
            row = {**one.info, **row}
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)


FORMATS: dict[str, Callable[[Path, Iterator[Named]], None]] = {
    "extxyz": _write_extxyz,
    "cif": _write_cif,
    "csv": _write_csv,
}


def write_crystals(
    path: Any,
    crystals: Iterable[Crystals],
    facts: Facts | None = None,
    *,
    format: str = "",  # noqa: A002
) -> None:
    """A file of crystals that appears whole or not at all.

    Args:
        path: of the file.
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
        raise InputError(f"`format` must be one of {', '.join(FORMATS)}, got {kind or place.name!r}")
    FORMATS[kind](place, crystals)


def text_of(value: Any) -> Any:
    """A value from an array as what files hold: numbers of Python, with single precision in its own digits."""
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value
