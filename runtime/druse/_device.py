"""Where arrays stay between native calls: a device's memory and its queue of work.

A device takes work in order and may finish it later; nothing here waits but `Device.download`, `Device.wait` and
`Mark.wait`. `HostDevice` is the slow one that every machine has: its memory is NumPy's, and work is done when it is
queued. `druse._cuda` has the fast one.
"""

import collections
import ctypes
import math
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from druse import _native

Work = Callable[[], None]
"""Queues work on a device, and does not wait for it."""


class Array:
    """An array in a device's memory, of unknown content at first. Its memory goes back when nobody has the array.

    Vectors of float32 add, subtract, and take numbers as factors and divisors, each operation rounded as NumPy does.
    """

    def __init__(self, device: "Device", address: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.device, self.address, self.shape, self.dtype = device, address, shape, np.dtype(dtype)

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.size * int(self.dtype.itemsize)

    def row(self, index: int) -> int:
        """The address of a row."""
        return self.address + index * (self.nbytes // self.shape[0])

    def __add__(self, other: "Array") -> "Array":
        return self._combined(1.0, 1.0, other)

    def __sub__(self, other: "Array") -> "Array":
        return self._combined(1.0, -1.0, other)

    def __mul__(self, factor: float | int) -> "Array":
        return self._combined(float(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | int) -> "Array":
        return self._combined(1.0, divisor=float(divisor))

    def _combined(self, a: float, b: float = 0.0, other: "Array | None" = None, divisor: float = 1.0) -> "Array":
        out = self.device.empty(self.shape, np.float32)
        y = None if other is None else other.address
        _native.call("druse_combine", self.device.exec_, self.size, a, self.address, b, y, divisor, out.address)
        return out


@runtime_checkable
class Mark(Protocol):
    """A place in the queue."""

    def wait(self) -> None:
        """Until all that was queued before it is done.

        Raises:
            DeviceError: some of it failed.
        """
        ...


@runtime_checkable
class Device(Protocol):
    """Memory, and a queue.

    Attributes:
        name: for people.
        exec_: for native calls on its arrays.
        stream: the queue's handle, 0 on the host.
        warm_ups: how often work must have been done before it can be captured.
    """

    name: str
    exec_: _native.Exec
    stream: int
    warm_ups: int

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Of the thread that queues work, whoever's it is: what is captured is all that is queued meanwhile."""
        ...

    @property
    def memory(self) -> int:
        """Bytes free now, its own reserves among them."""
        ...

    def enter(self) -> None:
        """Make it the calling thread's device."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of unknown content.

        Raises:
            MemoryError: there is no memory for it.
        """
        ...

    def upload(self, array: Array, values: np.ndarray) -> None:
        """Queue the writing of ``values`` to the beginning of an array; the caller may change them afterwards."""
        ...

    def download(self, array: Array) -> Any:
        """A copy of an array, when all that is queued is done.

        Raises:
            DeviceError: some of it failed.
        """
        ...

    def fill(self, array: Array, byte: int) -> None:
        """Queue the setting of every byte."""
        ...

    def copy(self, to: Array, source: int) -> None:
        """Queue a copy of as many bytes as ``to`` has from an address on the device."""
        ...

    def mark(self) -> Mark:
        """The end of the queue as it is now."""
        ...

    def wait(self) -> None:
        """Until all that is queued is done.

        Raises:
            DeviceError: some of it failed.
        """
        ...

    def capture(self, work: Work) -> Work:
        """What ``work`` queues, made ready to be queued again at once, with the same addresses. Nothing is run.

        Raises:
            DeviceError: something in it cannot be repeated: it waits, allocates, or reads the host's memory.
        """
        ...

    def trim(self) -> None:
        """Give back the memory of arrays that nobody has."""
        ...


class Reserve:
    """Memory of arrays that nobody has any more, by size, for the next ones: a queue in order may use it at once."""

    def __init__(self) -> None:
        self._free: dict[int, list[int]] = collections.defaultdict(list)

    def take(self, nbytes: int) -> int | None:
        """An address, if there is one of this size."""
        free = self._free.get(nbytes)
        return free.pop() if free else None

    def keep(self, array: Array, nbytes: int) -> None:
        """Take an array's memory when nobody has it any more."""
        weakref.finalize(array, self._free[nbytes].append, array.address).atexit = False

    @property
    def nbytes(self) -> int:
        """Bytes in reserve."""
        return sum(size * len(addresses) for size, addresses in self._free.items())

    def drain(self) -> list[int]:
        """All addresses, no longer in reserve."""
        addresses = []
        for free in self._free.values():
            while free:  # one by one: others come while the collector runs
                addresses.append(free.pop())
        return addresses


def free_memory() -> int:
    """Bytes that the system can give without swapping, or four gigabytes where it does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 2**32


class _Done:
    def wait(self) -> None:
        pass


class _HostArray(Array):
    def __init__(self, device: Device, content: np.ndarray, shape: tuple[int, ...]) -> None:
        super().__init__(device, content.ctypes.data, shape, content.dtype)
        self.content = content


class HostDevice:
    """The host's memory, and a queue that is always done: what the other devices are compared with."""

    stream = 0
    warm_ups = 0

    def __init__(self, index: int = 0) -> None:
        self.name, self.exec_, self.lock = f"host:{index}", _native.cpu(1), threading.RLock()

    @property
    def memory(self) -> int:
        """Bytes free now."""
        return free_memory()

    def enter(self) -> None:
        """Nothing to do."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of unknown content."""
        content = np.empty(max(1, math.prod(shape)), dtype)
        return _HostArray(self, content, shape)

    @staticmethod
    def _view(array: Any) -> np.ndarray:
        content: np.ndarray = array.content
        return content[: array.size]

    def upload(self, array: Array, values: np.ndarray) -> None:
        """Write values to the beginning of an array."""
        self._view(array)[: values.size] = values.reshape(-1)

    def download(self, array: Array) -> Any:
        """A copy of an array."""
        return self._view(array).reshape(array.shape).copy()

    def fill(self, array: Array, byte: int) -> None:
        """Set every byte."""
        self._view(array).view(np.uint8)[:] = byte

    def copy(self, to: Array, source: int) -> None:
        """A copy of as many bytes as ``to`` has."""
        ctypes.memmove(to.address, source, to.nbytes)

    def mark(self) -> Mark:
        """The end of the queue."""
        return _Done()

    def wait(self) -> None:
        """Nothing to wait for."""

    def capture(self, work: Work) -> Work:
        """The work itself."""
        return work

    def trim(self) -> None:
        """Nothing is kept."""
