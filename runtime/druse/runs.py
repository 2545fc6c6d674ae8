"""Run directories: a run that is stored as it goes, and goes on after any interruption.

```
RUN/
  run.json            what was asked for, of which bundle, with what; written first
  ranking.parquet     while latents are ranked: the best so far; then it goes
  latents.parquet     the chosen latents, best first
  shards/00000.parquet ...   crystals; each file appears whole or not at all
  crystals.extxyz, crystals.cif   the good ones, when all are finished
```

One writer at a time: a lock that goes with its process. Reading needs none.
"""

import collections
import datetime as dt
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from druse._columns import Ragged, read_columns, write_columns
from druse._files import whole_file
from druse._folders import is_left_over, locked, versions_of
from druse._ranked import grouped_columns, read_ranked, read_ranking, write_ranked, write_ranking
from druse._request import Generated, Progress, Ranked, Report, Request
from druse.crystals import Crystals
from druse.errors import InputError
from druse.generate import Generator
from druse.io import Named, named, text_of, write_named
from druse.strategies import RangeWarning

__all__ = ["Run", "RunFile", "Summary", "UsedBundle"]

_SCHEMA = 1
_RUN, _RANKING, _LATENTS, _SHARDS = "run.json", "ranking.parquet", "latents.parquet", "shards"
_PIECE = 32_768
"""Latents after which the ranking is stored; or as many as the run has crystals, if that is more to write."""
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "pyarrow")


class UsedBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which bundle a run is of.

    Attributes:
        name: of the file or folder.
        sha256: of its manifest, and through that of every file.
        path: where it was; empty for the one that comes with Druse.
    """

    name: str
    sha256: str
    path: str = ""


class RunFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``run.json``.

    Attributes:
        schema: version of the folder's format.
        request: what was asked for.
        bundle: of the generator.
        n_levels: noise levels of the model.
        backend, precision: that made the crystals.
        versions: of what took part, by name.
        created: when, UTC.
    """

    schema: int
    request: Request
    bundle: UsedBundle
    n_levels: int
    backend: str
    precision: str
    versions: dict[str, str]
    created: str

    def __post_init__(self) -> None:
        if self.n_levels < 1:
            raise ValueError(f"`n_levels` must be at least 1, got {self.n_levels}")


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
            raise InputError(f"{place} holds a run; go on with it by druse resume {place}, or give another folder")
        if place.exists() and (not place.is_dir() or any(not is_left_over(path) for path in place.iterdir())):
            raise InputError(f"{place} is not an empty folder; give another one")
        generator.check(request)
        bundle, backend = generator.bundle, generator.model.backend
        file = RunFile(
            schema=_SCHEMA,
            request=request,
            bundle=UsedBundle(name=bundle.name, sha256=bundle.digest, path=bundle.path),
            n_levels=len(generator.model.manifest.sigmas),
            backend=backend.name,
            precision=backend.precision,
            versions=versions_of(*_PACKAGES),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )
        content = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
        place.mkdir(parents=True, exist_ok=True)
        with locked(place):
            if (place / _RUN).exists():  # by another process, since it was looked for above
                raise InputError(f"{place} holds a run; go on with it by druse resume {place}, or give another folder")
            with whole_file(place / _RUN, "wb") as out:
                out.write(content)
        return cls(place, file)

    @classmethod
    def open(cls, path: Any) -> "Run":
        """A run that exists, finished or not.

        Raises:
            InputError: there is none, or it is of another version of Druse.
        """
        place = Path(path)
        try:
            file = msgspec.json.decode((place / _RUN).read_bytes(), type=RunFile)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{place} holds no run ({_RUN}); make one with druse generate --out {place}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{place / _RUN} cannot be used: {error}; it may be of another Druse") from error
        if file.schema != _SCHEMA:
            raise InputError(f"{place / _RUN} has version {file.schema}, this Druse reads {_SCHEMA}; update Druse")
        return cls(place, file)

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

    def finish(self, generator: Generator, *, progress: Report | None = None) -> Summary:
        """Compute what is missing, and write the two files of crystals.

        Raises:
            InputError: another process writes to this run, or a file of it is damaged.
        """
        model = generator.model
        own = (self.file.bundle.sha256, self.file.backend, self.file.precision)
        if own != (generator.bundle.digest, model.backend.name, model.backend.precision):
            raise InputError(f"{self.path} was begun with another bundle, backend or precision; use `Run.generator`")
        seconds = {}
        with locked(self.path):
            if Run.open(self.path).file != self.file:
                raise InputError(f"{self.path} holds another run by now; open it again")
            self._tidy()
            clock = time.perf_counter()
            ranked = self._latents(generator, progress)
            seconds["latents"] = time.perf_counter() - clock
            clock = time.perf_counter()
            missing = [rows for k, rows in enumerate(self.shards) if not self._shard(k).exists()]
            if progress is not None and missing:
                progress(Progress("crystals", 0.0, sum(map(len, missing))))
            for rows, crystals in zip(
                missing, generator.sample(self.request, ranked, shards=missing, progress=progress), strict=True
            ):
                self._store(self.shards.index(rows), crystals)
            seconds["crystals"] = time.perf_counter() - clock
            clock = time.perf_counter()
            for name in ("crystals.extxyz", "crystals.cif"):
                if missing or not (self.path / name).exists():
                    self.export(self.path / name)
            seconds["files"] = time.perf_counter() - clock
        return self.summary(seconds)

    @property
    def shards(self) -> list[range]:
        """The crystals of each shard, by number."""
        return self.request.shards(self.file.n_levels)

    @property
    def finished(self) -> int:
        """Crystals that are stored."""
        return sum(len(rows) for k, rows in enumerate(self.shards) if self._shard(k).exists())

    def generated(self) -> Iterator[Generated]:
        """The finished shards, in order; failed crystals among them."""
        for k, rows in enumerate(self.shards):
            if self._shard(k).exists():
                yield self._load(k, rows)

    def crystals(self) -> Crystals:
        """Every finished crystal that did not fail."""
        return Crystals.concatenate(part.take(np.flatnonzero(part.ok)) for part in self.generated())

    def export(self, path: Any, *, format: str = "") -> int:  # noqa: A002
        """Write the finished crystals that did not fail to a file; how many they are. See `druse.io.write_crystals`."""
        n = 0

        def good() -> Iterator[Named]:
            nonlocal n
            for part in self.generated():
                some = part.take(np.flatnonzero(part.ok))
                for one in named(some, self._facts(some)):
                    n += 1
                    yield one

        write_named(path, good(), format)
        return n

    def summary(self, seconds: Mapping[str, float] | None = None) -> Summary:
        """What has been made so far."""
        finished, good, sums = 0, 0, collections.defaultdict[str, float](float)
        for part in self.generated():
            finished, good = finished + len(part), good + int(part.ok.sum())
            for name, column in part.columns.items():
                if name.startswith(("changed_", "predicted_")) and column.ndim == 1:
                    sums[name] += float(column.sum(dtype=np.float64))
        means = {name: total / finished for name, total in sums.items()}
        changed = grouped_columns(means, "changed_") if self.request.control else {}
        return Summary(
            count=self.request.count,
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
            facts = {"druse": self.file.versions.get("druse", "")}
            write_ranked(path, self._ranked(generator, facts, progress), facts)
        (self.path / _RANKING).unlink(missing_ok=True)
        latents = read_ranked(path, self._advice)
        if len(latents.cost) != count:
            raise InputError(f"{path} has {len(latents.cost)} latents, not {count}; delete it and the shards")
        return latents

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

    def _store(self, k: int, crystals: Generated) -> None:
        columns: dict[str, Any] = {
            "id": crystals.ids,
            "status": crystals.status,
            "cell": crystals.cells.reshape(-1, 9),
            "species": Ragged(crystals.species, crystals.offsets),
            "frac": Ragged(crystals.frac.reshape(-1), 3 * crystals.offsets),
            **crystals.columns,
        }
        write_columns(self._shard(k), columns, {"cell": "row vectors, Angstrom", "frac": "x y z of each atom"})

    def _load(self, k: int, rows: range) -> Generated:
        path = self._shard(k)
        columns = read_columns(path, self._advice)
        try:
            ids, status, cell = columns.pop("id"), columns.pop("status"), columns.pop("cell")
            species, frac = columns.pop("species"), columns.pop("frac")
            if not np.array_equal(ids, np.arange(rows.start, rows.stop)):
                raise InputError(f"crystals {rows.start} to {rows.stop - 1} expected")
            return Generated(
                frac.values.reshape(-1, 3),
                cell.reshape(-1, 3, 3),
                species.offsets,
                species.values,
                ids,
                status,
                columns,
            )
        except (KeyError, AttributeError, ValueError) as error:
            raise InputError(f"{path} is not this run's ({error}); {self._advice}") from error

    def _tidy(self) -> None:
        """Remove what a killed writer left unfinished."""
        for part in [*self.path.glob(".*.part"), *(self.path / _SHARDS).glob(".*.part")]:
            part.unlink(missing_ok=True)
