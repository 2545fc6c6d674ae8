"""A CUDA device: its memory, one stream, and captured graphs, over ``cuda-bindings``.

The stream does not take part in the legacy default stream's order, so other libraries in the process may use that one
while a graph is captured. Capture is in the thread-local mode: what the capturing thread may not do then (wait,
allocate) is an error, other threads are free.
"""

import threading
from typing import Any

import numpy as np

from druse import _native
from druse._device import Array, Reserve, Work
from druse.errors import DeviceError, MissingDependencyError

_OUT_OF_MEMORY = 2
"""``cudaErrorMemoryAllocation``."""


def runtime() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise MissingDependencyError(
            f"a CUDA device needs cuda-bindings; pip install 'druse[cuda]' ({error})"
        ) from error
    return module


class CudaDevice:
    """A GPU."""

    warm_ups = 3

    def __init__(self, index: int = 0) -> None:
        """Opens the device's primary context, which other libraries in the process share.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            DeviceError: there is no such device, it is full, or Druse was built without CUDA.
        """
        self._cuda, self.lock = runtime(), threading.RLock()
        if not _native.library().druse_has_cuda():
            raise DeviceError("Druse's native library was built without CUDA; install Druse again where nvcc is found")
        if index >= _native.library().druse_cuda_devices():
            raise DeviceError(f"no CUDA device {index} answers; `druse doctor` lists what does")
        self.index = index
        try:
            self.enter()
            properties = self._call("cudaGetDeviceProperties", index)
            self.stream = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))
        except MemoryError as error:  # not of a bin, which could be cut in half
            raise DeviceError(
                f"CUDA device {index} has no memory left, not even to begin ({error}); nvidia-smi shows what uses it"
            ) from error
        name = properties.name
        self.name = f"cuda:{index} ({name.decode() if isinstance(name, bytes) else name})"
        self.exec_ = _native.Exec(1, 0, 0, 0, self.stream)
        self._reserve = Reserve()

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, function)(*arguments)
        code = int(status)
        if code:
            self._cuda.cudaGetLastError()  # or the next call would say it again
            _, text = self._cuda.cudaGetErrorString(status)
            reason = text.decode() if isinstance(text, bytes) else str(text)
            if code == _OUT_OF_MEMORY:
                raise MemoryError(f"{function}: {reason}")
            raise DeviceError(f"{function}: {reason} (CUDA error {code})")
        return results[0] if len(results) == 1 else tuple(results)

    @property
    def memory(self) -> int:
        """Bytes free now, its own reserves among them."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free) + self._reserve.nbytes

    def enter(self) -> None:
        """Make it the calling thread's device."""
        self._call("cudaSetDevice", self.index)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of unknown content."""
        array = Array(self, 0, shape, dtype)
        nbytes = max(256, -(-array.nbytes // 256) * 256)
        address = self._reserve.take(nbytes)
        if address is None:
            try:
                address = int(self._call("cudaMalloc", nbytes))
            except MemoryError:
                self.trim()
                address = int(self._call("cudaMalloc", nbytes))
        array.address = address
        self._reserve.keep(array, nbytes)
        return array

    def upload(self, array: Array, values: np.ndarray) -> None:
        """Queue the writing of ``values`` to the beginning of an array; CUDA copies pageable memory at once."""
        given = np.ascontiguousarray(values, array.dtype)
        if given.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._call("cudaMemcpyAsync", array.address, given.ctypes.data, given.nbytes, kind, self.stream)

    def download(self, array: Array) -> Any:
        """A copy of an array, when all that is queued is done."""
        values = np.empty(array.shape, array.dtype)
        if values.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._call("cudaMemcpyAsync", values.ctypes.data, array.address, values.nbytes, kind, self.stream)
        self.wait()
        return values

    def fill(self, array: Array, byte: int) -> None:
        """Queue the setting of every byte."""
        if array.nbytes:
            self._call("cudaMemsetAsync", array.address, byte, array.nbytes, self.stream)

    def copy(self, to: Array, source: int) -> None:
        """Queue a copy of as many bytes as ``to`` has from an address on the device."""
        if to.nbytes:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._call("cudaMemcpyAsync", to.address, source, to.nbytes, kind, self.stream)

    def mark(self) -> "_Event":
        """The end of the queue as it is now."""
        return _Event(self)

    def wait(self) -> None:
        """Until all that is queued is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Work) -> Work:
        """What ``work`` queues, as a CUDA graph."""
        self._call(
            "cudaStreamBeginCapture", self.stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:  # Ctrl-C too, or the stream would be captured for ever
            self._abandon_capture()
            raise
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            self._check(graph)
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return _Graph(self, executable)

    def _abandon_capture(self) -> None:
        status, graph = self._cuda.cudaStreamEndCapture(self.stream)
        if not int(status) and int(graph):
            self._cuda.cudaGraphDestroy(graph)
        self._cuda.cudaGetLastError()

    def _check(self, graph: Any) -> None:
        """Refuse a graph that reads the host's memory or calls the host: neither is as it was when it is repeated."""
        kinds = self._cuda.cudaGraphNodeType
        _, n_nodes = self._call("cudaGraphGetNodes", graph)
        nodes, _ = self._call("cudaGraphGetNodes", graph, n_nodes)
        allowed = (
            kinds.cudaGraphNodeTypeKernel, kinds.cudaGraphNodeTypeMemset, kinds.cudaGraphNodeTypeEmpty,
            kinds.cudaGraphNodeTypeMemAlloc, kinds.cudaGraphNodeTypeMemFree,
        )  # fmt: skip
        for node in nodes[:n_nodes]:
            kind = self._call("cudaGraphNodeGetType", node)
            if kind == kinds.cudaGraphNodeTypeMemcpy:
                copied = self._call("cudaGraphMemcpyNodeGetParams", node)
                if all(self._is_here(place.ptr) for place in (copied.srcPtr, copied.dstPtr)):
                    continue
                raise DeviceError("what was captured copies from or to the host's memory, and cannot be repeated")
            if kind not in allowed:
                raise DeviceError(f"what was captured has a node of another kind, {kind}, and cannot be repeated")

    def _is_here(self, address: Any) -> bool:
        attributes = self._call("cudaPointerGetAttributes", int(address))
        return bool(attributes.type == self._cuda.cudaMemoryType.cudaMemoryTypeDevice)

    def trim(self) -> None:
        """Give back the memory of arrays that nobody has."""
        addresses = self._reserve.drain()
        if addresses:
            self.wait()
        for address in addresses:
            self._call("cudaFree", address)


class _Event:
    """A CUDA event that is recorded when it is made; waiting for it does not keep a core busy."""

    def __init__(self, device: CudaDevice) -> None:
        self._device, cuda = device, device._cuda
        flags = cuda.cudaEventDisableTiming | cuda.cudaEventBlockingSync
        self._event = device._call("cudaEventCreateWithFlags", flags)
        device._call("cudaEventRecord", self._event, device.stream)

    def wait(self) -> None:
        self._device._call("cudaEventSynchronize", self._event)

    def __del__(self) -> None:
        if hasattr(self, "_event"):
            self._device._cuda.cudaEventDestroy(self._event)


class _Graph:
    """A CUDA graph that can be launched."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device, self._executable = device, executable

    def __call__(self) -> None:
        self._device._call("cudaGraphLaunch", self._executable, self._device.stream)

    def __del__(self) -> None:
        self._device._cuda.cudaGraphExecDestroy(self._executable)
