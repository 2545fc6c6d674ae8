"""Work in other processes, any of which may hang or be killed without ending the rest."""

import collections
import contextlib
import faulthandler
import functools
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from druse._dependencies import require
from druse.errors import DruseError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ENVIRONMENT["SPGLIB_WARNING"] = "OFF"  # it prints of crystals for which it finds another way


class Processes:
    """Processes that stay from one `map` to the next, until the ``with`` block ends.

    Args:
        n_jobs: how many; 0 for every core. 1 does the work in the caller's own process, where nothing is isolated.
        purpose: what needs them, as an error's sentence begins: "reading structures".
        isolated: whether a single one, too, is another process than the caller's.
        bounded: whether each may take 8 GiB at most; not for calculators, of which nobody knows what they need.

    Attributes:
        n_jobs: how many there are.
        isolated: whether they are others than the caller's.
    """

    def __init__(self, n_jobs: int = 0, *, purpose: str, isolated: bool = False, bounded: bool = True) -> None:
        self.n_jobs = n_jobs or len(os.sched_getaffinity(0))
        self.isolated = isolated or n_jobs != 1
        self._purpose, self._bounded = purpose, bounded
        self._all: Any = None
        self._one: Any = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._all, self._one):
            if pool is not None:
                pool.shutdown(kill_workers=True)
        self._all = self._one = None

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        killed: Callable[[Item], Result] | None = None,
    ) -> Iterator[Result]:
        """Results of a function of a module, in the order of the items, of which few are taken ahead.

        Args:
            function: of one item; what it raises ends the work.
            items: each travels to a process and its result back.
            killed: the result of an item that kills the process that works on it, alone too.

        Raises:
            DruseError: a process was killed, and there is no ``killed``.
            MissingDependencyError: loky is not installed.
        """
        if not self.isolated:
            yield from map(function, items)
            return
        source = iter(items)
        ahead: collections.deque[tuple[Item, Future[Result], Any]] = collections.deque()
        while True:
            for item in itertools.islice(source, 2 * self.n_jobs - len(ahead)):
                self._all = self._all or self._pool(self.n_jobs)
                ahead.append((item, _submit(self._all, function, item), self._all))
            if not ahead:
                return
            item, future, pool = ahead.popleft()
            try:
                result = future.result()
            except BrokenProcessPool as error:
                if killed is None:
                    raise DruseError(
                        f"a process was killed while {self._purpose}, for want of memory perhaps; "
                        "let fewer work at a time (jobs)"
                    ) from error
                if pool is self._all:
                    self._all = pool.shutdown(kill_workers=True)
                result = self._alone(function, item, killed)
            yield result

    def _alone(self, function: Callable[[Item], Result], item: Item, killed: Callable[[Item], Result]) -> Result:
        """An item that was in flight when a process was killed, in a process where it can harm only itself."""
        self._one = self._one or self._pool(1)
        try:
            return _submit(self._one, function, item).result()
        except BrokenProcessPool:
            self._one = self._one.shutdown(kill_workers=True)
            return killed(item)

    def _pool(self, n: int) -> Any:
        # not the standard library's pool, whose processes would run the caller's script again unless it guards itself
        require("loky", purpose=f"{self._purpose} in several processes", extra="evaluate")
        from loky import ProcessPoolExecutor

        return ProcessPoolExecutor(n, env=_ENVIRONMENT, initializer=_begin, initargs=(os.getpid(), self._bounded))


def _begin(caller: int, bounded: bool) -> None:
    """End within a second of the process that started this one, which may be killed and say nothing."""

    def watch() -> None:
        while os.getppid() == caller:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if bounded:
        _bound_memory()


_MEMORY = 8 << 30  # bytes; no work on a crystal takes a tenth of it


def _bound_memory() -> None:
    """MemoryError for what would take gigabytes more than this process has: an entry that fails, not a machine."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)  # of address space much is only reserved
        limit = pages * resource.getpagesize() + _MEMORY
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _submit(pool: Any, function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """As the pool's own, but a pool that is broken says so by the future only."""
    # Ctrl-C goes to a terminal's whole group; the processes started here leave it to this one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, item)  # type: ignore[no-any-return]
    except BrokenProcessPool as error:
        broken: Future[Result] = Future()
        broken.set_exception(error)
        return broken
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """TimeoutError in the block when it takes longer; for the main thread of a process that `Processes` started.

    It comes again every second, for libraries that take it for an error of their own and go on. Where native code does
    not come back, the process ends, as if it had been killed.
    """

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(max(1.25 * seconds, seconds + 3.0), exit=True, file=_nowhere())
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def _nowhere() -> IO[str]:
    return open(os.devnull, "w")  # noqa: PTH123
