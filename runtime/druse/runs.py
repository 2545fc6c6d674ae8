"""Run directories: a run that is stored as it goes, and goes on after any interruption.

```
RUN/
  run.json            what was asked for, of which bundle, with what; written first
  ranking.parquet     while latents are ranked: the best so far; then it goes
  latents.parquet     the chosen latents, best first
  shards/00000.parquet ...   crystals; each file appears whole or not at all
  crystals.extxyz, crystals.cif   the good ones, when all are finished
```

One writer at a time, or any number that share the work: locks that go with their processes. Reading needs none.
"""

import collections
import contextlib
import functools
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from druse._files import whole_file, write_json
from druse._folders import asked_in, check_free
from druse._ranked import grouped_columns, read_ranked, read_ranking, write_ranked, write_ranking
from druse._request import Generated, Progress, Ranked, Report, Request
from druse._run_file import SCHEMA, RunFile, UsedBundle, differences, run_file
from druse._shares import Share, common, working
from druse._stored import read_shard, shard_of
from druse.crystals import Crystals
from druse.errors import InputError
from druse.generate import Generator
from druse.io import Named, named, text_of, write_named
from druse.strategies import RangeWarning

__all__ = ["Run", "RunFile", "Share", "Summary", "UsedBundle"]

_RUN, _RANKING, _LATENTS, _SHARDS = "run.json", "ranking.parquet", "latents.parquet", "shards"
_PIECE = 32_768
"""Latents after which the ranking is stored; or as many as the run has crystals, if that is more to write."""
_EXPORTS = ("crystals.extxyz", "crystals.cif")


Elsewhere = Callable[[Generator, Sequence[int], Ranked, Report | None], Iterator[tuple[int, Any]]]
"""Computes shards, given by number: each one's number and the bytes of its file, in any order, as they are finished."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to.

    Attributes:
        count: crystals asked for.
        finished: those that are stored.
        good: of them, without a failure.
        changed: share of the finished crystals in which the control made a difference, by what it changed.
        predicted: by property, mean of what the Predictor says of the finished ones.
        seconds: by stage, of this process: ``latents``, ``crystals``, ``files``.
    """

    count: int
    finished: int
    good: int
    changed: dict[str, float]
    predicted: dict[str, float]
    seconds: dict[str, float]


class Run:
    """A run directory."""

    def __init__(self, path: Path, file: RunFile) -> None:
        self.path, self.file = path, file
        self.request = file.request

    @classmethod
    def create(cls, path: Any, generator: Generator, request: Request) -> "Run":
        """A new run, of which nothing is computed yet.

        Args:
            path: of a folder that is empty or does not exist.
            generator: whose bundle and backend it shall have.
            request: what is asked for.

        Raises:
            InputError: the folder is in use, or the request cannot be met.
        """
        place = Path(path)
        if (place / _RUN).exists():
            raise _in_use(place)
        file = run_file(generator, request)
        if not _begun(place, file):  # by another process, since it was looked for above
            raise _in_use(place)
        return cls(place, file)

    @classmethod
    def begin(cls, path: Any, generator: Generator, request: Request) -> "Run":
        """A new run; or the one that the folder holds, if it is the same. Any number of processes may come at once.

        Args:
            path: of a folder that is empty, does not exist, or holds this run.
            generator: see `create`.
            request: see `create`.

        Raises:
            InputError: the folder is in use, it holds another run, or the request cannot be met.
        """
        place, file = Path(path), run_file(generator, request)
        if (place / _RUN).exists() or not _begun(place, file):
            run = cls.open(place)
            if others := differences(run.file, file):
                raise InputError(f"{place} holds a run with {others}; give what it was begun with, or another folder")
            return run
        return cls(place, file)

    @classmethod
    def open(cls, path: Any) -> "Run":
        """A run that exists, finished or not.

        Raises:
            InputError: there is none, or it is of another version of Druse.
        """
        place = Path(path)
        return cls(place, asked_in(place, _RUN, RunFile, SCHEMA, what="run", command="druse generate"))

    def generator(self, *, bundle: Any = None, n_threads: int = 0, devices: Sequence[str] = ()) -> Generator:
        """What goes on with the run: its bundle, on its backend.

        Args:
            bundle: where the bundle is now; None: where it was.
            n_threads: 0 for every core.
            devices: of the backend, any that there are now; none: the first.

        Raises:
            InputError: the bundle is not the one that the run began with.
        """
        used = self.file.bundle
        place = bundle if bundle is not None else used.path or None
        generator = Generator(
            place, backend=self.file.backend, precision=self.file.precision, n_threads=n_threads, devices=devices
        )
        if generator.bundle.digest != used.sha256:
            raise InputError(
                f"{self.path} was begun with another bundle than {generator.bundle.name} (SHA-256 "
                f"{used.sha256[:12]}..., not {generator.bundle.digest[:12]}...); give it with --bundle"
            )
        return generator

    def finish(
        self,
        generator: Generator,
        *,
        share: Share | None = None,
        elsewhere: Elsewhere | None = None,
        progress: Report | None = None,
    ) -> Summary:
        """Compute what is missing, and write the two files of crystals; or compute what is missing of a share.

        Args:
            generator: of this run's bundle, on its backend.
            share: of the shards; shares are computed side by side by any number of processes that see the folder, and
                the files of crystals are written by the call without one. None: all shards.
            elsewhere: computes shards instead of this process; `druse.campaign` has one.
            progress: told how far the work is.

        Returns:
            What the run, or the share, came to.

        Raises:
            InputError: another process does the same work, or a file of the run is damaged.
        """
        model = generator.model
        own = (self.file.bundle.sha256, self.file.backend, self.file.precision)
        if own != (generator.bundle.digest, model.backend.name, model.backend.precision):
            raise InputError(f"{self.path} was begun with another bundle, backend or precision; use `Run.generator`")
        seconds = {}
        with working(self.path, share):
            if Run.open(self.path).file != self.file:
                raise InputError(f"{self.path} holds another run by now; open it again")
            clock = time.perf_counter()
            ranked = self._latents(generator, progress)
            seconds["latents"] = time.perf_counter() - clock
            clock = time.perf_counter()
            self._tidy(share)
            present = self._present()
            missing = [k for k in self._numbers(share) if k not in present]
            if missing:
                if progress is not None:
                    shards = self.shards
                    progress(Progress("crystals", 0.0, sum(len(shards[k]) for k in missing)))
                for k, content in (elsewhere or self._computed)(generator, missing, ranked, progress):
                    with whole_file(self._shard(k), "wb") as file:
                        file.write(content)
            seconds["crystals"] = time.perf_counter() - clock
            clock = time.perf_counter()
            for name in _EXPORTS if share is None else ():
                if missing or not (self.path / name).exists():
                    self.export(self.path / name)
            seconds["files"] = time.perf_counter() - clock
        return self.summary(seconds, share=share)

    @property
    def shards(self) -> Sequence[range]:
        """The crystals of each shard, by number."""
        return self.request.shards(self.file.n_levels)

    @property
    def finished(self) -> int:
        """Crystals that are stored."""
        shards = self.shards
        return sum(len(shards[k]) for k in self._present())

    @property
    def files(self) -> list[Path]:
        """Those that `generated` reads, in order: what was asked for, and the finished shards."""
        return [self.path / _RUN, *map(self._shard, sorted(self._present()))]

    def generated(self, *, share: Share | None = None) -> Iterator[Generated]:
        """The finished shards, of a share or of all, in order; failed crystals among them."""
        shards, wanted = self.shards, self._numbers(share)
        for k in sorted(self._present()):
            if k in wanted:
                yield read_shard(self._shard(k), shards[k], self._advice)

    def crystals(self) -> Crystals:
        """Every finished crystal that did not fail."""
        return Crystals.concatenate(part.take(np.flatnonzero(part.ok)) for part in self.generated())

    def export(self, path: Any, *, format: str = "") -> int:  # noqa: A002
        """Write the finished crystals that did not fail to a file; how many they are. See `druse.io.write_crystals`."""
        return self.exported(path, format=format)[0]

    def exported(self, path: Any, *, format: str = "") -> tuple[int, int]:  # noqa: A002
        """As `export`: how many crystals were written, and how many had failed, of those that were stored then."""
        written, failed = 0, 0

        def good() -> Iterator[Named]:
            nonlocal written, failed
            for part in self.generated():
                some = part.take(np.flatnonzero(part.ok))
                failed += len(part) - len(some)
                for one in named(some, self._facts(some)):
                    written += 1
                    yield one

        write_named(path, good(), format)
        return written, failed

    def summary(self, seconds: Mapping[str, float] | None = None, *, share: Share | None = None) -> Summary:
        """What has been made so far, of a share or of all."""
        shards, numbers = self.shards, self._numbers(share)
        finished, good, sums = 0, 0, collections.defaultdict[str, float](float)
        for part in self.generated(share=share):
            finished, good = finished + len(part), good + int(part.ok.sum())
            for name, column in part.columns.items():
                if name.startswith(("changed_", "predicted_")) and column.ndim == 1:
                    sums[name] += float(column.sum(dtype=np.float64))
        means = {name: total / finished for name, total in sums.items()}
        changed = grouped_columns(means, "changed_") if self.request.control else {}
        return Summary(
            # all are as large as the first but the last of the run
            count=len(numbers) * len(shards[0]) - (len(shards) - 1 in numbers) * (len(shards[0]) - len(shards[-1])),
            finished=finished,
            good=good,
            changed=changed,
            predicted=grouped_columns(means, "predicted_"),
            seconds=dict(seconds or {}),
        )

    def _facts(self, crystals: Generated) -> list[dict[str, Any]]:
        """What is said of each crystal in a file."""
        scalars = {name: column for name, column in crystals.columns.items() if column.ndim == 1}
        fixed: dict[str, Any] = {"seed": self.request.seed}
        fixed |= {f"target_{name}": value for name, value in self.request.targets.items()}
        return [
            {"id": int(number), **fixed, **{name: text_of(column[b]) for name, column in scalars.items()}}
            for b, number in enumerate(crystals.ids)
        ]

    def _latents(self, generator: Generator, progress: Report | None) -> Ranked:
        path, count = self.path / _LATENTS, self.request.count
        if not path.exists():
            with common(self.path, functools.partial(self._watched, progress)):
                self._tidy_folder()
                if not path.exists():  # nor made by a process that was waited for
                    facts = {"druse": self.file.versions.get("druse", "")}
                    write_ranked(path, self._ranked(generator, facts, progress), facts)
                (self.path / _RANKING).unlink(missing_ok=True)
        latents = read_ranked(path, self._advice)
        if len(latents.cost) != count:
            raise InputError(f"{path} has {len(latents.cost)} latents, not {count}; delete it and the shards")
        manifest = generator.model.manifest
        if latents.z.shape[1] != manifest.latent or not {s.name for s in manifest.conditions} <= latents.values.keys():
            raise InputError(f"{path} is of another model; {self._advice}")
        return latents

    def _watched(self, progress: Report | None) -> None:
        """How far another process has ranked, as far as it has stored that."""
        total, drawn = self.request.count * self.request.oversample, 0
        with contextlib.suppress(InputError):
            drawn = read_ranking(self.path / _RANKING, self.request.count, total, self._advice).drawn
        if progress is not None:
            progress(Progress("latents", drawn, total))

    def _ranked(self, generator: Generator, facts: Mapping[str, str], progress: Report | None) -> Ranked:
        """The best of all latents; what an interrupted process has ranked of them is not ranked again."""
        path, count, total = self.path / _RANKING, self.request.count, self.request.count * self.request.oversample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RangeWarning)  # said when the run was made
            conditions = generator.check(self.request)
        before = read_ranking(path, count, total, self._advice) if path.exists() else None
        stored = 0 if before is None else before.drawn
        for ranking in generator.ranking(self.request, conditions, after=before, progress=progress):
            if ranking.drawn == total:
                break
            if ranking.drawn - stored >= max(_PIECE, count):
                write_ranking(path, ranking, facts)
                stored = ranking.drawn
        return ranking.best

    @property
    def _advice(self) -> str:
        return f"delete it, and druse resume {self.path}"

    def _shard(self, k: int) -> Path:
        return self.path / _SHARDS / f"{k:05d}.parquet"

    def _numbers(self, share: Share | None) -> range:
        """Of the shards of a share."""
        every = range(len(self.shards))
        return every if share is None else every[share.task - 1 :: share.n_tasks]

    def _present(self) -> set[int]:
        """Numbers of the shards that are stored."""
        stems = (path.stem for path in (self.path / _SHARDS).glob("*.parquet"))
        every = self._numbers(None)
        return {k for stem in stems if stem.isdecimal() and (k := int(stem)) in every and stem == self._shard(k).stem}

    def _computed(
        self, generator: Generator, missing: Sequence[int], ranked: Ranked, progress: Report | None
    ) -> Iterator[tuple[int, memoryview]]:
        shards = self.shards
        wanted = [shards[k] for k in missing]
        for k, crystals in zip(
            missing, generator.sample(self.request, ranked, shards=wanted, progress=progress), strict=True
        ):
            yield k, shard_of(crystals)

    def _tidy(self, share: Share | None) -> None:
        """Remove what a killed writer left unfinished of a share; other shares' processes may be writing."""
        if share is None:
            with common(self.path):
                self._tidy_folder()
                (self.path / _RANKING).unlink(missing_ok=True)  # the latents are there
        for part in (self.path / _SHARDS).glob(".*.part"):
            match = re.match(r"\.(\d+)\.parquet\.", part.name)
            if share is None or (match and share.has(int(match[1]))):
                _remove([part])

    def _tidy_folder(self) -> None:
        _remove(self.path.glob(".*.part"))


def _remove(parts: Iterable[Path]) -> None:
    """Files that a run's writer left; a folder is of another command, which may still be at work."""
    for part in parts:
        if not part.is_dir() or part.is_symlink():
            part.unlink(missing_ok=True)


def _begun(place: Path, file: RunFile) -> bool:
    """Whether this process has begun the run; if not, another one has."""
    check_free(place, _RUN)
    place.mkdir(parents=True, exist_ok=True)
    with common(place):
        if (place / _RUN).exists():
            return False
        write_json(place / _RUN, file)
    return True


def _in_use(place: Path) -> InputError:
    return InputError(f"{place} holds a run; go on with it by druse resume {place}, or give another folder")
