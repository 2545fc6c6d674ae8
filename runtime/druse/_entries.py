"""Entries of a source: crystals and failures with what is said of them, checked against the limits."""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._array_sources import Arrays
from druse._arrays import Float64
from druse._limits import LIMITS, Limits, Row
from druse._structures import faults
from druse.crystals import Crystals
from druse.io import Named, named, text_of
from druse.tables import ALIASES

__all__ = [
    "NOTHING",
    "OWN_COLUMNS",
    "Entries",
    "Piece",
    "checked",
    "column_of",
    "columns_of",
    "facts_of",
    "file_keys",
    "named_entry",
    "numbers_of",
    "on_one_line",
    "shown",
    "writable",
]

NOTHING = Crystals(np.zeros((0, 3)), np.zeros((1, 3, 3)), np.array([0, 0]), np.zeros(0, np.int32))
"""A crystal that is none, for an entry with a failure."""

_COUNTS = ("n_atoms", "spacegroup", "target_spacegroup", "source_spacegroup")
"""Columns of whole numbers, which files have without a decimal point."""

OWN_COLUMNS = ("id", "file", "failure", "cell", "species", "frac")
"""Columns of a file of entries that are no columns of the entries."""


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
        seconds: that it took to make crystals of what the sources hold.
    """

    first: int
    files: tuple[str, ...]
    ids: tuple[str, ...]
    failures: tuple[str, ...]
    crystals: Crystals
    columns: Mapping[str, np.ndarray]
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ok(self) -> np.ndarray:
        """``[entries]``: which are crystals."""
        return np.array([not failure for failure in self.failures], bool)

    def take(self, indices: Any) -> "Entries":
        """The entries of an array of indices, in that order; ``first`` stays."""
        wanted = np.asarray(indices)
        chosen = np.arange(len(self))[wanted if wanted.size else wanted.astype(np.int64)]
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
        names = _bounded(found)
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
            sum((part.seconds for part in found), 0.0),
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


def checked(arrays: Arrays, files: tuple[str, ...], limits: Limits) -> Entries:
    """Entries of which those that cannot be crystals are without atoms."""
    found = faults(arrays.cells, arrays.offsets, arrays.frac, arrays.species, limits)
    failures = tuple(shown(failure or fault) for failure, fault in zip(arrays.failures, found, strict=True))
    good = np.array([not failure for failure in failures], bool)
    n_atoms = np.diff(arrays.offsets)
    atoms = np.repeat(good, n_atoms)
    crystals = Crystals(
        arrays.frac[atoms],
        np.where(good[:, None, None], arrays.cells, 0.0),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(np.where(good, n_atoms, 0))]),
        arrays.species[atoms].astype(np.int32),
    )
    columns = columns_of([facts_of(facts, limits) for facts in arrays.columns], limits)
    ids = tuple(writable(name)[: limits.value] for name in arrays.ids)
    return Entries(0, files, ids, failures, crystals, columns)


def shown(reason: str) -> str:
    """A reason, with what it quotes from outside, as one line that a terminal can show."""
    return "".join(sign if sign.isprintable() else "?" for sign in reason[:300])


def writable(text: str) -> str:
    """A text from outside, without the halves of characters that no file can hold."""
    return text.encode("utf-8", "replace").decode()


def file_keys(columns: Iterable[str]) -> dict[str, str]:
    """For each column what files call it, each by another name."""
    found = {"id": "id", "file": "file"}
    for name in columns:
        key = re.sub(r"[^\w.|/+-]", "_", name) or "_"
        while key in found.values():
            key += "_"
        found[name] = key
    return found


def named_entry(entries: Entries, b: int, name: str, keys: Mapping[str, str], *, whole: bool) -> Named:
    """One entry for a file of `druse.io`, under a name; also what is not known of it if ``whole``.

    Args:
        entries: any.
        b: place of the one.
        name: of it.
        keys: see `file_keys`.
        whole: whether all entries have all facts.
    """
    facts: dict[str, Any] = {"id": on_one_line(name), "file": on_one_line(Path(entries.files[b]).name)}
    for key, column in entries.columns.items():
        value = text_of(column[b])
        if isinstance(value, str):
            value = on_one_line(value)
        elif math.isnan(value):
            value = ""
        elif key in _COUNTS and value.is_integer():
            value = int(value)
        if whole or value != "":
            facts[keys[key]] = value
    return next(named([entries.crystals[b]], [facts]))


def on_one_line(text: str) -> str:
    """Text from outside, and nothing in it that a terminal or a file's format would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def facts_of(said: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Numbers and short texts, by Druse's names."""
    facts: dict[str, Any] = {}
    for name, value in said.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if name in OWN_COLUMNS or len(name) > limits.value or not isinstance(plain, str | int | float):
            continue
        if not isinstance(plain, str):
            facts[writable(name)] = plain
        elif len(plain) <= limits.value:
            facts[writable(name)] = writable(plain)
    for alias, name in ALIASES.items():
        if alias in facts:
            value = facts.pop(alias)
            facts[name] = value if facts.get(name) in (None, "") else facts[name]
    return facts


def columns_of(facts: Sequence[Mapping[str, Any]], limits: Limits) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for one in facts for name in one)
    left, found = limits.texts, dict[str, np.ndarray]()
    for name in itertools.islice(names, limits.columns):
        values = [one.get(name) for one in facts]
        length = max((len(value) for value in values if isinstance(value, str)), default=0)
        column = column_of(values) if length <= left else np.zeros(0)
        if len(column) == len(facts):
            left -= length if column.dtype.kind == "U" else 0
            found[name] = column
    return found


def column_of(values: Sequence[Any]) -> np.ndarray:
    """Numbers where all that is there are numbers, else text."""
    try:
        return np.array([np.nan if value in (None, "") else float(value) for value in values], np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.array(["" if value is None else str(value) for value in values], str)


def numbers_of(column: np.ndarray) -> Float64[np.ndarray, "entries"]:
    """A column as numbers; of text what reads as one, NaN elsewhere: a table may say ``n/a`` in a single row."""
    if column.dtype.kind != "U":
        return column.astype(np.float64)
    found = np.full(len(column), np.nan)
    for k, text in enumerate(column.tolist()):
        with contextlib.suppress(ValueError):
            found[k] = float(text)
    return found


def _bounded(parts: Sequence[Entries]) -> list[str]:
    """Names of columns, without those beyond what entries may have; each part may have brought new ones."""
    left, found = 2 * LIMITS.texts, list[str]()
    for name in itertools.islice(dict.fromkeys(name for part in parts for name in part.columns), 2 * LIMITS.columns):
        lengths = [part.columns[name].dtype.itemsize // 4 for part in parts if _is_text(part, name)]
        if max(lengths, default=0) <= left:
            left -= max(lengths, default=0)
            found.append(name)
    return found


def _is_text(part: Entries, name: str) -> bool:
    return name in part.columns and part.columns[name].dtype.kind == "U"


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
