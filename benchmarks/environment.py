"""The environment that a benchmark on two threads needs, which PyTorch and the allocator read at their start only."""

import os
import sys

ENVIRONMENT = {
    # Memory stays with the process; with the defaults, page faults take a quarter of either side's time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
}


def begin_anew() -> None:
    """Start the script again with what is missing; to be called before NumPy and PyTorch are imported."""
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ENVIRONMENT, **os.environ})
