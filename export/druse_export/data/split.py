"""Training, validation and test parts: which rows go where, and the rows themselves as files."""

import contextlib
import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from druse._files import whole_file
from druse._rows import read_records
from druse.errors import InputError
from druse.tables import CrystalTable

SHARES = (0.8, 0.1, 0.1)
"""Of training, validation and test (section 3 of the paper: 8 : 1 : 1)."""

NAMES = ("train.csv", "val.csv", "test.csv")


def split_indices(n: int, seed: int, shares: Sequence[float] = SHARES) -> list[np.ndarray]:
    """Places 0 to n - 1 in random parts of the given shares, each in ascending order; the same for the same seed."""
    order = np.random.default_rng(seed).permutation(n)
    ends = np.round(np.cumsum([0.0, *shares]) / sum(shares) * n).astype(int)
    return [np.sort(order[a:b]) for a, b in itertools.pairwise(ends)]


def split_table(table: CrystalTable, seed: int, shares: Sequence[float] = SHARES) -> tuple[CrystalTable, ...]:
    """Random parts of the given shares (section 3: 8 : 1 : 1); the same for the same seed."""
    return tuple(table.select(indices) for indices in split_indices(len(table), seed, shares))


def split_file(path: Path, folder: Path, *, seed: int = 0, force: bool = False) -> dict[str, int]:
    """Write the rows of a data set, as they are, to ``train.csv``, ``val.csv`` and ``test.csv``.

    Structures are not looked at: a row that cannot be understood falls where it falls, and is reported when its part is
    loaded. Where all can be, the parts are those of `split_table`. Files appear whole or not at all.

    Args:
        path: a CSV or Parquet file, or a folder of CIF.
        folder: for the three files.
        seed: of the permutation.
        force: replace files that are there.

    Returns:
        Rows by file.

    Raises:
        InputError: a file is there already, or the set is unreadable or too small.
    """
    targets = [folder / name for name in NAMES]
    for target in targets:
        if target.exists() and path.exists() and target.samefile(path):
            raise InputError(f"{path} would be replaced by a part of itself; give another folder")
        if target.exists() and not force:
            raise InputError(f"{target} is there already; give another folder, or --force to replace it")
    _, records = read_records(path)
    parts = split_indices(sum(1 for _ in records), seed)
    if not all(map(len, parts)):
        raise InputError(f"{path} has {sum(map(len, parts))} rows, too few for parts of 8 : 1 : 1; 10 are enough")
    place = np.empty(sum(map(len, parts)), np.int8)
    for part, indices in enumerate(parts):
        place[indices] = part
    header, records = read_records(path)
    with contextlib.ExitStack() as stack:
        writers: list[Any] = [
            csv.writer(stack.enter_context(whole_file(target, newline="", encoding="utf-8")), lineterminator="\n")
            for target in targets
        ]
        for writer in writers:
            writer.writerow(header)
        _write(records, writers, place)
    return {name: len(indices) for name, indices in zip(NAMES, parts, strict=True)}


def _write(records: Iterator[list[Any]], writers: list[Any], place: np.ndarray) -> None:
    for part, record in zip(place, records, strict=True):
        writers[part].writerow(record)
