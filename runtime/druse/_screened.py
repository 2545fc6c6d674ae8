"""What the folder of a screening holds, as values."""

import collections
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from druse._columns import read_columns, write_columns
from druse._entries import named_entry
from druse._files import is_hollow
from druse._judge import Verdict
from druse._together import Outcome
from druse.candidates import Entries, pieces, understand
from druse.errors import InputError
from druse.io import Named
from druse.rules import RuleSet

_SHOWN = 20
"""Reasons of a rule that the funnel lists, the most frequent; the rest are counted together."""


class Used(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file or folder that a screening read.

    Attributes:
        path: absolute.
        sha256: of its content; of a folder, of its files' names and contents.
    """

    path: str
    sha256: str


class ScreenFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``screen.json``.

    Attributes:
        schema: version of the folder's format.
        sources: of the crystals, in order.
        rules: in the order in which they are applied.
        models: columns that the property models give.
        others: models and references that the rules name.
        entries: of all sources together.
        piece: entries of a piece.
        versions: of what took part when the screening began.
        created: when, UTC.
    """

    schema: int
    sources: tuple[Used, ...]
    rules: RuleSet
    models: tuple[str, ...]
    others: tuple[Used, ...]
    entries: int
    piece: int
    versions: dict[str, str]
    created: str


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


def same(a: ScreenFile, b: ScreenFile) -> bool:
    """Whether both ask for the same; versions and times do not count."""
    return msgspec.structs.replace(a, versions=b.versions, created=b.created) == b


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content; of a folder, of the names and contents of the files that it and its folders hold.

    Raises:
        InputError: it does not exist.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run, or a file or folder of crystals")
    if path.is_file():
        if is_hollow(path):
            return f"{path.stat().st_size} bytes that are not stored"
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    found = hashlib.sha256()
    for part in _files(path):
        try:
            content = digest_of(part)
        except (OSError, InputError):  # as it may not be read, it is an entry with a failure
            content = "cannot be read"
        found.update(f"{part.relative_to(path)}\0{content}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (part for part in sorted(folder.rglob("*")) if part.is_file() and not part.name.startswith("."))


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


def general(reason: str) -> str:
    """A reason without what is particular to one crystal, to be counted by."""
    for start in ("the same as", "known", "no space group"):
        if reason.startswith(start):
            return {"the same as": "the same as an earlier one", "known": "in the reference"}.get(start, start)
    return reason


def shortened(counts: collections.Counter[str]) -> dict[str, int]:
    """The most frequent reasons, and how many others there are."""
    found = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN])
    if more := counts.total() - sum(found.values()):
        found["others"] = more
    return found


def check_columns(rules: RuleSet, models: Sequence[str], sources: Sequence[Path]) -> None:
    """Rules ask for columns that are somewhere: of a property model, or in the first entry of a source.

    Raises:
        InputError: one is nowhere.
    """
    known = dict.fromkeys(name for name in models if "|" not in name)
    known |= dict.fromkeys(("n_atoms", "volume_per_atom", "nearest_distance", "spacegroup"))
    for source in sources:
        for piece in pieces([source], size=1):
            known |= dict.fromkeys(understand(piece).columns)
            break
    for name in rules.columns:
        if name not in known and name.removesuffix("_std") not in known:
            raise InputError(
                f"a rule asks for {name!r}, which no model gives and no source has; there are {', '.join(known)}"
            )


def named_survivor(entries: Entries, numbers: np.ndarray, b: int, *, whole: bool) -> Named:
    """One survivor for a file, with a name that no other has; also what is not known of it if ``whole``."""
    name = entries.ids[b]
    return named_entry(entries, b, f"{name}_{numbers[b]}" if entries.ids.count(name) > 1 else name, whole=whole)
