"""Work in other processes: in order, and what kills or holds one of them harms nothing else."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("loky", reason="starts the processes")

from druse import DruseError
from druse._processes import Processes, time_limit


def square(number: int) -> str:
    if number % 7 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{number**2} by {os.getpid() != int(os.environ['PARENT'])}"


def deaf(n: int) -> int:
    """Counts to n, or without an end where it is 0, in one call of native code that keeps the interpreter's lock."""
    with time_limit(0.2):
        return sum(itertools.repeat(1, n) if n else itertools.repeat(1))


def hang(seconds: float) -> str:
    try:
        with time_limit(0.2):
            for _ in range(100):
                try:
                    time.sleep(seconds)
                except ValueError:
                    continue
    except TimeoutError as error:
        return str(error)
    return "done"


def test_killed_ones_alone_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARENT", str(os.getpid()))
    with Processes(2, purpose="testing") as processes:
        found = list(processes.map(square, range(12), killed=lambda number: f"{number} killed"))
        again = list(processes.map(square, [4, 5]))
        with pytest.raises(DruseError, match="a process was killed while testing, for want of memory perhaps"):
            list(processes.map(square, range(5)))
    assert found == [f"{n} killed" if n % 7 == 3 else f"{n**2} by True" for n in range(12)]
    assert again == ["16 by True", "25 by True"]


def test_one_job_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARENT", str(os.getpid()))
    with Processes(1, purpose="testing") as processes:
        assert list(processes.map(square, [1, 2])) == ["1 by False", "4 by False"]
        assert list(processes.map(square, [])) == []


def test_nobody_is_left_behind(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1]); from test_processes import write_pid; "
        "from druse._processes import Processes; p = Processes(2, purpose='testing'); "
        "list(p.map(write_pid, [sys.argv[2]] * 4)); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert pids
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def write_pid(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()


def test_few_items_are_taken_ahead() -> None:
    taken = []
    with Processes(2, purpose="testing") as processes:
        results = processes.map(abs, (taken.append(n) or -n for n in range(1000)))  # type: ignore[func-returns-value]
        assert [next(results), next(results)] == [0, 1]
        assert len(taken) <= 6


def test_a_limit_of_time_ends_native_code_that_hears_no_signal() -> None:
    with Processes(1, purpose="waiting", isolated=True) as processes:
        assert list(processes.map(deaf, [3, 0, 4], killed=lambda _: -1)) == [3, -1, 4]


def test_a_limit_of_time_ends_what_hangs() -> None:
    with Processes(2, purpose="testing") as processes:
        assert list(processes.map(hang, [0.0, 60.0])) == ["done", "not done after 0.2 s"]


def test_no_limit_touches_nothing() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(None):
        assert signal.getsignal(signal.SIGALRM) is before
