"""Relaxation of crystals by any calculator of ASE, each in a process that may be lost, and folders of relaxed crystals.

```
DIR/
  relax.json               what was asked for, of which sources, with what; written first
  pieces/00000.parquet ... relaxed entries, as they are finished; each file appears whole or not at all
  relaxed.parquet          every entry, in order; `druse.candidates.pieces` reads it
  relaxed.extxyz           those without a failure, with energy, forces and stress as ASE keeps them
  relaxed.cif              the same
  seconds.parquet          what each took, which is all that another run may have otherwise
```

One writer at a time: a lock that goes with its process. Reading needs none.
"""

import collections
import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from druse._calculators import calculator_class, has_potential, only_batched
from druse._columns import write_columns
from druse._dependencies import require
from druse._files import write_json
from druse._folders import asked_in, check_free, locked, versions_of
from druse._processes import Processes
from druse._relaxed_files import (
    CHANGES,
    UNITS,
    check_part,
    read_part,
    write_part,
    write_relaxed_cif,
    write_relaxed_extxyz,
)
from druse._relaxing import Change, Relaxed, Relaxing, given_up, killed, probe, relax_some
from druse.candidates import Entries, Piece, pieces, understand, write_entries
from druse.crystals import Crystals
from druse.errors import InputError

__all__ = ["Change", "Relaxation", "RelaxationFile", "Relaxed", "Relaxing", "Summary", "relax", "relaxing"]

_SCHEMA = 1
_FILE, _PIECES, _TABLE = "relax.json", "pieces", "relaxed.parquet"
_ALONE, _TOGETHER = 8, 32  # entries of a piece
_PACKAGES = ("ase", "chgnet", "numpy", "pymatgen", "scipy", "torch")
_READING_SECONDS = 60.0

Place = TypeVar("Place")


def relaxing(calculator: str, *, batched: bool | None = None, **options: Any) -> Relaxing:
    """How crystals shall be relaxed, by a calculator that exists.

    Args:
        calculator: name of one of ASE's (``emt``, ``lj``), ``chgnet``, or ``module:Class``, which is imported; or
            ``torchsim:module:Class``, a model of TorchSim.
        batched: whether crystals share calls; None: where the calculator can, by FIRE and without arguments.
        options: see `Relaxing`.

    Raises:
        InputError: no such calculator, or an option that cannot be.
        MissingDependencyError: CHGNet is not installed.
    """
    how = Relaxing(calculator=calculator, batched=False, **options)
    if only_batched(calculator):
        if batched is False:
            raise InputError(f"{calculator!r} works in batches only; leave out --no-batched")
        return msgspec.structs.replace(how, batched=True)
    calculator_class(calculator)
    if batched is None:
        batched = how.optimizer == "FIRE" and not how.arguments and has_potential(calculator)
    return msgspec.structs.replace(how, batched=batched)


def relax(
    crystals: Crystals,
    calculator: str | Relaxing,
    *,
    n_jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Relaxed]:
    """Relax crystals, each in a process of its own; what comes is in their order.

    Args:
        crystals: any; what cannot be relaxed comes back with a reason.
        calculator: by name, or all of `relaxing`.
        n_jobs: processes; 0 for every core.
        progress: called with crystals done and crystals in all.
        options: see `relaxing`.

    Raises:
        InputError: no such calculator, or it cannot be made.
        MissingDependencyError: a package that is needed is not installed.
    """
    how = calculator if isinstance(calculator, Relaxing) else relaxing(calculator, **options)
    size = _TOGETHER if how.batched else 1
    starts = range(0, len(crystals), size)
    batches = ((k, crystals.take(range(k, min(k + size, len(crystals))))) for k in starts)
    with _processes(n_jobs) as processes:
        _check(how, processes)
        done = 0
        for _, found in _relaxed(batches, how, processes):
            yield from found
            done += len(found)
            if progress is not None:
                progress(done, len(crystals))


class RelaxationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``relax.json``.

    Attributes:
        schema: version of the folder's format.
        sources: files and folders of crystals, absolute.
        limit: entries of them, at most; 0 for all.
        how: crystals are relaxed.
        versions: of what took part, by name.
        created: when, UTC.
    """

    schema: int
    sources: tuple[str, ...]
    limit: int
    how: Relaxing
    versions: dict[str, str]
    created: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a relaxation came to.

    Attributes:
        entries: of the sources.
        relaxed: of them, without a failure.
        converged: of those, with forces below the limit.
        failures: how many entries each reason took.
        steps: mean of the converged ones.
        changes: mean absolute changes of a, b, c (Angstrom), alpha, beta, gamma (degrees) of the converged ones, by
            column; NaN where there are none.
        matched: converged ones that StructureMatcher finds again.
        rmsd: mean of those, as the matcher gives it.
        rmsd_angstrom: mean of those, in Angstrom.
        seconds: of this process.
    """

    entries: int
    relaxed: int
    converged: int
    failures: dict[str, int]
    steps: float
    changes: dict[str, float]
    matched: int
    rmsd: float
    rmsd_angstrom: float
    seconds: float


class Relaxation:
    """A folder of relaxed crystals."""

    def __init__(self, path: Path, file: RelaxationFile) -> None:
        self.path, self.file = path, file

    @classmethod
    def create(cls, path: Any, sources: Sequence[Any], how: Relaxing, *, limit: int = 0) -> "Relaxation":
        """A new folder, or one in which the same was begun.

        Args:
            path: of a folder that is empty, does not exist, or holds the same request.
            sources: see `druse.candidates.pieces`.
            how: crystals shall be relaxed.
            limit: entries, at most; 0 for all.

        Raises:
            InputError: the folder is in use, or a source does not exist.
        """
        place = Path(path)
        if not sources:
            raise InputError("there is nothing to relax; give a run, files or folders of crystals")
        file = RelaxationFile(
            schema=_SCHEMA, sources=tuple(str(Path(source).resolve()) for source in sources), limit=limit, how=how,
            versions=versions_of(*_PACKAGES),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        next(pieces(sources, size=1), None)
        if not (place / _FILE).exists():
            check_free(place, _FILE)
            place.mkdir(parents=True, exist_ok=True)
            with locked(place):
                if not (place / _FILE).exists():
                    write_json(place / _FILE, file)
        found = cls.open(place)
        if (changed := _difference(found.file, file)) is not None:
            raise InputError(f"{place} was begun with another {changed}; repeat its command, or give another folder")
        return found

    @classmethod
    def open(cls, path: Any) -> "Relaxation":
        """A folder that exists, finished or not.

        Raises:
            InputError: there is none, or it is of another version of Druse.
        """
        place = Path(path)
        return cls(place, asked_in(place, _FILE, RelaxationFile, _SCHEMA, what="relaxation", command="druse relax"))

    @property
    def table(self) -> Path:
        """Of every entry, when all are finished."""
        return self.path / _TABLE

    def count(self) -> int:
        """Entries of the sources, up to the limit, by reading through them."""
        return sum(len(piece) for piece in _first(pieces(self.file.sources), self.file.limit))

    def finish(self, *, n_jobs: int = 0, progress: Callable[[int], None] | None = None) -> Summary:
        """Relax what is not relaxed yet, and write the files.

        Args:
            n_jobs: processes; 0 for every core.
            progress: called with entries done.

        Raises:
            InputError: another process writes to this folder, a file of it is damaged, a source has changed, or the
                calculator cannot be made.
        """
        clock = time.perf_counter()
        with locked(self.path):
            for part in [*self.path.glob(".*.part"), *(self.path / _PIECES).glob(".*.part")]:
                part.unlink(missing_ok=True)
            with _processes(n_jobs) as processes:
                n, made = self._relax(processes, progress)
            parts = [read_part(self._piece(k), self._advice) for k in range(n)]
            entries = Entries.concatenate(part.entries for part in parts)
            names = (_TABLE, "relaxed.extxyz", "relaxed.cif", "seconds.parquet")
            if made or not all((self.path / name).exists() for name in names):
                columns = {name: column for name, column in entries.columns.items() if name != "seconds"}
                write_columns(
                    self.path / names[3],
                    {"id": np.array(entries.ids, str), "seconds": entries.columns.get("seconds", np.zeros(0))},
                    {"seconds": "s"},
                )
                write_relaxed_extxyz(self.path / names[1], parts)
                write_relaxed_cif(self.path / names[2], entries)
                write_entries(self.table, dataclasses.replace(entries, columns=columns), facts=UNITS)
        return _summary(entries, time.perf_counter() - clock)

    def _relax(self, processes: Processes, progress: Callable[[int], None] | None) -> tuple[int, bool]:
        """How many pieces there are, and whether any is new."""
        n_pieces, done, made = 0, 0, False

        def missing() -> Iterator[tuple[tuple[int, Entries], Crystals]]:
            nonlocal n_pieces, done
            how, checked = self.file.how, False
            cut = pieces(self.file.sources, size=_TOGETHER if how.batched else _ALONE)
            for k, entries in enumerate(
                processes.map(_understand, _first(cut, self.file.limit), killed=_not_understood)
            ):
                n_pieces += 1
                if self._piece(k).exists():
                    check_part(self._piece(k), entries, self._advice)
                    done += len(entries)
                    continue
                if not checked:
                    _check(how, processes)
                    checked = True
                good = np.flatnonzero(entries.ok)
                size = 1 if not how.batched else len(good)
                for start in range(0, max(len(good), 1), max(size, 1)):
                    yield (k, entries), entries.crystals.take(good[start : start + size])

        results: list[Relaxed] = []
        for (k, entries), found in _relaxed(missing(), self.file.how, processes):
            results += found
            if len(results) == entries.ok.sum():
                given, results = iter(results), []
                whole = [
                    next(given) if ok else given_up(entries.crystals[b], entries.failures[b])
                    for b, ok in enumerate(entries.ok)
                ]
                write_part(self._piece(k), entries, whole)
                done, made = done + len(entries), True
                if progress is not None:
                    progress(done)
        return n_pieces, made

    @property
    def _advice(self) -> str:
        return "delete it, and give the same command again"

    def _piece(self, k: int) -> Path:
        return self.path / _PIECES / f"{k:05d}.parquet"


def _processes(n_jobs: int) -> Processes:
    require("pymatgen.core", purpose="comparing relaxed crystals with what they were", extra="relax")
    return Processes(n_jobs, purpose="relaxing crystals", isolated=True, bounded=False)


def _check(how: Relaxing, processes: Processes) -> None:
    (fault,) = processes.map(probe, [how], killed=lambda _: "its process ended: a crash, or too little memory")
    if fault:
        raise InputError(fault)


def _relaxed(
    batches: Iterable[tuple[Place, Crystals]], how: Relaxing, processes: Processes
) -> Iterator[tuple[Place, list[Relaxed]]]:
    """Results of batches, in their order, each with what came beside its batch."""
    pending: collections.deque[tuple[Place, Crystals]] = collections.deque()

    def works() -> Iterator[tuple[Crystals, Relaxing]]:
        for place, batch in batches:
            pending.append((place, batch))
            yield batch, how

    for found in processes.map(relax_some, works(), killed=killed):
        place, batch = pending.popleft()
        if found is None:  # one of them held or killed all
            alone = processes.map(relax_some, ((crystal, how) for crystal in batch), killed=killed)
            found = [one for some in alone for one in some or []]
        yield place, found


def _first(source: Iterator[Piece], limit: int) -> Iterator[Piece]:
    """Pieces with so many entries in all, at most."""
    for piece in source:
        left = limit - piece.first if limit else len(piece)
        if left <= 0:
            return
        if left < len(piece):
            rows = piece.rows.take(range(left)) if isinstance(piece.rows, Entries) else piece.rows[:left]
            piece = Piece(piece.first, piece.source, rows)
        yield piece


def _understand(piece: Piece) -> Entries:
    return understand(piece, seconds=_READING_SECONDS)


def _not_understood(piece: Piece) -> Entries:
    n = len(piece)
    ids = piece.rows.ids if isinstance(piece.rows, Entries) else tuple(row.id for row in piece.rows)
    nothing = Crystals(np.zeros((0, 3)), np.zeros((n, 3, 3)), np.zeros(n + 1, np.int64), np.zeros(0, np.int32))
    return Entries(piece.first, (piece.source,) * n, ids, ("the process that read it ended",) * n, nothing, {})


def _summary(entries: Entries, seconds: float) -> Summary:
    good, empty = entries.ok, np.zeros(0)
    columns = {
        name: entries.columns.get(name, empty) for name in ("converged", "steps", "rmsd", "rmsd_angstrom", *CHANGES)
    }
    chosen = good & (columns["converged"] == 1)
    matched = chosen & np.isfinite(columns["rmsd"])

    def mean(name: str, rows: np.ndarray) -> float:
        return float(columns[name][rows].mean()) if rows.any() else float("nan")

    return Summary(
        entries=len(entries),
        relaxed=int(good.sum()),
        converged=int(chosen.sum()),
        failures=dict(collections.Counter(failure for failure in entries.failures if failure).most_common()),
        steps=mean("steps", chosen),
        changes={name: mean(name, chosen) for name in CHANGES},
        matched=int(matched.sum()),
        rmsd=mean("rmsd", matched),
        rmsd_angstrom=mean("rmsd_angstrom", matched),
        seconds=seconds,
    )


def _difference(old: RelaxationFile, new: RelaxationFile) -> str | None:
    """What two requests do not share, in words."""
    for name, title in (("sources", "list of sources"), ("limit", "limit")):
        if getattr(old, name) != getattr(new, name):
            return title
    for name in Relaxing.__struct_fields__:
        if getattr(old.how, name) != getattr(new.how, name):
            return {"arguments": "set of arguments", "cell": "choice of cell or no cell"}.get(name, f"value of {name}")
    return None
