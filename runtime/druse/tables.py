"""A data set, understood: crystals in reduced cells, their ids and properties, and what was left out and why."""

import dataclasses
import hashlib
import itertools
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._dependencies import require
from druse._files import whole_file
from druse._processes import Processes
from druse._rows import Row, read_rows
from druse._structures import understand_row
from druse.conditions import CRYSTAL_SYSTEMS
from druse.crystals import Crystals
from druse.errors import InputError
from druse.lattice import cells_from_parameters, parameters_from_cells, volumes, wrap

__all__ = ["ALIASES", "CrystalTable", "Rejected", "default_cache", "load_table"]

_FORMAT = 3  # of the cache; a change of what is computed must change it
_CHUNK = 32

ALIASES = {
    "delta_e": "formation_energy_per_atom",
    "formation_energy": "formation_energy_per_atom",
    "stability": "e_above_hull",
    "energy_above_hull": "e_above_hull",
    "bandgap": "band_gap",
    "spacegroup.number": "spacegroup",
    "space_group_number": "spacegroup",
}
"""Columns of other data bases (OQMD's first) that mean what Druse calls otherwise, in the same unit.

Where a table has both names, or several aliases of one, the first that holds numbers counts, Druse's own before all."""


class Rejected(NamedTuple):
    """A row that was left out."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class CrystalTable:
    """Crystals with properties.

    Attributes:
        crystals: in Niggli-reduced cells where asked for, c along z.
        ids: of each crystal.
        properties: by name, ``[crystals]`` float64; NaN where a row has none. ``n_atom`` and, with a space group,
            ``spacegroup`` and ``crystal_system`` (codes of `druse.conditions.CRYSTAL_SYSTEMS`) are always there.
        rejected: the rows left out, with reasons.
    """

    crystals: Crystals
    ids: tuple[str, ...]
    properties: dict[str, np.ndarray]
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, chosen: Any) -> "CrystalTable":
        """The crystals of a mask or of indices, in that order."""
        indices = np.arange(len(self))[np.asarray(chosen)]
        return CrystalTable(
            self.crystals.take(indices),
            tuple(self.ids[b] for b in indices),
            {name: values[indices] for name, values in self.properties.items()},
            self.rejected,
        )

    def filtered(
        self,
        *,
        min_density: float | None = 0.01,
        max_hull: float | None = 0.5,
        max_gap: float | None = 8.0,
        max_atoms: int | None = 20,
    ) -> "CrystalTable":
        """The paper's filters (section 3). A row without a property passes its filter, and None filters nothing.

        Args:
            min_density: atoms per cubic Angstrom, exceeded.
            max_hull: energy above hull in eV/atom, not reached.
            max_gap: band gap in eV, not reached.
            max_atoms: in the cell.
        """
        n_atoms = self.crystals.n_atoms
        keep = np.ones(len(self), bool)
        if min_density is not None:
            keep &= n_atoms / volumes(self.crystals.cells) > min_density
        if max_atoms is not None:
            keep &= n_atoms <= max_atoms
        for name, limit in (("e_above_hull", max_hull), ("band_gap", max_gap)):
            if limit is not None and name in self.properties:
                keep &= ~(self.properties[name] >= limit)
        return self.select(keep)


def default_cache() -> Path:
    """The folder for tables below the user's cache folder, wherever the system has that.

    Raises:
        MissingDependencyError: platformdirs is not installed.
    """
    require("platformdirs", purpose="finding the cache folder", extra="evaluate")
    import platformdirs

    return platformdirs.user_cache_path("druse") / "tables"


def load_table(
    path: Any,
    *,
    niggli: bool = True,
    n_jobs: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CrystalTable:
    """Read a data set: a table with a column of CIF, or any other file or folder of structures that are text.

    These are CSV and Parquet, extended XYZ, CIF, POSCAR, JSON of pymatgen or ASE, and zip archives and folders of CIF
    and POSCAR. A row that cannot be understood is left out and reported in ``rejected``; the run goes on.

    Args:
        path: file or folder.
        niggli: describe each crystal by its Niggli-reduced cell.
        n_jobs: processes; 0 for every core.
        cache: folder to keep the result in, under the hash of the data and the options; None keeps nothing.
        progress: called with rows done and rows in all.

    Raises:
        InputError: the file is missing or of an unknown kind, or not a single row could be understood.
        MissingDependencyError: pymatgen is not installed.
    """
    rows = list(read_rows(Path(path)))
    stored = None if cache is None else cache / f"{_fingerprint(rows, niggli)}.npz"
    if stored is not None and (table := _read_cache(stored)) is not None:
        return table
    require("pymatgen.core", "ase", purpose="reading structures", extra="evaluate")
    found = []
    for result in _understand_all(rows, niggli, n_jobs):
        found.append(result)
        if progress is not None and (len(found) % _CHUNK == 0 or len(found) == len(rows)):
            progress(len(found), len(rows))
    table = _assemble(rows, found)
    if stored is not None:
        _write_cache(stored, table)
    return table


def _understand_all(rows: list[Row], niggli: bool, n_jobs: int) -> Iterator[Any]:
    chunks = [(rows[k : k + _CHUNK], niggli) for k in range(0, len(rows), _CHUNK)]
    with Processes(1 if len(chunks) <= 1 else n_jobs, purpose="reading structures") as processes:
        yield from itertools.chain.from_iterable(processes.map(_understand_chunk, chunks))


def _understand_chunk(work: tuple[list[Row], bool]) -> list[Any]:
    return [_understand(row, work[1]) for row in work[0]]


def _understand(row: Row, niggli: bool) -> Any:
    """An `Understood` in standard orientation, or why there is none, as text."""
    found = understand_row(row)
    if isinstance(found, str):
        return found
    cell, frac = found.cell, found.frac
    try:
        if niggli:
            from pymatgen.core import Structure

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reduced = Structure(cell, found.species.tolist(), frac).get_reduced_structure()
            cell, frac = reduced.lattice.matrix, reduced.frac_coords
        lengths, angles = parameters_from_cells(cell[None])
        return found._replace(cell=cells_from_parameters(lengths, angles)[0], frac=wrap(frac))
    except Exception as error:
        text = str(error).strip().splitlines()
        return f"{type(error).__name__}: {text[0] if text else 'no reason given'}"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _properties(columns: Sequence[Mapping[str, Any]], n_atoms: np.ndarray) -> dict[str, np.ndarray]:
    names = {name: None for row in columns for name in row}
    properties = {name: np.array([_number(row.get(name)) for row in columns]) for name in names}
    properties = {name: values for name, values in properties.items() if np.isfinite(values).any()}
    for alias, name in ALIASES.items():
        if alias in properties:
            values = properties.pop(alias)
            properties.setdefault(name, values)
    if "spacegroup" in properties:
        properties["crystal_system"] = _crystal_systems(properties["spacegroup"])
    properties["n_atom"] = n_atoms.astype(np.float64)
    return properties


def _crystal_systems(space_groups: np.ndarray) -> np.ndarray:
    first = np.array([1, 3, 16, 75, 143, 168, 195])
    systems = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
    codes = np.array([CRYSTAL_SYSTEMS.index(system) for system in systems], np.float64)
    known = (space_groups >= 1) & (space_groups <= 230)
    place = np.searchsorted(first, np.where(known, space_groups, 1), side="right") - 1
    return np.where(known, codes[place], np.nan)


def _assemble(rows: list[Row], found: list[Any]) -> CrystalTable:
    good = [k for k, result in enumerate(found) if not isinstance(result, str)]
    rejected = tuple(
        Rejected(row.id, result) for row, result in zip(rows, found, strict=True) if isinstance(result, str)
    )
    if not good:
        first = f"; the first, {rejected[0].id}: {rejected[0].reason}" if rejected else ""
        raise InputError(f"none of {len(rows)} rows could be read{first}")
    sizes = np.array([len(found[k].species) for k in good])
    crystals = Crystals(
        np.concatenate([found[k].frac for k in good]),
        np.stack([found[k].cell for k in good]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        np.concatenate([found[k].species for k in good]),
    )
    properties = _properties([{**found[k].facts, **rows[k].columns} for k in good], sizes)
    return CrystalTable(crystals, tuple(found[k].id or rows[k].id for k in good), properties, rejected)


def _fingerprint(rows: list[Row], niggli: bool) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {niggli}".encode())
    for row in rows:
        digest.update(json.dumps([row.id, row.text, row.format, row.columns], default=str).encode())
    return digest.hexdigest()[:32]


def _write_cache(path: Path, table: CrystalTable) -> None:
    arrays = {f"property/{name}": values for name, values in table.properties.items()}
    with whole_file(path, "wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            frac=table.crystals.frac,
            cells=table.crystals.cells,
            offsets=table.crystals.offsets,
            species=table.crystals.species,
            ids=np.array(table.ids),
            rejected=np.array([tuple(r) for r in table.rejected] or np.zeros((0, 2), "<U1")),
            **arrays,
        )


def _read_cache(path: Path) -> CrystalTable | None:
    """The table that was kept; None where there is none, or a disk or a person has broken it."""
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            properties = {key.removeprefix("property/"): file[key] for key in file.files if key.startswith("property/")}
            return CrystalTable(
                Crystals(file["frac"], file["cells"], file["offsets"], file["species"]),
                tuple(map(str, file["ids"])),
                properties,
                tuple(Rejected(str(a), str(b)) for a, b in file["rejected"]),
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
