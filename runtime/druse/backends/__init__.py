"""What runs a bundle's networks. A backend knows ONNX files and arrays, and nothing of crystals.

==================  ===========  =====================================================================================
name                extra        how it runs
==================  ===========  =====================================================================================
``ort-cpu``         ``cpu``      ONNX Runtime, one thread for each call, as many calls side by side as threads are
                                 given, and the native library for the score network and the prior. float32. The same
                                 bytes whatever the threads and the rest of the batch. In float16 it runs a bundle's
                                 float16 graphs with a cast at each product: to see what they give, not for speed.
``ort-cuda``        ``cuda``     ONNX Runtime's CUDA provider for the score network, with state and geometry on the
                                 device, and the rest as ``ort-cpu``. float32, TF32, or a bundle's float16 or bfloat16
                                 graphs.
``ort-host``        ``cpu``      The same, resident loop and all, with the host as the device: to compare with.
``ort-tensorrt``    ``cuda``     ONNX Runtime's TensorRT provider in its place, in TF32, as TensorRT 10 is installed: to
                                 compare with.
``ort-openvino``    ``openvino`` OpenVINO's provider in ONNX Runtime, all threads for each call. float32 or bfloat16.
``tensorrt``        its name     As ``ort-cuda``, with an engine of TensorRT 10 or 11 for each bucket, kept on disk.
``tensorrt-rtx``    its name     The same with TensorRT for RTX devices, which pip installs alone.
==================  ===========  =====================================================================================

A backend that is asked for by name runs or raises; ``auto`` takes the first that can run, and logs which.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np

from druse._arrays import number
from druse._device import Device, Work
from druse.bundle import Network, Precision
from druse.errors import DeviceError, InputError, MissingDependencyError

__all__ = [
    "BACKENDS",
    "PREFERRED",
    "Backend",
    "OutOfMemoryError",
    "ResidentBackend",
    "Runner",
    "open_backend",
    "open_backends",
]

_log = logging.getLogger(__name__)

Runner = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]
"""A network that is ready: arrays by the names of its inputs, to arrays in the order of its outputs."""


class OutOfMemoryError(DeviceError, MemoryError):
    """The memory for one call could not be had; the same work in smaller pieces may fit."""


@runtime_checkable
class Backend(Protocol):
    """Where networks run.

    Attributes:
        name: as in `BACKENDS`.
        precision: of products in the score network and the priors; the other networks are small, and in float32.
        typed: whether the precision must be written in a graph, so that the bundle must hold one for it.
        workers: calls of runners that may run side by side, each from a thread of its own.
        fused: whether Druse's own kernels stand in for networks whose formulation they know.
        device: where a sampler's state and the score network's inputs and outputs stay between steps; None: such a
            backend takes and gives arrays of the host. One with a device is a `ResidentBackend`.
        memory: bytes that are free for inputs, outputs and what stands between them, over all workers.
    """

    name: str
    precision: Precision
    typed: bool
    workers: int
    fused: bool

    @property
    def device(self) -> Device | None:
        """See above."""
        ...

    @property
    def memory(self) -> int:
        """Bytes free now."""
        ...

    def load(self, content: bytes, network: Network, precision: Precision) -> Runner:
        """Make a network ready.

        Args:
            content: of its ONNX file.
            network: its signature.
            precision: of its products; where the backend is ``typed``, that of the file.

        Raises:
            InputError: the file does not have this signature, or is no network.
        """
        ...

    def describe(self) -> str:
        """The library, its version, and how it is set."""
        ...


@runtime_checkable
class ResidentBackend(Backend, Protocol):
    """A backend that evaluates the score network on a device, from memory to memory.

    Other networks, and Druse's own kernels for the prior, run as of any `Backend`, on the host.
    """

    @property
    def device(self) -> Device:
        """Its device."""
        ...

    def prepare(
        self,
        content: bytes,
        network: Network,
        precision: Precision,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> Work:
        """Make a network ready for inputs and outputs in fixed places of `device`.

        Args:
            content: of its ONNX file.
            network: its signature.
            precision: of its products; where the backend is ``typed``, that of the file.
            shapes: of every input and output, by name; C order.
            addresses: where they lie, by name. They stay valid for as long as the answer is used.

        Returns:
            What queues one evaluation on the device's stream, from the calling thread, and does not wait. After it has
            been called a few times it allocates nothing more, so that `druse._device.Device.capture` may take it.

        Raises:
            InputError: the file does not have this signature, or is no network.
            OutOfMemoryError: the device has no memory for it.
            DeviceError: it cannot run there.
        """
        ...


def _ort_cpu(precision: Precision, n_threads: int) -> Backend:
    from druse.backends._ort import OrtCPU

    return OrtCPU(precision, n_threads)


def _ort_openvino(precision: Precision, n_threads: int) -> Backend:
    from druse.backends._openvino import OrtOpenVINO

    return OrtOpenVINO(precision, n_threads)


def _ort_cuda(precision: Precision, n_threads: int, index: int = 0) -> ResidentBackend:
    from druse.backends._ort_cuda import OrtCUDA

    return OrtCUDA(precision, n_threads, index)


def _ort_host(precision: Precision, n_threads: int, index: int = 0) -> ResidentBackend:
    from druse.backends._ort import OrtHost

    return OrtHost(precision, n_threads, index)


def _ort_tensorrt(precision: Precision, n_threads: int, index: int = 0) -> ResidentBackend:
    from druse.backends._ort_cuda import OrtTensorRT

    return OrtTensorRT(precision, n_threads, index)


def _tensorrt(precision: Precision, n_threads: int, index: int = 0) -> ResidentBackend:
    from druse.backends._tensorrt import TensorRT

    return TensorRT(precision, n_threads, index)


def _tensorrt_rtx(precision: Precision, n_threads: int, index: int = 0) -> ResidentBackend:
    from druse.backends._tensorrt import TensorRTRTX

    return TensorRTRTX(precision, n_threads, index)


BACKENDS: dict[str, Callable[[Precision, int], Backend]] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "ort-host": _ort_host,
    "ort-openvino": _ort_openvino,
    "ort-tensorrt": _ort_tensorrt,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}
_AUTO = ("ort-cuda", "ort-cpu")
_ON_DEVICES: dict[str, tuple[str, Callable[[Precision, int, int], ResidentBackend]]] = {
    "ort-cuda": ("cuda", _ort_cuda),
    "ort-host": ("host", _ort_host),
    "ort-tensorrt": ("cuda", _ort_tensorrt),
    "tensorrt": ("cuda", _tensorrt),
    "tensorrt-rtx": ("cuda", _tensorrt_rtx),
}

PREFERRED: dict[str, tuple[Precision, ...]] = {"ort-cuda": ("fp16", "tf32", "fp32"), "ort-tensorrt": ("tf32",)}
"""What ``auto`` is as a precision: the first of these that the bundle has; fp32 on backends that are not listed.

On a GPU the fastest first, of those in which crystals are distributed as in fp32 by ``benchmarks/precision.py``: on an
H200, 500 crystals of each (``docs/performance.md``).
"""


def open_backend(
    name: str = "auto", *, precision: str = "auto", n_threads: int = 0, stated: Collection[Precision] = ()
) -> Backend:
    """A backend by its name, on its first device where it has any.

    Args:
        name: one of `BACKENDS`, or ``auto``.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``, of products, and then never changed; or ``auto``, see
            `PREFERRED`.
        n_threads: 0 for every core that this process may use.
        stated: the precisions that the bundle's networks state in graphs of their own, among which ``auto`` may choose.

    Raises:
        InputError: no backend, or no precision, has this name.
        MissingDependencyError: its extra is not installed.
        DeviceError: it cannot run here, or not in this precision.
    """
    n_threads = _checked(name, precision, n_threads)
    if name == "auto":
        found = _first_that_runs(precision, n_threads, stated)
    else:
        found = BACKENDS[name](_chosen(name, precision, stated), n_threads)
    if "auto" in (name, precision):
        _log.info("backend %s, %s, %d threads", found.name, found.precision, n_threads)
    return found


def open_backends(
    name: str,
    devices: Sequence[str],
    *,
    precision: str = "auto",
    n_threads: int = 0,
    stated: Collection[Precision] = (),
) -> tuple[ResidentBackend, ...]:
    """A backend once on each of several devices; the first one's host runs what does not run on a device.

    Args:
        name: one of `BACKENDS`, or ``auto``, which takes ``ort-cuda``.
        devices: such as ``cuda:0``; of ``ort-host``, ``host:0`` and any number of others.
        precision: see `open_backend`.
        n_threads: see there.
        stated: see there.

    Raises:
        InputError: see there; or the backend has no devices, or none of these names.
        MissingDependencyError: its extra is not installed.
        DeviceError: one of the devices cannot run it.
    """
    n_threads = _checked(name, precision, n_threads)
    name = "ort-cuda" if name == "auto" else name
    if name not in _ON_DEVICES:
        raise InputError(f"`devices` are for {', '.join(_ON_DEVICES)}; leave them out for {name}")
    kind, opened = _ON_DEVICES[name]
    found = [re.fullmatch(rf"{kind}:(\d{{1,4}})", device) for device in devices]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < len(found) or len(set(numbers)) < len(found) or not found:
        raise InputError(
            f"`devices` of {name} must be different ones such as {kind}:0 and {kind}:1, got {', '.join(devices)}"
        )
    chosen = _chosen(name, precision, stated)
    return tuple(opened(chosen, n_threads, number) for number in numbers)


def _checked(name: str, precision: str, n_threads: int) -> int:
    n_threads = number("n_threads", n_threads, "a whole number from 0 (every core)", lambda n: n >= 0, integer=True)
    if precision != "auto" and precision not in get_args(Precision):
        raise InputError(f"`precision` must be auto or one of {', '.join(get_args(Precision))}, got {precision!r}")
    if name not in ("auto", *BACKENDS):
        raise InputError(f"`backend` must be auto or one of {', '.join(BACKENDS)}, got {name!r}")
    return n_threads or cores()


def _chosen(name: str, precision: str, stated: Collection[Precision]) -> Precision:
    if precision != "auto":
        return precision  # type: ignore[return-value]
    usable = ("fp32", "tf32", *stated)
    return next((preferred for preferred in PREFERRED.get(name, ()) if preferred in usable), "fp32")


def _first_that_runs(precision: str, n_threads: int, stated: Collection[Precision]) -> Backend:
    reasons = []
    for name in _AUTO:
        try:
            return BACKENDS[name](_chosen(name, precision, stated), n_threads)
        except (DeviceError, MissingDependencyError) as error:
            reasons.append(f"{name}: {error}")
    raise DeviceError("no backend can run: " + "; ".join(reasons))


def cores() -> int:
    """Cores that this process may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
