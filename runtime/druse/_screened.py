"""What a screening came to, as values and in files."""

import collections
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from druse._columns import read_columns, write_columns
from druse._entries import file_keys, named_entry, on_one_line
from druse._judge import Verdict
from druse._together import Outcome
from druse.candidates import Entries
from druse.errors import InputError
from druse.io import Named, plain_name

_PARTICULAR = {
    "unique": ("the same as", "the same as an earlier one"),
    "novel": ("known", "in the reference"),
    "symmetry": ("no space group", "no space group"),
}
"""Kinds whose reasons begin so where they say something of one crystal, and what that is for all."""
_SHOWN = 20
"""Reasons of a rule that the funnel lists, the most frequent; the rest are counted together."""


NO_ROWS = {
    name: np.zeros(0, kind)
    for kind, names in ((np.int64, ("number",)), (str, ("id", "file", "formula")), (np.int64, ("n_atoms",)),
                        (str, ("rule", "reason")), (np.float64, ("value",)))
    for name in names
}  # fmt: skip
"""Columns of ``verdicts.parquet`` that stand before others, also where there are no entries."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of a funnel; the first one, ``read``, is whether an entry is a crystal at all.

    Attributes:
        name, kind: of the rule.
        entered, refused, passed: how many.
        reasons: how many were refused for what reason, the most frequent first.
    """

    name: str
    kind: str
    entered: int
    refused: int
    passed: int
    reasons: dict[str, int]


class Funnel(msgspec.Struct, frozen=True, kw_only=True):
    """What a screening came to.

    Attributes:
        entries: of all sources.
        rules: in order.
        survivors: how many.
    """

    entries: int
    rules: tuple[Step, ...]
    survivors: int


def write_outcome(path: Path, outcome: Outcome, seconds: float) -> None:
    """What a rule that needs all crystals said, as a file that appears whole or not at all."""
    places = np.array([*outcome.verdicts, *outcome.scores], np.int64)
    verdicts = [*outcome.verdicts.values(), *(Verdict("", score) for score in outcome.scores.values())]
    columns = {
        "place": places,
        "reason": np.array([verdict.reason for verdict in verdicts], str),
        "value": np.array([verdict.value for verdict in verdicts], np.float64),
    }
    write_columns(path, columns, {"seconds": json.dumps(seconds)})


def read_outcome(path: Path, advice: str) -> Outcome:
    """What `write_outcome` wrote.

    Raises:
        InputError: it is damaged.
    """
    columns = read_columns(path, advice)
    try:
        rows = list(zip(*(columns[name].tolist() for name in ("place", "reason", "value")), strict=True))
    except (KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is not of this screening ({error}); {advice}") from error
    verdicts = {place: Verdict(reason, math.nan if value is None else value) for place, reason, value in rows if reason}
    return Outcome(verdicts, {place: value for place, reason, value in rows if not reason})


def general(kind: str, reason: str) -> str:
    """A reason of a kind of rule without what is particular to one crystal, to be counted by."""
    start, what = _PARTICULAR.get(kind, ("", reason))
    return what if reason.startswith(start) else reason


def funnel_of(entries: int, kinds: Mapping[str, str], reasons: Mapping[str, collections.Counter[str]]) -> Funnel:
    """A funnel, from the kind of each step and how many were refused there for what reason, by its name."""
    left, steps = entries, []
    for name, kind in kinds.items():
        refused = reasons[name].total()
        shown = _shortened(reasons[name])
        steps.append(Step(name=name, kind=kind, entered=left, refused=refused, passed=left - refused, reasons=shown))
        left -= refused
    return Funnel(entries=entries, rules=tuple(steps), survivors=left)


def _shortened(counts: collections.Counter[str]) -> dict[str, int]:
    """The most frequent reasons, and how many others there are."""
    found = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN])
    if more := counts.total() - sum(found.values()):
        found["others"] = more
    return found


def named_survivors(entries: Entries, numbers: np.ndarray, *, whole: bool) -> Iterator[Named]:
    """Survivors for a file, each with a name that no other has; also what is not known of one if ``whole``."""
    keys = file_keys(entries.columns)
    for b, name in enumerate(_distinct_names([on_one_line(name) for name in entries.ids], numbers)):
        yield named_entry(entries, b, name, keys, whole=whole)


def _distinct_names(names: Sequence[str], numbers: np.ndarray) -> Iterator[str]:
    """Names that files tell apart, also where they write fewer signs; one that repeats is followed by its number."""
    counts = collections.Counter(map(plain_name, names))
    taken = {key for key, count in counts.items() if key and count == 1}
    for name, number in zip(names, numbers.tolist(), strict=True):
        if plain_name(name) not in taken:
            name = f"{name}_{number}"
            while plain_name(name) in taken:
                name += "_"
            taken.add(plain_name(name))
        yield name
