"""What a processor can do, how long two contenders take in turns, how much memory, and where time goes."""

import ctypes
import dataclasses
import gc
import os
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graph import ticks
from torch.profiler import ProfilerActivity, profile, record_function

Work = Callable[[], Any]

QUIET = 0.05
_REST = "autograd, Python"

GROUPS = {
    "GEMM": ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "_addmm_activation", "matmul", "linear"),
    "gather + index": (
        "index", "index_select", "index_add", "index_add_", "_index_put_impl_", "gather", "scatter_add",
        "scatter_add_", "embedding", "embedding_dense_backward", "repeat_interleave", "sort", "bincount", "nonzero",
    ),
    "copy + cast": ("copy_", "_to_copy", "cat", "stack", "fill_", "zero_", "flip"),
}  # fmt: skip


def cpu_name() -> str:
    lines = _cpuinfo("model name")
    return lines[0] if lines else platform.processor()


def _cpuinfo(key: str) -> list[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def bf16_instructions() -> list[str]:
    """Of the instruction sets that multiply bfloat16 those that the processor has."""
    flags = " ".join(_cpuinfo("flags")[:1]).split()
    return [name for name in ("amx_bf16", "avx512_bf16") if name in flags]


def gemm_rate(dtype: torch.dtype, n: int = 2048, seconds: float = 2.0) -> float:
    """The best GFLOP/s of a product of two matrices ``[n, n]``."""
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * n**3 / best


@dataclasses.dataclass(frozen=True)
class Times:
    """Milliseconds of ours and of the baseline, round by round, and the most that others took of a round's cores."""

    ours: list[float]
    plain: list[float]
    disturbance: float

    @property
    def ratios(self) -> list[float]:
        """Quartiles of the baseline's time over ours in the same round."""
        return np.percentile(np.divide(self.plain, self.ours), [25, 50, 75]).tolist()


class Clock:
    """Wall time since its making, and the share of all cores that went to others: processes or the hypervisor."""

    def __init__(self) -> None:
        self.wall, self.busy, self.own = time.perf_counter(), ticks()[0], sum(os.times()[:4])

    def read(self) -> tuple[float, float]:
        wall, busy, own = time.perf_counter(), ticks()[0], sum(os.times()[:4])
        others = (busy - self.busy) / os.sysconf("SC_CLK_TCK") - (own - self.own)
        return wall - self.wall, max(others, 0.0) / ((wall - self.wall) * (os.cpu_count() or 1))


def in_turns(ours: Work, plain: Work, n_rounds: int, warm_up: int = 2) -> Times:
    """Each once a round, the order swapped every round.

    A round is run again where others took more than a twentieth of the cores, up to two more for each that is wanted;
    the least disturbed ones count.
    """
    rounds: list[tuple[float, float, float]] = []
    gc.disable()
    for k in range(warm_up + 3 * n_rounds):
        spent, clock = {}, Clock()
        for work in (ours, plain) if k % 2 else (plain, ours):
            start = time.perf_counter()
            work()
            spent[work] = 1e3 * (time.perf_counter() - start)
            gc.collect()
        if k >= warm_up:
            rounds.append((clock.read()[1], spent[ours], spent[plain]))
        if sum(disturbance < QUIET for disturbance, *_ in rounds) == n_rounds:
            break
    gc.enable()
    chosen = sorted(rounds)[:n_rounds]
    return Times([x for _, x, _ in chosen], [x for _, _, x in chosen], chosen[-1][0])


def settle() -> float:
    """Give free memory back, forget the peak so far, and tell the MiB that the process still holds."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return peak_memory()


def peak_memory() -> float:
    """MiB that the process held at most."""
    if sys.platform == "linux":  # not ru_maxrss, which a process inherits from the one that started it
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def breakdown(work: Work, geometry: Work | None = None, n: int = 3) -> dict[str, float]:
    """Milliseconds of one call by kind of operation, forward and backward together, as `torch.profiler` sees them.

    What is no operation of torch is Python's, less what ``geometry``, a part of the work outside torch, takes alone.
    """
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(n):
            with record_function(_REST):
                work()
    totals: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        totals[_group(event)] += event.self_cpu_time_total / 1e3 / n
    if geometry:
        geometry()
        start = time.perf_counter()
        for _ in range(n):
            geometry()
        totals["graph + geometry"] = 1e3 * (time.perf_counter() - start) / n
        totals[_REST] -= totals["graph + geometry"]
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _group(event: Any) -> str:
    ancestor = event
    while ancestor is not None:
        if ancestor.name.startswith("Optimizer.step"):
            return "optimiser"
        ancestor = ancestor.cpu_parent
    if event.name.startswith(("_PathSum", "_TripletSum")):
        return "sums over paths, native"
    if not event.name.startswith("aten::"):
        return _REST
    name = event.name.removeprefix("aten::")
    return next((group for group, names in GROUPS.items() if name in names), "elementwise + sums")
