"""Screening: from many crystals to a short list, by rules, in bounded memory, and on after any interruption.

```
DIR/
  screen.json           what was asked for: rules, sources, models; written first
  pieces/, together/    what rules say of one piece of the sources, or of all together; both go in the end
  verdicts.parquet      a row for each entry, in order: number, id, file, formula, n_atoms, rule, reason, value, columns
  survivors.parquet     the short list, best first where there is a score; a source for the next command
  survivors.extxyz, .cif, .csv
  funnel.json           how many entered, and were refused by, each rule, and why
  seconds.json          that each rule took, in all processes together
```

All files but ``seconds.json`` are the same after an interruption, and for any number of processes.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from druse._asked import SCHEMA, ScreenFile, Used, asked, check_columns, check_unchanged, difference
from druse._columns import append_columns, read_facts
from druse._dependencies import require
from druse._files import read_small, write_json
from druse._folders import asked_in, check_free
from druse._in_memory import Screened, screen
from druse._judge import Judged, Verdict, judge_of
from druse._processes import Processes
from druse._screened import (
    NO_ROWS,
    Funnel,
    Step,
    funnel_of,
    general,
    named_survivors,
    read_outcome,
    write_outcome,
)
from druse._shares import Share, common, working
from druse._together import apply, narrowed
from druse.candidates import LIMITS, PIECE, Entries, Piece, pieces, read_entries, understood, write_entries
from druse.errors import InputError
from druse.io import write_named
from druse.rules import MODELS, READ, RuleSet, kind_of

__all__ = ["Funnel", "ScreenFile", "Screened", "Screening", "Step", "Used", "Verdict", "screen"]

_FILE, _PIECES, _TOGETHER = "screen.json", "pieces", "together"
_VERDICTS, _SURVIVORS, _FUNNEL, _TIMES = "verdicts.parquet", "survivors.parquet", "funnel.json", "seconds.json"
_EXPORTS = ("survivors.extxyz", "survivors.cif", "survivors.csv")
_NONE = dataclasses.replace(LIMITS, columns=1 << 30)  # a source may have as many columns as it may, and rules add some
_OUTCOME = ("number", "rule", "reason", "value")
_STORED = {"number": "f", "rule": "U", "reason": "U", "value": "f", "formula": "U", "n_atoms": "f"}
Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class Screening:
    """The folder of a screening."""

    def __init__(self, path: Path, file: ScreenFile) -> None:
        self.path, self.file = path, file

    @classmethod
    def begin(cls, path: Any, sources: Sequence[Any], rules: RuleSet, *, piece: int = PIECE) -> "Screening":
        """A new screening, of which nothing is done yet; or the one that the folder holds, if it is the same.

        Args:
            path: of a folder that is empty, does not exist, or holds this screening.
            sources: see `druse.candidates.pieces`.
            rules: to judge by.
            piece: entries that are judged together, and lost when the screening is interrupted.

        Raises:
            InputError: the folder is in use, a source cannot be read, or a rule asks for a column that is nowhere.
        """
        place = Path(path)
        if not sources:
            raise InputError("there is nothing to screen; give a run, files or folders of crystals")
        if not 1 <= piece <= 1_000_000:
            raise InputError(f"`piece` must be from 1 to 1,000,000, got {piece}")
        check_free(place, _FILE)
        require("pymatgen.core", "smact", "loky", purpose="screening", extra="screen")
        found = [Path(source).resolve() for source in sources]
        wanted = asked(found, rules, piece)
        if not (place / _FILE).exists():
            check_columns(rules, wanted.models, found)
            wanted = msgspec.structs.replace(wanted, entries=sum(map(len, pieces(found, size=piece))))
            place.mkdir(parents=True, exist_ok=True)
            with common(place):
                if not (place / _FILE).exists():
                    write_json(place / _FILE, wanted)
        begun = cls.open(place)
        if other := difference(begun.file, wanted):
            raise InputError(f"{place} holds a screening with other {other}; ask for the same, or give another folder")
        return begun

    @classmethod
    def open(cls, path: Any) -> "Screening":
        """A screening that exists, finished or not.

        Raises:
            InputError: there is none, or it is of another version of Druse.
        """
        place = Path(path)
        return cls(place, asked_in(place, _FILE, ScreenFile, SCHEMA, what="screening", command="druse screen"))

    @property
    def finished(self) -> bool:
        """Whether all files are there."""
        return all((self.path / name).exists() for name in (_VERDICTS, _SURVIVORS, *_EXPORTS, _FUNNEL, _TIMES))

    @property
    def funnel(self) -> Funnel:
        """What it came to.

        Raises:
            InputError: it is not finished, or the file is damaged.
        """
        try:
            return msgspec.json.decode(read_small(self.path / _FUNNEL), type=Funnel)
        except FileNotFoundError:
            raise InputError(f"{self.path} is not finished; go on with druse resume {self.path}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{self.path / _FUNNEL} cannot be read ({error}); delete it, and {self._again}") from error

    @property
    def seconds(self) -> dict[str, float]:
        """What each rule took, by name, in all processes together; empty if the screening is not finished."""
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgspec.json.decode(read_small(self.path / _TIMES), type=dict[str, float])
        return {}

    def survivors(self) -> Entries:
        """The short list, best first where there is a score.

        Raises:
            InputError: it is not finished.
        """
        if not self.finished:
            raise InputError(f"{self.path} is not finished; go on with druse resume {self.path}")
        return Entries.concatenate(read_entries([self.path / _SURVIVORS]))

    def finish(self, *, n_jobs: int = 0, progress: Report | None = None, cache: Path | None = None) -> Funnel:
        """Do what is missing.

        Args:
            n_jobs: processes; 0 for every core. 1 works in the caller's own, where nothing ends a crystal that hangs.
            progress: see `Report`.
            cache: folder for what is known of a reference; None keeps nothing.

        Raises:
            InputError: another process writes to this folder, a source has changed, or a file is damaged.
        """
        if self.finished:
            self._clear()
            return self.funnel
        report = progress or _silent
        with self._working(None), Processes(n_jobs, purpose="screening") as processes:
            if not self.finished:  # nor by a process that was faster
                self._judge(processes, report, None)
                outcomes, survivors, numbers = self._together(processes, report, cache)
                self._write(outcomes, survivors, numbers, report)
            self._clear()
        return self.funnel

    def judge(self, share: Share, *, n_jobs: int = 0, progress: Report | None = None) -> int:
        """Judge a share of the pieces by the rules that look at one crystal at a time; `finish` does the rest.

        Shares are judged side by side by any number of processes that see the folder and the sources.

        Args:
            share: of the pieces.
            n_jobs: see `finish`.
            progress: see `Report`.

        Returns:
            Entries of the share, all of them judged.

        Raises:
            InputError: another process does the same work, a source has changed, or a file is damaged.
        """
        with self._working(share), Processes(n_jobs, purpose="screening") as processes:
            if self.finished:
                return sum(len(piece) for piece in self._plan(share))
            return self._judge(processes, progress or _silent, share)

    @contextlib.contextmanager
    def _working(self, share: Share | None) -> Iterator[None]:
        """With the right to work, on sources that are what they were, and without what a killed writer left."""
        with working(self.path, share):
            check_unchanged(self.file)
            self._tidy(share)
            yield

    def _clear(self) -> None:
        """Remove what nobody needs when all files are there; a kill may have left it."""
        for name in (_PIECES, _TOGETHER):
            shutil.rmtree(self.path / name, ignore_errors=True)

    @property
    def _again(self) -> str:
        return f"druse resume {self.path}"

    def _piece(self, first: int) -> Path:
        return self.path / _PIECES / f"{first:09d}.parquet"

    def _plan(self, share: Share | None) -> Iterator[Piece]:
        """The pieces of a share, or all."""
        every = enumerate(pieces([used.path for used in self.file.sources], size=self.file.piece))
        return (piece for k, piece in every if share is None or share.has(k))

    def _judge(self, processes: Processes, report: Report, share: Share | None) -> int:
        """Each piece by the rules that look at one crystal at a time; how many entries there are."""
        total, done = sum(map(len, self._plan(share))) if share else self.file.entries, 0

        def missing() -> Iterator[Piece]:
            nonlocal done
            for piece in self._plan(share):
                if self._piece(piece.first).exists():
                    done += len(piece)
                else:
                    yield piece

        work = functools.partial(_judged, self.file.rules, self.file.others, processes.isolated)
        report("judging", 0, total)
        for judged in understood(missing(), processes, work, join=Judged.concatenate):
            self._store(judged)
            done += len(judged.entries)
            report("judging", done, total)
        return total

    def _store(self, judged: Judged) -> None:
        entries = judged.entries
        columns = {
            "number": entries.first + np.arange(len(entries), dtype=np.float64),
            "rule": np.array(judged.rules, str),
            "reason": np.array([verdict.reason for verdict in judged.verdicts], str),
            "value": np.array([verdict.value for verdict in judged.verdicts], np.float64),
            **entries.columns,
        }
        facts = {"seconds": json.dumps(judged.seconds)}
        write_entries(self._piece(entries.first), dataclasses.replace(entries, columns=columns), facts=facts)

    def _stored(self) -> Iterator[Entries]:
        """The judged pieces, in order."""
        for path in sorted((self.path / _PIECES).glob("*.parquet")):
            try:
                part = Entries.concatenate(read_entries([path], limits=_NONE))
            except InputError as error:
                raise InputError(f"{path} is damaged ({error}); delete it, and {self._again}") from error
            kinds = {name: part.columns[name].dtype.kind for name in _STORED if name in part.columns}
            if not path.stem.isdecimal() or kinds != _STORED:
                raise InputError(f"{path} is no piece of this screening; delete it, and {self._again}")
            yield dataclasses.replace(part, first=int(path.stem))

    def _together(
        self, processes: Processes, report: Report, cache: Path | None
    ) -> tuple[dict[str, dict[int, Verdict]], Entries, np.ndarray]:
        """The rules that need all: their verdicts by number, and who is left, with numbers."""
        kept = [part.take(np.flatnonzero(part.columns["rule"] == "")) for part in self._stored()]
        left = Entries.concatenate(kept)
        numbers = left.columns["number"].astype(np.int64) if kept and len(left) else np.zeros(0, np.int64)
        left = dataclasses.replace(
            left, columns={name: column for name, column in left.columns.items() if name not in _OUTCOME}
        )
        found: dict[str, dict[int, Verdict]] = {}
        for k, rule in enumerate(self.file.rules.collective):
            path = self.path / _TOGETHER / f"{k:02d}.parquet"
            if not path.exists():
                clock = time.perf_counter()
                made = apply(rule, left, numbers, processes, functools.partial(report, rule.name), cache)
                write_outcome(path, made, time.perf_counter() - clock)
            outcome = read_outcome(path, f"delete it, and {self._again}")
            found[rule.name] = {int(numbers[place]): verdict for place, verdict in outcome.verdicts.items()}
            left, numbers = narrowed(left, numbers, rule, outcome)
        return found, left, numbers

    def _write(
        self, outcomes: Mapping[str, Mapping[int, Verdict]], left: Entries, numbers: np.ndarray, report: Report
    ) -> None:
        """The files that stay."""
        rules = self.file.rules
        reasons: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in self._kinds}
        report("writing", 0, self.file.entries)
        append_columns(self.path / _VERDICTS, self._rows(outcomes, reasons, report))
        write_entries(self.path / _SURVIVORS, dataclasses.replace(left, first=0))
        for name in _EXPORTS:
            whole = name.endswith(".csv")  # whose rows all have the same columns
            write_named(self.path / name, named_survivors(left, numbers, whole=whole))
        funnel = funnel_of(self.file.entries, self._kinds, reasons)
        seconds: collections.Counter[str] = collections.Counter()
        for path in sorted(self.path.glob(f"{_PIECES}/*.parquet")) + sorted(self.path.glob(f"{_TOGETHER}/*.parquet")):
            facts = json.loads(read_facts(path, f"delete it, and {self._again}")["seconds"])
            seconds.update(facts if isinstance(facts, dict) else {rules.collective[int(path.stem)].name: facts})
        order = dict.fromkeys((*self._kinds, MODELS), 0.0) | dict(seconds)
        for name, content in ((_TIMES, order), (_FUNNEL, funnel)):
            write_json(self.path / name, content)

    @property
    def _kinds(self) -> dict[str, str]:
        """The kind of each step, by its name, in order."""
        return {READ: READ, **{rule.name: kind_of(rule) for rule in self.file.rules.rules}}

    def _rows(
        self,
        outcomes: Mapping[str, Mapping[int, Verdict]],
        reasons: Mapping[str, collections.Counter[str]],
        report: Report,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Columns of ``verdicts.parquet``, piece by piece; counts the reasons on the way."""
        kinds = self._kinds
        late = {number: (name, verdict) for name, found in outcomes.items() for number, verdict in found.items()}
        yield NO_ROWS
        for part in self._stored():
            columns = dict(part.columns)
            number = columns.pop("number").astype(np.int64)
            rule, reason = columns.pop("rule").astype(object), columns.pop("reason").astype(object)
            value = columns.pop("value").copy()
            for b, n in enumerate(number.tolist()):
                if n in late:
                    rule[b], (reason[b], value[b]) = late[n]
                if rule[b]:
                    reasons[rule[b]][general(kinds[rule[b]], reason[b])] += 1
            yield {
                "number": number,
                "id": np.array(part.ids, str),
                "file": np.array(part.files, str),
                "formula": columns.pop("formula"),
                "n_atoms": columns.pop("n_atoms").astype(np.int64),
                "rule": rule.astype(str),
                "reason": reason.astype(str),
                "value": value,
                **columns,
            }
            report("writing", int(number[-1]) + 1, self.file.entries)

    def _tidy(self, share: Share | None) -> None:
        """Remove what a killed writer left unfinished of a share; other shares' processes may be writing."""
        parts = list(self.path.glob("**/.*.part"))
        if parts and share is not None:
            own = tuple(f".{piece.first:09d}.parquet." for piece in self._plan(share))
            parts = [part for part in parts if part.name.startswith(own)]
        for part in parts:
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)


def _judged(rules: RuleSet, models: tuple[Used, ...], isolated: bool, entries: Entries) -> Judged:
    return judge_of(rules, models)(entries, isolated=isolated)


def _silent(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""
