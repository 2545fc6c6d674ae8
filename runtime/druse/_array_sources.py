"""Sources that hold numbers rather than text: ASE's data base, and the result files of CDVAE and Con-CDVAE."""

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._limits import Limits
from druse._torch_file import read_torch
from druse.errors import InputError
from druse.lattice import cells_from_parameters

__all__ = ["Arrays", "ase_arrays", "torch_arrays"]


class Arrays(NamedTuple):
    """Consecutive entries, not checked yet.

    Attributes:
        ids: of each entry its name.
        failures: why there is none; empty where there are numbers.
        cells: ``[entries, 3, 3]``.
        offsets: ``[entries + 1]``.
        frac: ``[atoms, 3]``.
        species: ``[atoms]``, any integers.
        columns: of each entry what is said of it.
    """

    ids: Sequence[str]
    failures: Sequence[str]
    cells: np.ndarray
    offsets: np.ndarray
    frac: np.ndarray
    species: np.ndarray
    columns: Sequence[Mapping[str, Any]]


_TENSORS = ("frac_coords", "num_atoms", "atom_types", "lengths", "angles")
_TRAJECTORIES = ("all_frac_coords_stack", "all_atom_types_stack")


def torch_arrays(path: Path, size: int, limits: Limits) -> Iterator[Arrays]:
    """The crystals of ``eval_gen.pt``, ``eval_recon.pt`` or ``eval_opt.pt``; one is named "evaluation.crystal".

    Raises:
        InputError: it is no such file, or refused.
    """
    tensors = read_torch(path, lambda name: name not in _TRAJECTORIES, limits=limits)
    if missing := [name for name in _TENSORS if name not in tensors]:
        raise InputError(f"{path.name} has no {', '.join(missing)}; it is no result of CDVAE or Con-CDVAE")
    flat = tensors["num_atoms"].ndim == 1
    found = {name: (value[None] if flat else value) for name, value in tensors.items()}
    counts, n_atoms = found["num_atoms"], found["atom_types"].shape[1:]
    n_evaluations, n_crystals = counts.shape if counts.ndim == 2 else (0, 0)
    shapes = {
        "num_atoms": (n_evaluations, n_crystals),
        "atom_types": (n_evaluations, *n_atoms[:1]),
        "frac_coords": (n_evaluations, *n_atoms[:1], 3),
        "lengths": (n_evaluations, n_crystals, 3),
        "angles": (n_evaluations, n_crystals, 3),
    }
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise InputError(
                f"{path.name}: {name} has shape {list(found[name].shape)}, not {list(shape)} as the others"
            )
    columns = {
        name: value
        for name, value in found.items()
        if name not in _TENSORS and value.shape == (n_evaluations, n_crystals)
    }
    for e in range(n_evaluations):
        if (counts[e] < 0).any() or counts[e].astype(object).sum() != n_atoms[0]:
            raise InputError(f"{path.name}: the numbers of atoms do not add up to the {n_atoms[0]:,} that are there")
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[e].astype(np.int64))])
        for first in range(0, n_crystals, size):
            rows = slice(first, min(first + size, n_crystals))
            atoms = slice(ends[rows.start], ends[rows.stop])
            cells, failures = _cells(found["lengths"][e, rows], found["angles"][e, rows])
            yield Arrays(
                [f"{e}.{b}" for b in range(rows.start, rows.stop)],
                failures,
                cells,
                ends[rows.start : rows.stop + 1] - ends[rows.start],
                found["frac_coords"][e, atoms].astype(np.float64),
                found["atom_types"][e, atoms],
                [
                    {name: float(value[e, b]) for name, value in columns.items()}
                    for b in range(rows.start, rows.stop)
                ],
            )  # fmt: skip


def _cells(lengths: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, list[str]]:
    cells, failures = np.ones((len(lengths), 3, 3)), [""] * len(lengths)
    for b in range(len(lengths)):
        try:
            cells[b] = cells_from_parameters(
                lengths[b : b + 1].astype(np.float64), angles[b : b + 1].astype(np.float64)
            )
        except InputError:
            failures[b] = f"no cell has the edges {_text(lengths[b])} Å and the angles {_text(angles[b])} degrees"
    return cells, failures


def _text(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)


_COLUMNS = "numbers, positions, cell, pbc, key_value_pairs, energy, free_energy, fmax, smax"
_FACTS = ("energy", "free_energy", "fmax", "smax")
_STEPS = 50_000_000
"""Instructions of SQLite for one row, which takes a hundred; a data base may hold ones that never end."""


def ase_arrays(path: Path, size: int, limits: Limits) -> Iterator[Arrays]:
    """The rows of ASE's data base in SQLite, in the order of their numbers; it is opened for reading only.

    Only numbers and the key-value pairs (JSON) are looked at: nothing in it is decoded to objects.

    Raises:
        InputError: it is no such data base.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.text)
            base.execute("PRAGMA trusted_schema = OFF")
            base.set_progress_handler(lambda: 1, _STEPS)
            kind = base.execute("SELECT type, sql FROM sqlite_master WHERE name = 'systems'").fetchone()
            if kind is None or kind[0] != "table" or not str(kind[1]).upper().startswith("CREATE TABLE"):
                raise InputError(f"{path.name} is no data base of ASE: it has no table of systems")
            columns = base.execute("SELECT name, upper(type), pk, hidden FROM pragma_table_xinfo('systems')").fetchall()
            if ("id", "INTEGER", 1, 0) not in columns:  # else each row is looked for in all of them
                raise InputError(f"{path.name} is no data base of ASE: its table has no id that is its key")
            if any(hidden for *_, hidden in columns):  # expressions, of which one step may take hours
                raise InputError(f"{path.name} is no data base of ASE: it has columns that are computed")
            last = -1
            while numbers := [
                row[0] for row in base.execute("SELECT id FROM systems WHERE id > ? ORDER BY id LIMIT ?", (last, size))
            ]:
                if not (numbers[0] > last and all(a < b for a, b in itertools.pairwise(numbers))):
                    raise InputError(f"{path.name} is broken: its rows come again and again")
                last = numbers[-1]
                yield _systems(base, numbers, limits)
    except sqlite3.Error as error:
        raise InputError(f"{path.name} is broken, or no data base of ASE: {error}") from error


def _systems(base: sqlite3.Connection, numbers: Sequence[int], limits: Limits) -> Arrays:
    failures, cells, fracs, species, columns = [], [], [], [], []
    for number in numbers:
        cell, frac, types, facts = np.eye(3), np.zeros((0, 3)), np.zeros(0, np.int64), {}
        failure = ""
        try:
            (found,) = base.execute(f"SELECT {_COLUMNS} FROM systems WHERE id = ?", (number,)).fetchall()  # noqa: S608
            cell, frac, types = _crystal(found, limits)
            facts = json.loads(found[4] or "{}")
            facts = facts if isinstance(facts, dict) else {}
            facts |= {name: value for name, value in zip(_FACTS, found[5:], strict=True) if value is not None}
        except (InputError, ValueError, TypeError, RecursionError, sqlite3.Error, np.linalg.LinAlgError) as error:
            failure = str(error)
        failures.append(failure)
        cells.append(cell)
        fracs.append(frac)
        species.append(types)
        columns.append(facts)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(types) for types in species])])
    return Arrays(
        [str(number) for number in numbers],
        failures,
        np.stack(cells),
        offsets,
        np.concatenate(fracs),
        np.concatenate(species),
        columns,
    )


def _crystal(row: Sequence[Any], limits: Limits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers, positions, cell, pbc = row[:4]
    if not all(isinstance(blob, bytes) for blob in (numbers, positions, cell)):
        raise InputError("its numbers, positions or cell are missing")
    types = np.frombuffer(numbers, "<i4").astype(np.int64)
    if len(types) > limits.atoms:
        raise InputError(f"{len(types):,} atoms, more than {limits.atoms}")
    cart, vectors = np.frombuffer(positions, "<f8").reshape(-1, 3), np.frombuffer(cell, "<f8").reshape(3, 3)
    if len(cart) != len(types):
        raise InputError(f"{len(cart)} positions of {len(types)} atoms")
    if pbc != 7:
        raise InputError("it is not periodic in all three directions (pbc)")
    if not np.isfinite(vectors).all() or not abs(np.linalg.det(vectors)) > 0:
        raise InputError("its cell is flat or not finite")
    return vectors, np.linalg.solve(vectors.T, cart.T).T, types
