"""Files of relaxed crystals: pieces that hold all that is known, and what other programs read."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from druse._columns import Ragged, read_columns, read_facts, write_columns
from druse._files import whole_file
from druse._ranked import grouped_columns
from druse._relaxing import Relaxed
from druse.candidates import Entries
from druse.crystals import Crystals
from druse.errors import InputError
from druse.io import cif_text, named

CHANGES = ("delta_a", "delta_b", "delta_c", "delta_alpha", "delta_beta", "delta_gamma")
UNITS = {
    "energy": "eV", "energy_per_atom": "eV/atom", "fmax": "eV/Angstrom", **dict.fromkeys(CHANGES[:3], "Angstrom"),
    **dict.fromkeys(CHANGES[3:], "degrees"), "volume_change": "relative", "rmsd": "cube root of the volume of an atom",
    "rmsd_angstrom": "Angstrom",
}  # fmt: skip

_ENTRIES = "entries"


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A finished piece: relaxed entries, forces ``[atoms, 3]`` and stresses ``[entries, 3, 3]``."""

    entries: Entries
    forces: np.ndarray
    stress: np.ndarray


def write_part(path: Path, entries: Entries, found: Sequence[Relaxed]) -> None:
    """A piece, which appears whole or not at all.

    Args:
        path: of the file.
        entries: as they came.
        found: for each what became of it.
    """
    crystals = Crystals.concatenate(one.crystal for one in found)
    columns: dict[str, Any] = {
        "id": np.array(entries.ids, str),
        "file": np.array(entries.files, str),
        "failure": np.array([one.failure for one in found], str),
        "cell": crystals.cells.reshape(-1, 9),
        "species": Ragged(crystals.species, crystals.offsets),
        "frac": Ragged(crystals.frac.reshape(-1), 3 * crystals.offsets),
        "forces": Ragged(np.concatenate([one.forces for one in found]).reshape(-1), 3 * crystals.offsets),
        "stress": np.array([one.stress.reshape(9) for one in found]).reshape(-1, 9),
        **{f"column_{name}": column for name, column in {**entries.columns, **_columns(found)}.items()},
    }
    write_columns(path, columns, {_ENTRIES: digest_of(entries)})


def check_part(path: Path, entries: Entries, advice: str) -> None:
    """Whether a piece was made from these entries.

    Raises:
        InputError: it was not, or it is damaged; ``advice`` says what to do then.
    """
    if read_facts(path, advice).get(_ENTRIES) != digest_of(entries):
        raise InputError(f"{path} is of other crystals than the sources hold now; give another folder")


def read_part(path: Path, advice: str) -> Part:
    """What `write_part` wrote.

    Raises:
        InputError: it is damaged, or another file; ``advice`` says what to do then.
    """
    columns = read_columns(path, advice)
    try:
        species, frac, forces = columns["species"], columns["frac"], columns["forces"]
        entries = Entries(
            0,
            tuple(map(str, columns["file"])),
            tuple(map(str, columns["id"])),
            tuple(map(str, columns["failure"])),
            Crystals(frac.values.reshape(-1, 3), columns["cell"].reshape(-1, 3, 3), species.offsets, species.values),
            grouped_columns(columns, "column_"),
        )
        if not {"energy", "converged", *CHANGES} <= set(entries.columns):
            raise ValueError("it lacks columns")  # noqa: TRY301
        return Part(entries, forces.values.reshape(-1, 3), columns["stress"].reshape(-1, 3, 3))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no piece of a relaxation ({error}); {advice}") from error


def digest_of(entries: Entries) -> str:
    """Of everything in entries that a relaxation may depend on, or passes on."""
    digest = hashlib.sha256(repr((entries.files, entries.ids, entries.failures)).encode())
    crystals = entries.crystals
    for array in (crystals.offsets, crystals.species, crystals.cells, crystals.frac):
        digest.update(np.ascontiguousarray(array).tobytes())
    for name, column in sorted(entries.columns.items()):
        digest.update(name.encode() + repr(column.tolist()).encode())
    return digest.hexdigest()


def _columns(found: Sequence[Relaxed]) -> dict[str, np.ndarray]:
    n_atoms = [len(one.crystal.species) for one in found]
    rows: Mapping[str, list[float]] = {
        "energy": [one.energy for one in found],
        "energy_per_atom": [one.energy / n if n else np.nan for one, n in zip(found, n_atoms, strict=True)],
        "fmax": [one.fmax for one in found],
        "steps": [one.steps for one in found],
        "converged": [one.converged for one in found],
        **{name: [one.change.lengths[k] for one in found] for k, name in enumerate(CHANGES[:3])},
        **{name: [one.change.angles[k] for one in found] for k, name in enumerate(CHANGES[3:])},
        "volume_change": [one.change.volume for one in found],
        "rmsd": [one.change.rmsd for one in found],
        "rmsd_angstrom": [one.change.rmsd_angstrom for one in found],
        "seconds": [one.seconds for one in found],
    }
    return {name: np.array(values, np.float64) for name, values in rows.items()}


def _facts(entries: Entries, b: int) -> dict[str, Any]:
    columns = {name: column[b] for name, column in entries.columns.items() if name not in ("seconds", "energy")}
    return {
        "id": entries.ids[b],
        **{name: str(value) if isinstance(value, str) else float(value) for name, value in columns.items()},
    }


def write_relaxed_extxyz(path: Path, parts: Sequence[Part]) -> None:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.extxyz import write_xyz
    from ase.stress import full_3x3_to_voigt_6_stress

    with whole_file(path) as file:
        for part in parts:
            crystals, energy = part.entries.crystals, part.entries.columns["energy"]
            for b in np.flatnonzero(part.entries.ok).tolist():
                one = crystals[b]
                atoms = Atoms(one.species, cell=one.cells[0], scaled_positions=one.frac, pbc=True)
                atoms.info = _facts(part.entries, b)
                results = {"energy": energy[b], "forces": part.forces[crystals.offsets[b] : crystals.offsets[b + 1]]}
                if np.isfinite(part.stress[b]).all():
                    results["stress"] = full_3x3_to_voigt_6_stress(part.stress[b])
                atoms.calc = SinglePointCalculator(atoms, **results)
                write_xyz(file, atoms)


def write_relaxed_cif(path: Path, entries: Entries) -> None:
    good = entries.take(np.flatnonzero(entries.ok))
    with whole_file(path, "w", encoding="ascii") as file:
        for one in named(good.crystals, [{"id": name} for name in good.ids]):
            file.write(cif_text(one.crystal, one.name))
