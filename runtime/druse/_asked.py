"""What a screening is asked for, and whether it can be answered."""

import datetime as dt
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from druse._files import is_hollow
from druse._folders import versions_of
from druse._judge import COMPUTED, column_names, in_results, open_models
from druse._processes import Processes
from druse.candidates import Entries, files_of, pieces, understood
from druse.errors import InputError
from druse.rules import GeometryRule, NovelRule, PropertyRule, RuleSet, SymmetryRule, TopKRule

SCHEMA = 1
_PACKAGES = ("moyopy", "numpy", "onnxruntime", "onnxruntime-gpu", "pymatgen", "pymatgen-core", "smact", "spglib")
_FIRST = 256
"""Entries of a source that are looked into for the names of its columns, at most."""


class Used(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file or folder that a screening read.

    Attributes:
        path: absolute.
        sha256: of its content; of a folder, of the names and contents of the files that are read.
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


def asked(sources: Sequence[Path], rules: RuleSet, piece: int) -> ScreenFile:
    """What is asked for; how many entries there are is not counted.

    Raises:
        InputError: a source, a model or a reference does not exist or cannot be opened.
    """
    references = [rule.reference for rule in rules.rules if isinstance(rule, NovelRule)]
    for reference in references:
        next(pieces([reference], size=1), None)  # before all of it is read
    return ScreenFile(
        schema=SCHEMA,
        sources=tuple(Used(path=str(source), sha256=_digest_of(source)) for source in sources),
        rules=rules,
        models=column_names(open_models(rules)),
        others=tuple(
            Used(path=other, sha256=_digest_of(Path(other))) for other in dict.fromkeys([*rules.models, *references])
        ),
        entries=0,
        piece=piece,
        versions=versions_of(*_PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def difference(a: ScreenFile, b: ScreenFile) -> str:
    """What two requests do not share, in words; empty where it is nothing, versions, times and counts aside."""
    for name, title in (("sources", "sources, or other content of them"), ("rules", "rules"),
                        ("models", "property models"), ("others", "content of models or references"),
                        ("piece", "size of a piece")):  # fmt: skip
        if getattr(a, name) != getattr(b, name):
            return title
    return ""


def check_unchanged(file: ScreenFile) -> None:
    """What a screening reads is what it was.

    Raises:
        InputError: something has changed.
    """
    for used in (*file.sources, *file.others):
        if _digest_of(Path(used.path)) != used.sha256:
            raise InputError(f"{used.path} has changed since the screening began; give another folder")


def _digest_of(path: Path) -> str:
    """SHA-256 of a file's content; of a folder, of the names and contents of the files in it that are read."""
    files = sorted(_files(path)) if (path / "manifest.json").is_file() else files_of(path)
    if files == [path]:
        return _hash(path)
    found = hashlib.sha256()
    for file in files:
        try:
            content = _hash(file)
        except OSError:  # as it may not be read, it is an entry with a failure
            content = "cannot be read"
        found.update(f"{file.relative_to(path)}\0{content}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _hash(path: Path) -> str:
    if is_hollow(path):
        return f"{path.stat().st_size} bytes that are not stored"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(bundle: Path) -> Iterator[Path]:
    return (part for part in bundle.rglob("*") if part.is_file())


def check_columns(rules: RuleSet, models: Sequence[str], sources: Sequence[Path]) -> None:
    """Rules ask for columns that are known when they are applied: by a model or rule, or by the first of a source.

    Args:
        rules: of the screening.
        models: columns that the property models give.
        sources: of the crystals; where they have no entries, nothing is asked for.

    Raises:
        InputError: one is nowhere.
    """
    known = {*models, "n_atoms", "volume_per_atom"}
    missing: list[str] = []
    for rule in rules.rules:
        terms = rule.score if isinstance(rule, TopKRule) else (rule,) if isinstance(rule, PropertyRule) else ()
        for term in terms:
            missing += [name for name in (term.column, term.target) if isinstance(name, str) and name not in known]
        known |= {"nearest_distance"} if isinstance(rule, GeometryRule) else set()
        known |= {"spacegroup"} if isinstance(rule, SymmetryRule) else set()
    if not missing:
        return
    said, empty = dict[str, None](), True
    for entries in _first_entries(sources):
        empty = False
        for name in entries.columns:
            if name not in COMPUTED:
                said[in_results(name)] = None
                said |= dict.fromkeys([f"source_{name}"] if name in known else [])
        missing = [name for name in missing if name not in said]
        if not missing:
            return
    if not empty:
        there = dict.fromkeys((*(name for name in models if "|" not in name), "n_atoms", "volume_per_atom", *said))
        raise InputError(
            f"a rule asks for {missing[0]!r}, which no model gives and no source has; there are {', '.join(there)}"
            + _COMES.get(missing[0], "")
        )


_COMES = {
    "nearest_distance": "; nearest_distance comes with a rule of kind 'geometry'",
    "spacegroup": "; spacegroup comes with a rule of kind 'symmetry', which is applied after those of kind 'property'",
}


def _first_entries(sources: Sequence[Path]) -> Iterator[Entries]:
    """Of each source, a few at a time; those that must be understood, which may take what they like, in a process."""
    with Processes(1, purpose="looking into the sources", isolated=True) as processes:
        for source in sources:
            few = itertools.islice(pieces([source], size=16), _FIRST // 16)
            for piece in few:
                yield piece.rows if isinstance(piece.rows, Entries) else next(understood([piece], processes))
