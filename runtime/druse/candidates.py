"""Crystals from anywhere, entry by entry and in bounded memory: what `screening`, `relax` and `dft` work on.

Reading has two halves, so that the dear one can be done by other processes, and skipped for what is done already:
`pieces` cuts sources into consecutive entries without looking into them, `understand` makes crystals of a piece.
`read_entries` does both. What comes, and in which order, depends on the sources alone.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._columns import Ragged, read_columns, write_columns
from druse._processes import Processes
from druse._rows import Row, read_rows
from druse.crystals import Crystals
from druse.graphs import STOPPED, describe_status
from druse.runs import Run
from druse.tables import _understand

__all__ = ["Entries", "Piece", "pieces", "read_entries", "understand", "write_entries"]

PIECE = 256
"""Entries of a piece, unless another number is given."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Consecutive entries of the sources, good and bad.

    Attributes:
        first: number of the first one, over all sources.
        files: of each entry the file or folder that it is from.
        ids: of each entry its name, as its source has it; not always unique.
        failures: for each entry why it is no crystal; empty where it is one.
        crystals: one for each entry, in the cell of its source; without atoms where there is a failure.
        columns: what the source says of each entry, by name: float64 (NaN where it says nothing) or text (then empty).
    """

    first: int
    files: tuple[str, ...]
    ids: tuple[str, ...]
    failures: tuple[str, ...]
    crystals: Crystals
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ok(self) -> np.ndarray:
        """``[entries]``: which are crystals."""
        return np.array([not failure for failure in self.failures], bool)

    def take(self, indices: Any) -> "Entries":
        """The entries of an array of indices, in that order; ``first`` stays."""
        chosen = np.arange(len(self))[np.asarray(indices)]
        return Entries(
            self.first,
            tuple(self.files[k] for k in chosen),
            tuple(self.ids[k] for k in chosen),
            tuple(self.failures[k] for k in chosen),
            self.crystals.take(chosen),
            {name: column[chosen] for name, column in self.columns.items()},
        )

    @classmethod
    def concatenate(cls, parts: Iterable["Entries"]) -> "Entries":
        """One of several, in order; a column that some lack is missing there."""
        found = list(parts)
        names = dict.fromkeys(name for part in found for name in part.columns)
        return cls(
            found[0].first if found else 0,
            tuple(itertools.chain.from_iterable(part.files for part in found)),
            tuple(itertools.chain.from_iterable(part.ids for part in found)),
            tuple(itertools.chain.from_iterable(part.failures for part in found)),
            Crystals.concatenate(part.crystals for part in found),
            {
                name: _joined([part.columns.get(name) for part in found], [len(part) for part in found])
                for name in names
            },
        )


class Piece(NamedTuple):
    """Consecutive entries that nobody has looked into yet; it travels to another process.

    Attributes:
        first: number of the first entry, over all sources.
        source: file or folder.
        rows: one for each entry, not understood; or `Entries` where the source has arrays.
    """

    first: int
    source: str
    rows: tuple[Row, ...] | Entries

    def __len__(self) -> int:
        return len(self.rows)

    def split(self) -> list["Piece"]:
        """One piece for each entry."""
        if isinstance(self.rows, Entries):
            return [Piece(self.first + k, self.source, self.rows.take([k])) for k in range(len(self))]
        return [Piece(self.first + k, self.source, (row,)) for k, row in enumerate(self.rows)]


def pieces(sources: Sequence[Any], *, size: int = PIECE) -> Iterator[Piece]:
    """Cut sources into pieces, without looking into their entries.

    Args:
        sources: each the folder of a run, or a file or folder of crystals.
        size: entries of a piece, at most; a piece has entries of one source only.

    Raises:
        InputError: a source does not exist, or is of no known kind.
    """
    first = 0
    for source in map(Path, sources):
        for rows in _cut(source, size):
            yield Piece(first, str(source), rows)
            first += len(rows)


def understand(piece: Piece, *, seconds: float | None = None) -> Entries:  # noqa: ARG001
    """The entries of a piece. Nothing in it is executed, and one bad entry does not harm the others.

    Args:
        piece: of `pieces`.
        seconds: for one entry, in a process that `druse._processes` started; None for no limit.
    """
    if isinstance(piece.rows, Entries):
        return dataclasses.replace(piece.rows, first=piece.first)
    found = [_understand(row, False) for row in piece.rows]
    crystals = [
        Crystals(np.zeros((0, 3)), np.zeros((1, 3, 3)), np.array([0, 0]), np.zeros(0, np.int32))
        if isinstance(result, str)
        else Crystals(result[0], result[1][None], np.array([0, len(result[2])]), result[2])
        for result in found
    ]
    names = dict.fromkeys(name for row in piece.rows for name in row.columns)
    return Entries(
        piece.first,
        (piece.source,) * len(found),
        tuple(row.id for row in piece.rows),
        tuple(result if isinstance(result, str) else "" for result in found),
        Crystals.concatenate(crystals),
        {name: _column([row.columns.get(name) for row in piece.rows]) for name in names},
    )


def read_entries(
    sources: Sequence[Any],
    *,
    size: int = PIECE,
    n_jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Entries]:
    """Read sources, in order.

    Args:
        sources: see `pieces`.
        size: see `pieces`.
        n_jobs: processes; 0 for every core.
        progress: called with entries done.

    Raises:
        InputError: see `pieces`.
    """
    with Processes(n_jobs, purpose="reading structures") as processes:
        for entries in processes.map(understand, pieces(sources, size=size)):
            yield entries
            if progress is not None:
                progress(entries.first + len(entries))


def write_entries(path: Path, entries: Entries, *, facts: Mapping[str, str] | None = None) -> None:
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
    write_columns(path, {**columns, **entries.columns}, {"cell": "row vectors, Angstrom", **(facts or {})})


def _cut(source: Path, size: int) -> Iterator[tuple[Row, ...] | Entries]:
    if (source / "run.json").is_file():
        for part in _run(Run.open(source), str(source)):
            yield from (part.take(range(k, min(k + size, len(part)))) for k in range(0, len(part), size))
    elif (own := _own_table(source)) is not None:
        yield from (own.take(range(k, min(k + size, len(own)))) for k in range(0, len(own), size))
    else:
        rows = read_rows(source)
        while some := tuple(itertools.islice(rows, size)):
            yield some


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
        columns = {name: _column([value] * len(part)) for name, value in targets.items()}
        columns |= {name: column.astype(np.float64) for name, column in part.columns.items() if column.ndim == 1}
        yield Entries(0, (source,) * len(part), tuple(map(str, part.ids)), failures, crystals, columns)


def _own_table(path: Path) -> Entries | None:
    """What `write_entries` wrote, or None where a file is another."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    columns = read_columns(path, "write it again")
    try:
        cell, species, frac = columns.pop("cell"), columns.pop("species"), columns.pop("frac")
        ids, files, failures = (tuple(map(str, columns.pop(name))) for name in ("id", "file", "failure"))
    except KeyError:
        return None
    crystals = Crystals(frac.values.reshape(-1, 3), cell.reshape(-1, 3, 3), species.offsets, species.values)
    return Entries(0, files, ids, failures, crystals, columns)


def _column(values: Sequence[Any]) -> np.ndarray:
    """Numbers where all that is there are numbers, else text."""
    try:
        return np.array([np.nan if value in (None, "") else float(value) for value in values], np.float64)
    except (TypeError, ValueError):
        return np.array(["" if value is None else str(value) for value in values], str)


def _joined(columns: Sequence[np.ndarray | None], lengths: Sequence[int]) -> np.ndarray:
    present = [column for column in columns if column is not None]
    if any(column.dtype.kind == "U" for column in present):
        parts = [
            np.full(n, "", str) if column is None
            else column if column.dtype.kind == "U"
            else np.array(["" if np.isnan(value) else str(value) for value in column], str)
            for column, n in zip(columns, lengths, strict=True)
        ]  # fmt: skip
        return np.concatenate(parts)
    return np.concatenate(
        [np.full(n, np.nan) if column is None else column for column, n in zip(columns, lengths, strict=True)]
    )
