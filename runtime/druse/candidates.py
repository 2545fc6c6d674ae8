"""Crystals from anywhere, entry by entry and in bounded memory: what `screening`, `relax` and `dft` work on.

Reading has two halves, so that the dear one can be done by other processes, and skipped for what is done already:
`pieces` cuts sources into consecutive entries without looking into them, `understand` makes crystals of a piece.
`understood` does the second in processes that an entry may kill, `read_entries` does both, and `export` writes what
comes. What that is, and in which order, depends on the sources alone. Nothing in a source is executed or unpickled, and
what asks for too much (`Limits`) is an entry with a failure.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._array_sources import Arrays, ase_arrays, torch_arrays
from druse._columns import Ragged, column_names, read_column_batches, write_columns
from druse._entries import (
    NOTHING,
    OWN_COLUMNS,
    Entries,
    Piece,
    checked,
    column_of,
    columns_of,
    facts_of,
    file_keys,
    named_entry,
    shown,
    writable,
)
from druse._limits import LIMITS, Limits, Row
from druse._processes import Processes, time_limit
from druse._rows import KINDS, folder_files, read_rows
from druse._structures import Understood, understand_row
from druse.crystals import Crystals
from druse.errors import InputError
from druse.graphs import STOPPED, describe_status
from druse.io import Named, write_named
from druse.lattice import wrap
from druse.runs import Run

__all__ = [
    "LIMITS",
    "Entries",
    "Exported",
    "Limits",
    "Piece",
    "export",
    "files_of",
    "pieces",
    "read_entries",
    "understand",
    "understood",
    "write_entries",
]

PIECE = 256
"""Entries of a piece, unless another number is given."""


def pieces(sources: Sequence[Any], *, size: int = PIECE, limits: Limits = LIMITS) -> Iterator[Piece]:
    """Cut sources into pieces, without looking into their entries.

    Args:
        sources: each the folder of a run, a screening, a relaxation or a DFT hand-over, or a file or folder of
            crystals: extended XYZ, CIF, POSCAR, CSV or Parquet with CIF, zip of CIF, pymatgen's JSON, ASE's data base,
            result files of Con-CDVAE.
        size: entries of a piece, at most; a piece has entries of one source only.
        limits: what an entry may ask for.

    Raises:
        InputError: a source does not exist, is of no known kind, or broken as a whole.
    """
    first = 0
    for source in map(Path, sources):
        for rows in _cut(source, size, limits):
            yield Piece(first, str(source), rows)
            first += len(rows)


def understand(piece: Piece, *, seconds: float | None = None, limits: Limits = LIMITS) -> Entries:
    """The entries of a piece. Nothing in it is executed, and one bad entry does not harm the others.

    Args:
        piece: of `pieces`.
        seconds: for one entry, in a process that `druse._processes` started; None for no limit.
        limits: what an entry may ask for.
    """
    if isinstance(piece.rows, Entries):
        return dataclasses.replace(piece.rows, first=piece.first)
    clock = time.perf_counter()
    found = [_timely(row, seconds, limits) for row in piece.rows]
    good = [one if isinstance(one, Understood) else None for one in found]
    facts = [facts_of({**one.facts, **row.columns}, limits) if one else facts_of(row.columns, limits)
             for row, one in zip(piece.rows, good, strict=True)]  # fmt: skip
    names = [(one.id if one else "") or row.id for row, one in zip(piece.rows, good, strict=True)]
    return Entries(
        piece.first,
        (piece.source,) * len(found),
        tuple(writable(name)[: limits.value] for name in names),
        tuple("" if isinstance(one, Understood) else shown(one) for one in found),
        Crystals.concatenate(
            NOTHING if one is None else Crystals(
                wrap(one.frac), one.cell[None], np.array([0, len(one.species)]), one.species
            )
            for one in good
        ),
        columns_of(facts, limits),
        time.perf_counter() - clock,
    )  # fmt: skip


def understood(
    cut: Iterable[Piece],
    processes: Processes,
    work: Callable[[Entries], Any] | None = None,
    *,
    join: Callable[[Sequence[Any]], Any] = Entries.concatenate,
    limits: Limits = LIMITS,
) -> Iterator[Any]:
    """Understand pieces in other processes, in order, and go on with each piece there.

    An entry that kills the process that works on it (for want of memory, or by an error in a library) is found, and is
    then an entry with a failure like any other.

    Args:
        cut: of `pieces`.
        processes: that do it. In the caller's own (one job) nothing is isolated, and there is no limit of time.
        work: what to do with the entries of a piece, a function that pickles; its result comes instead of them.
        join: makes one result of the results of parts of a piece, where one entry of it killed a process.
        limits: what an entry may ask for.
    """
    seconds = limits.seconds if processes.isolated else None
    function = functools.partial(_understand_and_work, work=work, seconds=seconds, limits=limits)

    def killed(piece: Piece) -> Any:
        if len(piece) > 1:
            return join(list(processes.map(function, piece.split(), killed=killed)))
        name = piece.rows.ids[0] if isinstance(piece.rows, Entries) else writable(piece.rows[0].id)
        reason = "the process that worked on it was killed"
        refused = Entries(piece.first, (piece.source,), (name,), (reason,), NOTHING, {})
        return refused if work is None else work(refused)

    return processes.map(function, cut, killed=killed)


def read_entries(
    sources: Sequence[Any],
    *,
    size: int = PIECE,
    n_jobs: int = 1,
    progress: Callable[[int], None] | None = None,
    limits: Limits = LIMITS,
) -> Iterator[Entries]:
    """Read sources, in order.

    Args:
        sources: see `pieces`.
        size: see `pieces`.
        n_jobs: processes; 0 for every core. With 1 there is no limit of time, and an entry that kills its process
            kills the caller.
        progress: called with entries done.
        limits: what an entry may ask for.

    Raises:
        InputError: see `pieces`.
    """
    with Processes(n_jobs, purpose="reading structures") as processes:
        for entries in understood(pieces(sources, size=size, limits=limits), processes, limits=limits):
            yield entries
            if progress is not None:
                progress(entries.first + len(entries))


def write_entries(path: Any, entries: Entries, *, facts: Mapping[str, str] | None = None) -> None:
    """Entries as Parquet, which `pieces` reads: id, file, failure, cell, species, frac, and the columns.

    Args:
        path: of the file, which appears whole or not at all.
        entries: any.
        facts: kept beside the columns, such as their units.
    """
    crystals = entries.crystals
    columns: dict[str, Any] = {
        "id": np.array(entries.ids, str),
        "file": np.array(entries.files, str),
        "failure": np.array(entries.failures, str),
        "cell": crystals.cells.reshape(-1, 9),
        "species": Ragged(crystals.species, crystals.offsets),
        "frac": Ragged(crystals.frac.reshape(-1), 3 * crystals.offsets),
    }
    said = {name: column for name, column in entries.columns.items() if name not in columns}
    write_columns(Path(path), {**columns, **said}, {"cell": "row vectors, Angstrom", **(facts or {})})


class Exported(NamedTuple):
    """What an export came to.

    Attributes:
        crystals: that are written.
        left_out: entries that are no crystals: they could not be read, or failed in the command that made them.
        unfinished: crystals of runs that are not made yet.
    """

    crystals: int
    left_out: int
    unfinished: int


def export(
    sources: Sequence[Any],
    path: Any,
    *,
    format: str = "",  # noqa: A002
    n_jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write the crystals of sources to one file, with all that is said of them.

    Args:
        sources: see `pieces`.
        path: of the file, or for POSCARs of a new folder, which appears whole or not at all.
        format: one of `druse.io.FORMATS`; empty: by the file's name.
        n_jobs: processes; 0 for every core.
        progress: called with entries done.

    Raises:
        InputError: see `pieces` and `druse.io.write_crystals`.
    """
    written, left_out = 0, 0

    def good() -> Iterator[Named]:
        nonlocal written, left_out
        for entries in read_entries(sources, n_jobs=n_jobs, progress=progress):
            left_out += int((~entries.ok).sum())
            keys = file_keys(entries.columns)
            for b in np.flatnonzero(entries.ok).tolist():
                written += 1
                yield named_entry(entries, b, entries.ids[b], keys, whole=False)

    runs = [Run.open(source) for source in map(Path, sources) if (source / "run.json").is_file()]
    if len(runs) == len(sources) == 1:  # which says more of its crystals, and numbers them
        written, left_out = runs[0].exported(path, format=format)  # more may be stored meanwhile
        return Exported(written, left_out, runs[0].request.count - written - left_out)
    write_named(path, good(), format)
    return Exported(written, left_out, sum(run.request.count - run.finished for run in runs))


_MADE = {
    "screen.json": ("survivors.parquet", "druse screen"),
    "relax.json": ("relaxed.parquet", "druse relax"),
    "dft.json": ("dft.parquet", "druse dft collect"),
}
"""What a folder of a command has as its result, and the command that makes it."""


def files_of(source: Any) -> list[Path]:
    """The files that `pieces` reads of one source, in order; what else lies in its folder changes nothing.

    Raises:
        InputError: it does not exist, or its result is not there yet.
    """
    place = Path(source)
    if (place / "run.json").is_file():
        return Run.open(place).files
    place = _result(place)
    if not place.exists():
        raise _missing(place)
    return [file for name in folder_files(place) if (file := place / name).is_file()] if place.is_dir() else [place]


def _result(source: Path) -> Path:
    """The file of crystals in a folder that a command made; any other source as it is."""
    for told, (name, command) in _MADE.items():
        if (source / told).is_file():
            if not (source / name).is_file():
                raise InputError(f"{source} has no {name} yet; {command} makes it")
            return source / name
    return source


def _missing(source: Path) -> InputError:
    return InputError(
        f"{source} does not exist; give a file or folder of crystals: a folder of druse, .db of ASE, .pt of Con-CDVAE, "
        f"{KINDS}"
    )


def _cut(source: Path, size: int, limits: Limits) -> Iterator[tuple[Row, ...] | Entries]:
    if (source / "run.json").is_file():
        for part in _run(Run.open(source), str(source)):
            yield from (part.take(range(k, min(k + size, len(part)))) for k in range(0, len(part), size))
        return
    source = _result(source)
    if not source.exists():
        raise _missing(source)
    kind = source.suffix.lower()
    if kind in (".db", ".pt", ".pth"):
        if not source.is_file():
            raise InputError(f"{source} does not exist; give a file or folder of crystals")
        for arrays in (ase_arrays if kind == ".db" else torch_arrays)(source, size, limits):
            yield checked(arrays, (str(source),) * len(arrays.ids), limits)
    elif kind == ".parquet" and source.is_file() and set(OWN_COLUMNS) <= set(column_names(source, "write it again")):
        for columns in read_column_batches(source, size, "write it again", limits):
            yield _own(columns, source, limits)
    else:
        yield from _grouped(read_rows(source, limits), size, limits)


def _grouped(rows: Iterator[Row], size: int, limits: Limits) -> Iterator[tuple[Row, ...]]:
    """So many at a time, or fewer where they are long: no more than a few of the longest are in memory together."""
    some: list[Row] = []
    length = 0
    for row in rows:
        some.append(row)
        length += len(row.text) + sum(len(value) for value in row.columns.values() if isinstance(value, str))
        if len(some) == size or length > 4 * limits.text:
            yield tuple(some)
            some, length = [], 0
    if some:
        yield tuple(some)


def _understand_and_work(
    piece: Piece, *, work: Callable[[Entries], Any] | None, seconds: float | None, limits: Limits
) -> Any:
    entries = understand(piece, seconds=seconds, limits=limits)
    return entries if work is None else work(entries)


def _timely(row: Row, seconds: float | None, limits: Limits) -> Understood | str:
    try:
        with time_limit(seconds):
            return understand_row(row, limits)
    except TimeoutError as error:  # just as it was done
        return str(error)


def _run(run: Run, source: str) -> Iterator[Entries]:
    targets = {f"target_{name}": value for name, value in run.request.targets.items()}
    for part in run.generated():
        failures = tuple(
            "" if ok else describe_status(int(s) & STOPPED)[0] for ok, s in zip(part.ok, part.status, strict=True)
        )
        n_atoms = np.where(part.ok, part.n_atoms, 0)
        atoms = np.repeat(part.ok, part.n_atoms)
        crystals = Crystals(
            part.frac[atoms],
            part.cells,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(n_atoms)]),
            part.species[atoms],
        )
        columns = {name: column_of([value] * len(part)) for name, value in targets.items()}
        columns |= {name: column.astype(np.float64) for name, column in part.columns.items() if column.ndim == 1}
        yield Entries(0, (source,) * len(part), tuple(map(str, part.ids)), failures, crystals, columns)


def _own(columns: dict[str, Any], source: Path, limits: Limits) -> Entries:
    """A batch of what `write_entries` wrote, or another who says so."""
    try:
        cell, species, frac = columns.pop("cell"), columns.pop("species"), columns.pop("frac")
        ids, files, failures = (tuple(map(str, columns.pop(name))) for name in ("id", "file", "failure"))
        if not np.array_equal(3 * species.offsets, frac.offsets):
            raise InputError("there are not three coordinates for each atom")
        cells = np.asarray(cell, np.float64).reshape(len(ids), 3, 3)
        places = np.asarray(frac.values, np.float64).reshape(-1, 3)
        numbers = np.asarray(species.values, np.int64)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} has columns that druse did not write ({error}); write it again") from error
    said = {name: column for name, column in columns.items() if _is_plain(column) and len(name) <= limits.value}
    plain = {name: column if column.dtype.kind == "U" else column_of(column.tolist()) for name, column in said.items()}
    found = checked(Arrays(ids, failures, cells, species.offsets, places, numbers, ()), files, limits)
    return dataclasses.replace(found, columns=dict(itertools.islice(plain.items(), 2 * limits.columns)))


def _is_plain(column: Any) -> bool:
    """Numbers or text, one for each entry; what may be missing comes as objects."""
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        return False
    numbers = column.dtype.kind == "O" and all(value is None or isinstance(value, int | float) for value in column)
    return numbers or column.dtype.kind in "fiubU"
