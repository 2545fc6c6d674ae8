"""Where an operation of ``druse.h`` runs in these tests: on the host, or on a CUDA device through ``cuda-bindings``.

A place takes NumPy arrays and gives pointers; `Device.fetch` brings what a call wrote back into the same arrays. No
pytest here: `sanitize` imports this module, too.
"""

from typing import Any, Protocol

import numpy as np

from druse import _native

try:
    from cuda.bindings import runtime
except ImportError:
    runtime = None

_GUARD, _BYTE = 256, 0xA5  # bytes on either side of each array on the device, and what they hold


def missing() -> str | None:
    """Why nothing can run on a device here; None where it can."""
    if not _native.library().druse_has_cuda():
        return "the native library was built without CUDA"
    if runtime is None:
        return "cuda-bindings is not installed"
    if _native.library().druse_cuda_devices() == 0:
        return "no CUDA device answers"
    return None


def checked(result: tuple[Any, ...]) -> Any:
    """The values of a call to the CUDA runtime.

    Raises:
        RuntimeError: the call failed.
    """
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA: {runtime.cudaGetErrorString(error)[1].decode()}")
    return values[0] if len(values) == 1 else values


class Place(Protocol):
    """What an operation asks of where it runs."""

    @property
    def exec_(self) -> _native.Exec: ...

    def put(self, array: np.ndarray | None) -> int | None:
        """A pointer to an array's values."""
        ...

    def workspace(self, n_bytes: int) -> int | None:
        """A pointer to working memory."""
        ...


class Host:
    """The CPU, on as many threads and with the instructions that it has."""

    exec_ = _native.cpu()

    def put(self, array: np.ndarray | None) -> int | None:
        return None if array is None else int(array.ctypes.data)

    def workspace(self, n_bytes: int) -> int | None:
        return None


class Device:
    """A stream of the first CUDA device, and copies of the arrays that were put there."""

    def __init__(self) -> None:
        checked(runtime.cudaSetDevice(0))
        self.stream = checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.exec_ = _native.Exec(1, 0, 0, 0, int(self.stream))
        self._held: dict[int, tuple[np.ndarray, int]] = {}  # by the array's id: the array and its copy's guarded memory
        self._memory: list[int] = []
        self._workspaces: dict[int, int] = {}  # by size

    def _allocate(self, n_bytes: int) -> int:
        memory = int(checked(runtime.cudaMalloc(n_bytes)))
        self._memory.append(memory)
        checked(runtime.cudaMemset(memory, _BYTE, n_bytes))
        checked(runtime.cudaDeviceSynchronize())
        return memory

    def put(self, array: np.ndarray | None) -> int | None:
        if array is None:
            return None
        assert array.flags.c_contiguous
        if id(array) not in self._held:
            self._held[id(array)] = array, self._allocate(array.nbytes + 2 * _GUARD)
            self.write(array)
        return self._held[id(array)][1] + _GUARD

    def write(self, array: np.ndarray) -> None:
        """The array's present values to its copy."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        if array.nbytes > 0:
            checked(runtime.cudaMemcpy(self._held[id(array)][1] + _GUARD, array.ctypes.data, array.nbytes, kind))
            checked(runtime.cudaDeviceSynchronize())

    def workspace(self, n_bytes: int) -> int | None:
        if n_bytes not in self._workspaces:
            self._workspaces[n_bytes] = self._allocate(n_bytes)  # exactly as large: memcheck sees one byte too far
        return self._workspaces[n_bytes]

    def fetch(self) -> None:
        """Wait for the stream; every copy back into its array.

        Raises:
            AssertionError: something was written around an array.
        """
        checked(runtime.cudaStreamSynchronize(self.stream))
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for array, memory in self._held.values():
            whole = np.empty(array.nbytes + 2 * _GUARD, np.uint8)
            checked(runtime.cudaMemcpy(whole.ctypes.data, memory, whole.nbytes, kind))
            array.reshape(-1).view(np.uint8)[:] = whole[_GUARD : _GUARD + array.nbytes]
            around = np.delete(whole, slice(_GUARD, _GUARD + array.nbytes))
            assert np.all(around == _BYTE), "written outside of an array"

    def begin_capture(self) -> None:
        """From here on calls are recorded; one that allocates or waits fails."""
        checked(runtime.cudaStreamBeginCapture(self.stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal))

    def end_capture(self) -> "Replay":
        return Replay(self.stream, checked(runtime.cudaStreamEndCapture(self.stream)))

    def close(self) -> None:
        checked(runtime.cudaDeviceSynchronize())
        for memory in self._memory:
            checked(runtime.cudaFree(memory))
        checked(runtime.cudaStreamDestroy(self.stream))


class Replay:
    """A captured CUDA graph."""

    def __init__(self, stream: Any, graph: Any) -> None:
        self._stream, self._graph = stream, graph
        self._executable = checked(runtime.cudaGraphInstantiate(graph, 0))

    def launch(self) -> None:
        checked(runtime.cudaGraphLaunch(self._executable, self._stream))

    def milliseconds(self, launches: int) -> float:
        """The time of one launch, a mean over as many, by events on the stream."""
        begin, end = checked(runtime.cudaEventCreate()), checked(runtime.cudaEventCreate())
        for _ in range(3):
            self.launch()
        checked(runtime.cudaEventRecord(begin, self._stream))
        for _ in range(launches):
            self.launch()
        checked(runtime.cudaEventRecord(end, self._stream))
        checked(runtime.cudaEventSynchronize(end))
        elapsed = float(checked(runtime.cudaEventElapsedTime(begin, end)))
        checked(runtime.cudaEventDestroy(begin))
        checked(runtime.cudaEventDestroy(end))
        return elapsed / launches

    def close(self) -> None:
        checked(runtime.cudaGraphExecDestroy(self._executable))
        checked(runtime.cudaGraphDestroy(self._graph))
