"""The hand-over to DFT: inputs of VASP for a list of structures, and what came of them, beside what was predicted.

`write_vasp` makes a folder, `collect` reads it back, again and again while jobs finish:

::

    DIR/
      dft.json          what was asked, which potentials, versions
      index.parquet     one row a structure: where it is from, its folder and inputs, all that its source says of it
      index.csv         the same for people, without the structures
      folders.txt       the folders, a line each
      array.sh          a Slurm array over them
      0000-LiFePO4/     INCAR KPOINTS POSCAR POTCAR.spec
      ...
      dft.parquet       by `collect`: index.parquet with the relaxed structures and the results
      dft.csv
      comparison.json   predictions beside DFT, mean changes, references
      comparison.svg    figure 6, where matplotlib is installed
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse import _vasprun
from druse._comparison import (
    Agreement,
    agreements,
    elemental_energies,
    formation_energies,
    mean_changes,
    read_references,
)
from druse._dependencies import require
from druse._files import whole_file
from druse._parity import draw, first_prediction
from druse._potcars import FUNCTIONALS
from druse._processes import Processes
from druse._vasp_folder import FOLDER, RESULTS, UNITS, Settings, Written, nothing, request_of, write_csv, write_vasp
from druse.candidates import Entries, read_entries, write_entries
from druse.crystals import Crystals
from druse.elements import SYMBOLS
from druse.errors import InputError

__all__ = ["FUNCTIONALS", "SECONDS", "Agreement", "Collected", "Settings", "Written", "collect", "write_vasp"]

SECONDS = 300.0
"""For one vasprun.xml, where other processes read them."""


class Collected(NamedTuple):
    """What `collect` found.

    Attributes:
        entries: every structure of the index, with results; those that are not finished have their reason as failure.
        counts: how many are ``finished``, ``failed``, ``unfinished``, ``waiting`` and ``refused``.
        agreements: predictions and targets beside DFT.
        changes: means of table 3: for each column ``mean`` and ``n``.
        references: the elements' energies that formation energies are of: symbol to ``energy`` and ``source``.
        missing: elements of finished structures that have no reference.
    """

    entries: Entries
    counts: dict[str, int]
    agreements: tuple[Agreement, ...]
    changes: dict[str, dict[str, float]]
    references: dict[str, dict[str, Any]]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: None for NaN, and without the entries."""
        content = self._asdict() | {"agreements": [one._asdict() for one in self.agreements]}
        del content["entries"]
        return _plain(content)  # type: ignore[no-any-return]


def collect(
    folder: Any,
    *,
    references: Any = None,
    n_jobs: int = 0,
    seconds: float = SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Read what is finished, and write dft.parquet, dft.csv, comparison.json and comparison.svg anew.

    Formation energies are of ``references`` alone, or without it of the folder's own elements: the lowest energy among
    its finished structures of one element. Where an element has neither, they are NaN.

    Args:
        folder: that `write_vasp` made.
        references: file of energies of elements, or a mapping from symbol to energy in eV an atom.
        n_jobs: processes; 0 for every core. 1 reads in the caller's own, where neither time nor memory is limited.
        seconds: for one result.
        progress: called with results read, and results in all.

    Raises:
        InputError: it is no such folder, or the references cannot be read.
        MissingDependencyError: pymatgen is not installed.
    """
    require("pymatgen.io.vasp.outputs", purpose="reading vasprun.xml", extra="screen")
    place = Path(folder)
    request_of(place)
    given = _references(references)
    index = Entries.concatenate(read_entries([place / "index.parquet"]))
    if "folder" not in index.columns or index.columns["folder"].dtype.kind != "U":
        raise InputError(f"{place / 'index.parquet'} names no folders; make the inputs again")
    outcomes = _outcomes(place, index, n_jobs, seconds, progress)
    entries = _with_results(index, outcomes)
    species = [crystal.species for crystal in entries.crystals]
    energies = entries.columns["energy_per_atom"]
    if given is None:
        own = elemental_energies(species, np.where(entries.ok, energies, np.nan))
        given = {z: (energy, str(index.columns["folder"][k])) for z, (energy, k) in own.items()}
    formation = formation_energies(species, energies, {z: energy for z, (energy, _) in given.items()})
    entries = dataclasses.replace(entries, columns={**entries.columns, "formation_energy_per_atom_dft": formation})
    status = entries.columns["status"]
    used = sorted({int(z) for numbers in species for z in numbers})
    collected = Collected(
        entries,
        {name: int(np.sum(status == name)) for name in ("finished", "failed", "unfinished", "waiting", "refused")},
        tuple(agreements(entries.columns, status == "failed")),
        mean_changes(entries.columns),
        {SYMBOLS[z - 1]: {"energy": given[z][0], "source": given[z][1]} for z in used if z in given},
        tuple(SYMBOLS[z - 1] for z in used if z not in given),
    )
    _write_results(place, collected)
    return collected


def _references(given: Any) -> dict[int, tuple[float, str]] | None:
    if given is None:
        return None
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in SYMBOLS]
        if unknown:
            raise InputError(f"`references` must be energies by symbols of elements, got {unknown[0]!r}")
        return {SYMBOLS.index(name) + 1: (float(energy), "given") for name, energy in given.items()}
    return {z: (energy, str(given)) for z, energy in read_references(Path(given)).items()}


def _outcomes(
    place: Path, index: Entries, n_jobs: int, seconds: float, progress: Callable[[int, int], None] | None
) -> list[_vasprun.Outcome]:
    outcomes: list[_vasprun.Outcome] = []
    names = index.columns["folder"].tolist()
    with Processes(n_jobs, purpose="reading vasprun.xml") as processes:
        limit = seconds if processes.isolated else None
        chosen = [k for k, name in enumerate(names) if not index.failures[k] and FOLDER.fullmatch(name)]
        tasks = (_vasprun.Task(place / names[k], index.crystals[k], limit) for k in chosen)
        read = dict.fromkeys(range(len(names)), _vasprun.Outcome("refused", "it has no inputs"))
        for done, outcome in enumerate(processes.map(_vasprun.read, tasks, killed=_vasprun.killed), 1):
            read[chosen[done - 1]] = outcome
            if progress is not None:
                progress(done, len(chosen))
    for k, outcome in read.items():
        reason = index.failures[k]
        outcomes.append(outcome._replace(reason=f"no inputs: {reason}") if reason else outcome)
    return outcomes


def _with_results(index: Entries, outcomes: Sequence[_vasprun.Outcome]) -> Entries:
    columns = dict(index.columns)
    for name in RESULTS:
        if name == "status":
            columns[name] = np.array([outcome.status for outcome in outcomes], str)
        else:
            columns[name] = np.array([outcome.numbers.get(name, math.nan) for outcome in outcomes], np.float64)
    crystals = Crystals.concatenate(nothing() if one.relaxed is None else one.relaxed for one in outcomes)
    reasons = tuple(outcome.reason for outcome in outcomes)
    return Entries(index.first, index.files, index.ids, reasons, crystals, columns)


def _write_results(place: Path, collected: Collected) -> None:
    said = {name: json.dumps(collected.to_dict()[name]) for name in ("references", "counts")}
    write_entries(place / "dft.parquet", collected.entries, facts={**UNITS, **said})
    write_csv(place / "dft.csv", collected.entries)
    with whole_file(place / "comparison.json") as file:
        file.write(json.dumps(collected.to_dict(), indent=2) + "\n")
    columns = collected.entries.columns
    if predicted := first_prediction(columns):
        draw(place / "comparison.svg", columns, predicted, columns["status"] == "failed")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
