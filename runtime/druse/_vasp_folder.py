"""A folder of inputs for VASP: one folder a structure, the index, the array script; `druse.dft` shows it."""

import contextlib
import csv
import datetime as dt
import functools
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from druse._files import in_a_table, read_small, whole_file, whole_folder
from druse._folders import versions_of
from druse._potcars import Potcar, Potcars, Refusal, content
from druse._vasp_inputs import (
    checked_tags,
    elements_of,
    folder_name,
    incar,
    k_mesh,
    kpoints,
    n_kpoints,
    ordered,
    poscar,
    primitive,
)
from druse._vasprun import NUMBERS
from druse.candidates import Entries, read_entries, write_entries
from druse.crystals import Crystals
from druse.elements import SYMBOLS, formula_of
from druse.errors import InputError
from druse.validity import structural_faults

INPUTS = ("folder", "formula", "n_atoms", "encut", "enmax", "enmax_source", "k_mesh", "n_kpoints", "potcar_symbols")
"""Columns of the index."""

RESULTS = ("status", "formation_energy_per_atom_dft", *NUMBERS)
"""Columns of results."""

UNITS = {
    **dict.fromkeys(("encut", "enmax", "energy", "band_gap_dft"), "eV"),
    **dict.fromkeys(("energy_per_atom", "formation_energy_per_atom_dft"), "eV/atom"),
    **dict.fromkeys(("delta_a", "delta_b", "delta_c", "rmsd_angstrom"), "Angstrom"),
    **dict.fromkeys(("delta_alpha", "delta_beta", "delta_gamma"), "degrees"),
    "fmax": "eV/Angstrom",
    "volume_change": "relative",
    "rmsd": "cube root of the volume of an atom",
}
"""Of the columns that have one."""

FOLDER = re.compile(r"[0-9]{4,}-[A-Za-z0-9]+")
"""Names of the folders of structures."""

_TAKEN = {"id", "file", "failure", "cell", "species", "frac", *INPUTS, *RESULTS}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How structures are to be relaxed; the paper's appendix C where nothing else is said.

    Attributes:
        functional: the set of potentials, one of `FUNCTIONALS`; all are of PBE.
        encut_factor: ENCUT as a multiple of the largest ENMAX.
        kspacing: of k-points, in 2π/Angstrom.
        spin: ``mp`` (polarised, starting moments of the Materials Project) or ``none``.
        primitive: whether a primitive cell takes the place of the one given.
        symbols: of the potentials of some elements: ``{"Fe": "Fe"}``; the Materials Project's choice for the others.
        incar: further tags, or others in place of ours.
        command: that runs VASP, in array.sh.
    """

    functional: str = "PBE_64"
    encut_factor: float = 1.5
    kspacing: float = 0.03
    spin: str = "mp"
    primitive: bool = False
    symbols: dict[str, str] = {}
    incar: dict[str, str] = {}
    command: str = "srun vasp_std"

    def __post_init__(self) -> None:
        for name, low, high in (("encut_factor", 0.5, 5.0), ("kspacing", 0.001, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"`{name}` must be from {low:g} to {high:g}, got {getattr(self, name):g}")
        if self.spin not in ("mp", "none"):
            raise InputError(f"`spin` must be mp or none, got {self.spin!r}")
        if not self.command.strip() or not self.command.isprintable():
            raise InputError(f"`command` must be one line, such as 'srun vasp_std', got {self.command!r}")


class Written(NamedTuple):
    """What `write_vasp` did.

    Attributes:
        path: the folder.
        n: structures that have inputs.
        refused: those that have not, by their place, with the reason.
        new: False where the folder was there already, from the same request, and nothing was written.
    """

    path: Path
    n: int
    refused: dict[int, str]
    new: bool


def write_vasp(
    sources: Sequence[Any],
    out: Any,
    *,
    settings: Settings | None = None,
    potcars: Any = None,
    write_potcar: bool = False,
    limit: int | None = None,
    n_jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Make a folder of inputs, which appears whole or not at all.

    A structure that cannot be calculated is in the index with its reason; the others go on.

    Args:
        sources: see `druse.candidates.pieces`.
        out: folder to be made. One that is there already from the same request stays as it is.
        settings: see `Settings`.
        potcars: folder of POTCARs that ENMAX is read from; None: pymatgen's own setting, then the table.
        write_potcar: whether the user's POTCARs are joined to a POTCAR in each folder.
        limit: at most so many structures, the first ones.
        n_jobs: processes that read structures; 0 for every core.
        progress: called with structures done.

    Raises:
        InputError: a source or setting cannot be, no structure has inputs, or the folder is there from another request.
        MissingDependencyError: pymatgen is not installed.
    """
    settings = settings or Settings()
    if limit is not None and limit < 1:
        raise InputError(f"`limit` must be 1 or more, or None for all, got {limit}")
    tags = checked_tags(settings.incar)
    found = Potcars(settings.functional, potcars, settings.symbols)
    entries = _read(sources, limit, n_jobs)
    place = Path(out)
    with whole_folder(place) as part:
        maker = _Maker(settings, tags, found, write_potcar, max(4, len(str(len(entries) - 1))))
        index = maker.write(part, entries, progress)
        good = index.ok
        if not good.any():
            first = next((why for why in index.failures if why), "")
            raise InputError(f"none of {len(index)} structures can be calculated{': ' if first else ''}{first}")
        request = {
            "settings": msgspec.to_builtins(settings),
            "write_potcar": write_potcar,
            "potentials": found.used,
            "structures": _digest(entries),
        }
        refused = {k: why for k, why in enumerate(index.failures) if why}
        written = Written(place, int(good.sum()), refused, not place.exists())
        if written.new:
            _write_folder(part, index, request, settings.command)
        elif request_of(place) != request:
            raise InputError(f"{place} is there already, from another request; give another folder, or remove it")
        else:
            shutil.rmtree(part)
    return written


def write_csv(path: Path, entries: Entries) -> None:
    """What is said of entries, without their structures."""
    with whole_file(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "file", "failure", *map(in_a_table, entries.columns)])
        columns = [column.tolist() for column in entries.columns.values()]
        for row in zip(entries.ids, entries.files, entries.failures, *columns, strict=True):
            writer.writerow(
                ["" if isinstance(value, float) and math.isnan(value) else in_a_table(value) for value in row]
            )


@functools.cache
def nothing() -> Crystals:
    """A crystal without atoms, for an entry that is none."""
    return Crystals(np.zeros((0, 3)), np.zeros((1, 3, 3)), np.array([0, 0]), np.zeros(0, np.int32))


class _Maker(NamedTuple):
    """Writes the folder of one structure after another."""

    settings: Settings
    tags: dict[str, str]
    potcars: Potcars
    write_potcar: bool
    width: int

    def write(self, part: Path, entries: Entries, progress: Callable[[int], None] | None) -> Entries:
        """The index: entries as they were written, with the columns of their inputs."""
        faults = structural_faults(entries.crystals)
        rows: list[dict[str, Any]] = []
        crystals, failures = [], []
        for k, crystal in enumerate(entries.crystals):
            reason = entries.failures[k] or faults[k]
            row: dict[str, Any] = {}
            if not reason:
                try:
                    crystal, row = self._one(part, k, crystal)
                except Refusal as error:
                    reason = str(error)
            rows.append(row)
            failures.append(reason)
            crystals.append(nothing() if reason else crystal)
            if progress is not None:
                progress(k + 1)
        columns: dict[str, np.ndarray] = {}
        for name in INPUTS:
            text = name in ("folder", "formula", "enmax_source", "k_mesh", "potcar_symbols")
            values = [row.get(name, "" if text else math.nan) for row in rows]
            columns[name] = np.array(values, str if text else np.float64)
        own = {_free(name): column for name, column in entries.columns.items()}
        return Entries(
            0, entries.files, entries.ids, tuple(failures), Crystals.concatenate(crystals), {**columns, **own}
        )

    def _one(self, part: Path, number: int, given: Crystals) -> tuple[Crystals, dict[str, Any]]:
        found = [self.potcars.of(SYMBOLS[z - 1]) for z in np.unique(given.species)]
        crystal = ordered(_primitive(given) if self.settings.primitive else given)
        by_element = {self._element(one): one for one in found}
        potcars = [by_element[symbol] for symbol in elements_of(crystal)[0]]
        pot = [content(one) for one in potcars] if self.write_potcar else []
        enmax = max(one.enmax for one in potcars)
        encut = round(self.settings.encut_factor * enmax, 3)
        mesh = k_mesh(crystal.cells, self.settings.kspacing)[0].tolist()
        name = folder_name(number, self.width, crystal)
        symbols = [one.symbol for one in potcars]
        texts = {
            "INCAR": incar(crystal, name, encut, spin=self.settings.spin, extra=self.tags),
            "KPOINTS": kpoints(mesh, self.settings.kspacing),
            "POSCAR": poscar(crystal, name),
            "POTCAR.spec": "".join(f"{symbol}\n" for symbol in symbols),
        }
        folder = part / name
        folder.mkdir()
        for file, text in texts.items():
            (folder / file).write_text(text, "ascii")
        if pot:
            (folder / "POTCAR").write_bytes(b"".join(pot))
        return crystal, {
            "folder": name,
            "formula": formula_of(crystal.species),
            "n_atoms": len(crystal.species),
            "encut": _number(self.tags.get("ENCUT"), encut),
            "enmax": enmax,
            "enmax_source": "+".join(sorted({one.source for one in potcars})),
            "k_mesh": "x".join(map(str, mesh)),
            "n_kpoints": n_kpoints(mesh),
            "potcar_symbols": " ".join(symbols),
        }

    @staticmethod
    def _element(potcar: Potcar) -> str:
        return re.split(r"[_.]", potcar.symbol)[0]


def _primitive(crystal: Crystals) -> Crystals:
    try:
        return primitive(crystal)
    except Exception as error:
        raise Refusal(f"it has no primitive cell ({type(error).__name__}: {str(error)[:100]})") from error


def _read(sources: Sequence[Any], limit: int | None, n_jobs: int) -> Entries:
    parts, n = [], 0
    with contextlib.closing(read_entries(sources, n_jobs=n_jobs)) as pieces:  # type: ignore[type-var]
        for part in pieces:
            parts.append(part if limit is None else part.take(range(min(len(part), limit - n))))
            n += len(parts[-1])
            if n == limit:
                break
    if not n:
        raise InputError(f"there are no structures in {', '.join(map(str, sources)) or 'nothing'}")
    return Entries.concatenate(parts)


def _write_folder(part: Path, index: Entries, request: dict[str, Any], command: str) -> None:
    write_entries(part / "index.parquet", index, facts=UNITS)
    write_csv(part / "index.csv", index)
    folders = [name for name in index.columns["folder"].tolist() if name]
    (part / "folders.txt").write_text("".join(f"{name}\n" for name in folders))
    script = part / "array.sh"
    template = resources.files("druse").joinpath("data", "array.sh").read_text("ascii")
    script.write_text(template.replace("LAST", str(len(folders) - 1)).replace("COMMAND", command))
    script.chmod(0o755)
    versions = versions_of("pymatgen", "pymatgen-core", "numpy")
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    with whole_file(part / "dft.json") as file:
        file.write(json.dumps({"created": created, "versions": versions, "request": request}, indent=2) + "\n")


def request_of(place: Path) -> Any:
    """What a folder was made from.

    Raises:
        InputError: it is no such folder.
    """
    path = place / "dft.json"
    try:
        return json.loads(read_small(path))["request"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{place} is no folder that druse dft vasp made; it has no dft.json that can be read"
        ) from error


def _digest(entries: Entries) -> str:
    """Of structures and of all that is said of them."""
    digest = hashlib.sha256()
    crystals = entries.crystals
    for array in (crystals.frac, crystals.cells, crystals.offsets, crystals.species):
        digest.update(np.ascontiguousarray(array).tobytes())
    said = [list(entries.ids), list(entries.failures)]
    columns = {name: [str(value) for value in column] for name, column in entries.columns.items()}
    digest.update(json.dumps([said, columns]).encode())
    return digest.hexdigest()


def _free(name: str) -> str:
    """The name of a source's column, where a column of ours has not got it."""
    while name in _TAKEN:
        name = f"source_{name}"
    return name


def _number(text: str | None, otherwise: float) -> float:
    try:
        return otherwise if text is None else float(text)
    except ValueError:
        return math.nan
