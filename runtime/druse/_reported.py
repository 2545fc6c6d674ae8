"""What a report is about: the folders of runs, screenings, relaxations and DFT, read as stages of one kind."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from druse._columns import read_columns
from druse._files import read_small
from druse._manifest import in_one_line
from druse.candidates import Entries, read_entries
from druse.control import Control
from druse.crystals import Crystals
from druse.elements import SYMBOLS
from druse.errors import InputError
from druse.runs import Run

Kind = Literal["run", "screen", "relax", "dft"]

KINDS: dict[Kind, str] = {"run": "generated", "screen": "screened", "relax": "relaxed", "dft": "DFT"}
_TABLES: dict[Kind, str] = {"screen": "survivors.parquet", "relax": "relaxed.parquet", "dft": "dft.parquet"}
_LONGEST_FACT = 600
_NO_FACTS = ("schema", "piece", "created")


@dataclasses.dataclass(frozen=True, eq=False)
class RuleCount:
    """A rule of the funnel."""

    name: str
    kind: str
    entered: int
    passed: int
    refused: int
    reasons: tuple[tuple[str, int], ...]
    seconds: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One folder.

    Attributes:
        kind: of what it holds.
        path: of it.
        facts: what was asked for and what with, to be shown.
        rows: every entry: ids, and columns of one row each. Of a screening also those that a rule refused.
        survived: ``[rows]`` which of them the stage passed on.
        crystals: what it passed on, in its order.
        funnel: the rules of a screening.
        seconds: of a screening, by what they were spent on.
        n_entries: what it began with.
    """

    kind: Kind
    path: Path
    facts: tuple[tuple[str, str], ...]
    rows: Mapping[str, np.ndarray]
    survived: np.ndarray
    crystals: Entries
    funnel: tuple[RuleCount, ...] = ()
    n_entries: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the folder."""
        return in_one_line(self.path.resolve().name)


def read_stage(path: Any) -> Stage:
    """The folder of a command of ours.

    Raises:
        InputError: it is none, or has nothing in it yet, or a file of it is damaged.
    """
    place = Path(path)
    if (place / "run.json").is_file():
        return _run(place)
    for kind, table in _TABLES.items():
        if (place / f"{kind}.json").is_file():
            return _table(kind, place, place / table)
    raise InputError(
        f"{place} holds no run.json, screen.json, relax.json or dft.json; give the folder of druse generate, screen, "
        "relax or dft"
    )


def sources_of(stage: Stage) -> set[Path]:
    """The folders that the crystals of a stage are from, as far as they are known."""
    return {Path(file).resolve() for file in set(stage.crystals.files) | set(map(str, stage.rows.get("file", ())))}


def formula_of_crystal(crystal: Crystals) -> str:
    """The reduced formula of a batch of one, metals first: ``TiO2``."""
    from ase.formula import Formula

    counts: dict[str, int] = {}
    for z in crystal.species:
        symbol = SYMBOLS[z - 1] if z else "X"
        counts[symbol] = counts.get(symbol, 0) + 1
    reduced = Formula.from_dict(counts).reduce()[0]
    return str(reduced.format("metal"))


def _run(place: Path) -> Stage:
    run = Run.open(place)
    entries = Entries.concatenate(read_entries([place]))
    if not len(entries):
        raise InputError(f"no crystal of {place} is finished; go on with druse resume {place}")
    good = entries.take(np.flatnonzero(entries.ok))
    request, bundle = run.request, run.file.bundle
    asked = {
        "targets": _named(request.targets) or "none",
        "crystals asked for": f"{request.count:,}",
        "finished": f"{len(entries):,}, of which {len(good):,} good",
        "control": _control(request.control),
        "strategy": request.strategy,
        "schedule": f"{request.schedule.method}, {request.schedule.most_evaluations(run.file.n_levels):,} evaluations",
        "latents drawn for each crystal": f"{request.oversample:,}",
        "seed": str(request.seed),
        "bundle": f"{bundle.name}, SHA-256 {bundle.sha256[:12]}",
        "backend": f"{run.file.backend}, {run.file.precision}",
        "versions": _named(run.file.versions),
        "made": _moment(run.file.created),
    }
    rows = _rows_of(good)
    return Stage("run", place, _facts(asked), rows, np.ones(len(good), bool), good, (), request.count)


def _control(control: Control) -> str:
    said = {name: value for name, value in msgspec.to_builtins(control).items() if value}
    if control.n_atoms is not None:
        said["n_atoms"] = " to ".join(map(str, dict.fromkeys(control.n_atoms)))
    return _named(said)


def _table(kind: Kind, place: Path, path: Path) -> Stage:
    if kind == "dft" and not path.is_file():
        path = place / "index.parquet"  # inputs, of which nothing is collected yet
    if not path.is_file():
        raise InputError(f"{place} has no {path.name} yet; let its command finish (druse {kind}), then report")
    entries = Entries.concatenate(read_entries([path]))
    good = entries.take(np.flatnonzero(entries.ok)) if kind == "screen" else entries
    said = _json(place / f"{kind}.json")
    asked = {key: _plain(value) for key, value in said.items() if value and key not in _NO_FACTS}
    rules = said.get("rules")
    if isinstance(rules, dict) and "rules" in rules:
        asked["rules"] = _plain(rules["rules"])
    models = said.get("models")
    if isinstance(models, list):
        asked["models"] = ", ".join(in_one_line(name) for name in models if isinstance(name, str) and "|" in name)
    asked["made"] = _moment(said.get("created"))
    rows, survived = _rows_of(good), np.ones(len(good), bool)
    verdicts = place / "verdicts.parquet"
    if kind == "screen" and verdicts.is_file():
        rows = {
            name: column
            for name, column in read_columns(verdicts, f"run druse screen into {place} again").items()
            if isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "fiubU"
        }
        missing = {"id", "rule"} - set(rows)
        if missing:
            raise InputError(f"{verdicts} lacks the columns {', '.join(sorted(missing))}; screen again")
        survived = rows["rule"] == ""
    if kind != "screen":
        return Stage(kind, place, _facts(asked), rows, survived, good, (), len(entries))
    seconds = _seconds(place)
    funnel, n_entries = _funnel(place, len(rows["id"]), seconds)
    return Stage(kind, place, _facts(asked), rows, survived, good, funnel, n_entries, seconds)


def _rows_of(entries: Entries) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {
        "id": np.array(entries.ids, str),
        "file": np.array(entries.files, str),
        "failure": np.array(entries.failures, str),
        "n_atoms": entries.crystals.n_atoms.astype(np.float64),
    }
    return {**rows, **entries.columns}


def _funnel(place: Path, n_rows: int, seconds: Mapping[str, float]) -> tuple[tuple[RuleCount, ...], int]:
    path = place / "funnel.json"
    if not path.is_file():
        return (), n_rows
    found = _json(path)
    try:
        rules = tuple(
            RuleCount(
                in_one_line(rule["name"]),
                in_one_line(rule.get("kind", "")),
                int(rule["entered"]),
                int(rule["passed"]),
                int(rule["refused"]),
                tuple(
                    sorted(
                        ((in_one_line(reason), int(n)) for reason, n in rule.get("reasons", {}).items()),
                        key=lambda pair: (-pair[1], pair[0]),
                    )
                ),
                seconds.get(in_one_line(rule["name"])),
            )
            for rule in found["rules"]
        )
        return rules, int(found["entries"])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path} is not what druse screen writes ({error!r}); screen again") from error


def _seconds(place: Path) -> dict[str, float]:
    path = place / "seconds.json"
    found = _json(path) if path.is_file() else {}
    return {in_one_line(name): float(value) for name, value in found.items() if isinstance(value, int | float)}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_small(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({in_one_line(error)}); run its command again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold an object, got {in_one_line(found)}; run its command again")
    return found


def _facts(asked: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((in_one_line(key).replace("_", " "), value) for key, value in asked.items() if value)


def _plain(value: Any) -> str:
    """What stands in a file of ours, for people: empty things say nothing."""
    if isinstance(value, Mapping) and "path" in value:  # a file, and its digest
        return Path(str(value["path"])).name
    if isinstance(value, Mapping) and "kind" in value:
        rest = _plain({key: entry for key, entry in value.items() if key not in ("kind", "name")})
        return f"{value.get('name') or value['kind']}{f' ({rest})' if rest else ''}"
    if isinstance(value, Mapping):
        return _named({key: entry for key, entry in value.items() if entry or entry == 0})
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _cut("; ".join(filter(None, map(_plain, value))))
    if isinstance(value, float):
        return f"{value:g}".replace("-", "−")
    return "" if value is None or value is False else _cut(str(value))


def _named(values: Mapping[str, Any]) -> str:
    words = {str(key).replace("_", " "): "" if value is True else _plain(value) for key, value in values.items()}
    return _cut(", ".join(f"{key} {text}".strip() for key, text in words.items()))


def _moment(value: Any) -> str:
    """A time in UTC, as people write it."""
    return _plain(value).removesuffix("+00:00").replace("T", " ") + " UTC" if value else ""


def _cut(text: str) -> str:
    line = "".join(c if c.isprintable() else "?" for c in text[: _LONGEST_FACT + 1])
    return line if len(line) <= _LONGEST_FACT else f"{line[:_LONGEST_FACT]}..."
