"""One run on a Ray cluster: the driver ranks and writes, its workers sample shards.

No file system is shared. The bundle goes into Ray's object store once; a shard's rows of ranked latents travel to a
worker and the bytes of its file come back, which the driver writes. So a run is the same folder, with the same bytes,
wherever its shards were computed, and what one driver has not finished another one, or `druse resume` alone, goes on
with.

Ray carries functions and arrays between its processes as pickles: a cluster and its driver trust each other, as Ray
asks for. Nothing of a bundle or a run's folder is unpickled.
"""

import collections
import contextlib
import functools
import logging
import math
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from druse._dependencies import require
from druse._folders import versions_of
from druse._request import Progress, Ranked, Report, Request
from druse._run_file import PACKAGES
from druse._stored import shard_of
from druse.bundle import Bundle
from druse.errors import DruseError, InputError
from druse.generate import Generator
from druse.runs import Run, Summary

__all__ = ["finish"]

_log = logging.getLogger(__name__)

_AHEAD = 2  # tasks in flight for each that can run, so that no worker waits for the driver
_LOOK = 1.0  # seconds after which the size of the cluster is looked at again
_CONNECT = 10.0  # seconds for a cluster's head to answer
_SHOWN = 8  # shards that an error names
_USAGE = "RAY_USAGE_STATS_ENABLED"


class _Model(NamedTuple):
    """What a worker opens; the key by which it keeps it.

    Attributes:
        digest: of the bundle.
        backend, precision: of the run.
        n_threads: CPUs that Ray gives a task.
        versions: of the driver's packages.
    """

    digest: str
    backend: str
    precision: str
    n_threads: int
    versions: tuple[str, ...]


def finish(
    run: Run,
    generator: Generator,
    address: str,
    *,
    cpus_per_task: int = 1,
    gpus_per_task: float = 0.0,
    shards_per_task: int = 1,
    retries: int = 3,
    progress: Report | None = None,
) -> Summary:
    """Compute the shards of a run that are missing on a Ray cluster, and write the files of crystals.

    Args:
        run: that exists.
        generator: of the run, which ranks its latents here if they are not ranked yet.
        address: of the cluster's head, ``auto`` for one that runs on this machine, or ``local`` to start one here for
            as long as the call takes. If this process is connected to a cluster already, that one is used, and stays.
        cpus_per_task: that Ray reserves for a task, and threads that it uses.
        gpus_per_task: that Ray reserves for a task.
        shards_per_task: more than one lets a GPU fill its buckets, and opens the model less often there.
        retries: times that a task begins anew after its worker has died.
        progress: told how far the work is.

    Raises:
        InputError: see `Run.finish`; or a number cannot be, or there is no cluster.
        DruseError: some shards failed; the others are stored.
        MissingDependencyError: Ray is not installed.
    """
    if cpus_per_task < 1 or shards_per_task < 1 or retries < 0 or not 0 <= gpus_per_task < math.inf:
        raise InputError(
            f"tasks need at least 1 CPU, 1 shard and no less than 0 GPUs and retries; got {cpus_per_task}, "
            f"{shards_per_task}, {gpus_per_task:g} and {retries}"
        )
    require("ray", purpose="a run on a Ray cluster", extra="ray")
    cluster = _Cluster(run, cpus_per_task, gpus_per_task, shards_per_task, retries)
    with _connected(address):
        if address == "local" and not cluster.slots():
            raise InputError(
                f"this machine has no {cpus_per_task} CPUs and {gpus_per_task:g} GPUs for a task; ask for less "
                "(--cpus-per-task, --gpus-per-task)"
            )
        return run.finish(generator, elsewhere=cluster, progress=progress)


class _Cluster:
    """What `Run.finish` has shards computed by."""

    def __init__(self, run: Run, cpus: int, gpus: float, shards_per_task: int, retries: int) -> None:
        self._run, self._cpus, self._gpus = run, cpus, gpus
        self._shards_per_task, self._retries = shards_per_task, retries

    def slots(self) -> int:
        """Tasks that can run at the same time, on the machines that there are now."""
        import ray

        n = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            fits = has.get("CPU", 0.0) // self._cpus
            n += int(min(fits, has.get("GPU", 0.0) // self._gpus) if self._gpus else fits)
        return n

    def __call__(
        self, generator: Generator, missing: Sequence[int], ranked: Ranked, progress: Report | None
    ) -> Iterator[tuple[int, bytes]]:
        """Each shard's number and bytes, as they come.

        Raises:
            DruseError: when all others are there: some failed.
        """
        import ray
        from ray.exceptions import RayError

        model = _Model(
            generator.bundle.digest, self._run.file.backend, self._run.file.precision, self._cpus, _versions()
        )
        content = [ray.put(_zipped(generator.bundle))] if generator.bundle.path else []
        # said here and not by `options`, so that Ray ends a process that had a GPU: the next may get another one
        task = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=self._retries)(_sampled)
        request, shards = msgspec.json.encode(self._run.request), self._run.shards
        waiting = collections.deque(_grouped(missing, self._shards_per_task))
        flying: dict[Any, list[int]] = {}
        failed: dict[int, str] = {}
        done, total, room = 0, sum(len(shards[k]) for k in missing), 0
        if not self.slots():
            _log.warning("no machine of the Ray cluster has room for a task now; waiting for one")
        try:
            while waiting or flying:
                room = _AHEAD * max(1, self.slots())
                while waiting and len(flying) < room:
                    group = waiting.popleft()
                    rows = [shards[k] for k in group]
                    some = ranked.take(slice(rows[0].start, rows[-1].stop))
                    flying[task.remote(model, content, request, some, rows)] = group
                ready, _ = ray.wait(list(flying), timeout=_LOOK)
                for reference in ready:
                    group = flying.pop(reference)
                    try:
                        files = ray.get(reference)
                    except RayError as error:
                        failed |= dict.fromkeys(group, _reason(error))
                        continue
                    yield from zip(group, files, strict=True)
                    done += sum(len(shards[k]) for k in group)
                    if progress is not None:
                        progress(Progress("crystals", done, total))
                if len(failed) >= room * self._shards_per_task and not done:
                    break  # they all would
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)
        if done < total:
            raise DruseError(
                f"{total - done:,} crystals of {self._run.path} are missing ({_listed(failed)}); what is stored stays: "
                f"druse resume {self._run.path} goes on, with or without --ray"
            )


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """With a cluster; leaves, or stops, what it has come to."""
    import ray

    if ray.is_initialized():
        yield
        return
    before = os.environ.get(_USAGE)
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and "://" not in address:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT).close()
        os.environ.setdefault(_USAGE, "0")  # what is started here tells nobody of it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what will change in Ray
            ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise InputError(
            f"there is no Ray cluster to be had at {address} ({_first_line(error)}); start one (ray start --head), or "
            "give --ray local"
        ) from error
    finally:
        if before is None:
            os.environ.pop(_USAGE, None)
    try:
        yield
    finally:
        ray.shutdown()


def _sampled(
    model: _Model, content: Sequence[Any], request: bytes, ranked: Ranked, shards: Sequence[range]
) -> list[bytes]:
    """In a worker: the files of shards.

    Args:
        model: to sample with.
        content: reference to the bundle's bytes; empty for the bundle that comes with Druse.
        request: of the run, as JSON.
        ranked: latents of the shards.
        shards: that follow on each other.
    """
    generator = _opened(model, *content)
    asked = msgspec.json.decode(request, type=Request)
    made = generator.sample(asked, ranked, shards=shards, first=shards[0].start)
    return [shard_of(crystals).tobytes() for crystals in made]


@functools.lru_cache(maxsize=1)
def _opened(model: _Model, content: Any = None) -> Generator:
    """In a worker: the model, which stays from one task to the next."""
    import ray

    if (own := _versions()) != model.versions:
        raise InputError(
            f"a worker has {', '.join(sorted(set(own) - set(model.versions))) or 'less'} where the driver has "
            f"{', '.join(sorted(set(model.versions) - set(own))) or 'less'}; install the same on all machines"
        )
    if content is None:
        bundle = Bundle.embedded()
    else:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "bundle.zip"
            place.write_bytes(ray.get(content))
            bundle = Bundle.open(place)
    if bundle.digest != model.digest:
        raise InputError(f"a worker has another bundle than the driver (SHA-256 {bundle.digest[:12]}...)")
    return Generator(bundle, backend=model.backend, precision=model.precision, n_threads=model.n_threads)


def _versions() -> tuple[str, ...]:
    """What must be the same everywhere for the bytes to be."""
    return tuple(f"{name} {version}" for name, version in versions_of(*PACKAGES).items())


def _zipped(bundle: Bundle) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        bundle.write_zip(Path(folder) / "bundle.zip")
        return (Path(folder) / "bundle.zip").read_bytes()


def _grouped(numbers: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers in order, up to so many together that follow on each other."""
    group: list[int] = []
    for k in numbers:
        if group and (len(group) == most or k != group[-1] + 1):
            yield group
            group = []
        group.append(k)
    if group:
        yield group


def _listed(failed: Mapping[int, str]) -> str:
    """Which shards failed, and why the first of them did."""
    numbers = sorted(failed)
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (f" and {len(numbers) - _SHOWN} more" if numbers[_SHOWN:] else "")
    return f"shards {shown}: {failed[numbers[0]]}"


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return _first_line(cause) if isinstance(cause, DruseError) else f"{type(cause).__name__}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
