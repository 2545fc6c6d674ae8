"""What a child process runs to find out whether a backend works: ``python -m druse._probes NAME``.

A broken ONNX Runtime can take its process down, so `druse.doctor` asks one question in one child. The child prints one
line of JSON: ``{"detail": ...}`` where the backend ran a model and gave the right numbers. Anything else is a failure.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from druse.errors import DeviceError


def _field(number: int, payload: bytes | str | int) -> bytes:
    """A field in protocol-buffer encoding; every length and number here is below 128."""
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    data = payload.encode() if isinstance(payload, str) else payload
    return bytes([number << 3 | 2, len(data)]) + data


def doubling_model() -> bytes:
    """An ONNX model of one node, y = x + x on two float32 numbers."""
    shape = _field(2, _field(1, _field(1, 2)))
    vector = _field(2, _field(1, _field(1, 1) + shape))
    node = _field(1, "x") + _field(1, "x") + _field(2, "y") + _field(4, "Add")
    graph = (
        _field(1, node)
        + _field(2, "double")
        + _field(11, _field(1, "x") + vector)
        + _field(12, _field(1, "y") + vector)
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


NO_DEVICE = 3
"""Exit code of a probe that finds no device to run on."""


DEVICES = "devices"
"""The probe that is no backend: which CUDA devices answer."""


class NoDeviceError(Exception):
    """The machine has no device of this kind; nothing is broken."""


def _need_gpu() -> None:
    if not any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")):
        raise NoDeviceError("this machine has no NVIDIA GPU")


def _run(session: Any) -> None:
    import numpy as np

    (y,) = session.run(None, {"x": np.array([1.0, -2.5], np.float32)})
    if y.tolist() != [2.0, -5.0]:
        raise RuntimeError(f"a model that doubles [1, -2.5] gave {y.tolist()}")


def _ort_cpu() -> str:
    import onnxruntime

    _run(onnxruntime.InferenceSession(doubling_model(), providers=["CPUExecutionProvider"]))
    return f"ONNX Runtime {onnxruntime.__version__}"


def _ort_cuda() -> str:
    _need_gpu()
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(doubling_model(), providers=["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" not in session.get_providers():  # it falls back to the CPU without an error
        raise RuntimeError("the CUDA provider did not start; see the CUDA and cuDNN versions that this wheel needs")
    _run(session)
    return f"ONNX Runtime {onnxruntime.__version__}"


def _ort_openvino() -> str:
    import onnxruntime
    import onnxruntime_ep_openvino as plugin

    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name and "CPU" in str(d.device.type)]
    if not devices:
        raise RuntimeError("the OpenVINO provider found no CPU device")
    options = onnxruntime.SessionOptions()
    options.add_provider_for_devices(devices[:1], {})
    _run(onnxruntime.InferenceSession(doubling_model(), options))
    return f"ONNX Runtime {onnxruntime.__version__}"


def _tensorrt(name: str = "tensorrt") -> str:
    _need_gpu()
    from druse._driver import cuda_version
    from druse.backends._tensorrt import build, library, messages, tensorrt
    from druse.bundle import Network, Tensor

    module, gpu = tensorrt(name), _gpus()[0]
    x, y = (Tensor(name=name, dtype="float32", shape=(2,)) for name in "xy")
    network = Network(file="a model that doubles", inputs=(x,), outputs=(y,))
    engine = build(module, doubling_model(), network, {"x": (2,), "y": (2,)}).engine
    runtime = module.Runtime(messages(module))
    if runtime.deserialize_cuda_engine(engine) is None:
        major, minor = cuda_version()
        raise RuntimeError(
            f"{library(module)} cannot use {gpu.name} with a driver for CUDA {major}.{minor}: "
            f"{messages(module).take_error()}"
        )
    return f"{library(module)} on {gpu.name}"


def _tensorrt_rtx() -> str:
    return _tensorrt("tensorrt_rtx")


def _gpus() -> tuple[Any, ...]:
    from druse._driver import gpus

    try:
        found = gpus()
    except DeviceError as error:
        raise NoDeviceError(str(error)) from error
    if not found:
        raise NoDeviceError("the NVIDIA driver finds no device; check CUDA_VISIBLE_DEVICES and nvidia-smi")
    return found


def _devices() -> str:
    from druse._driver import cuda_version

    found, (major, minor) = _gpus(), cuda_version()
    return "; ".join(f"cuda:{gpu.number} {gpu}" for gpu in found) + f"; driver for CUDA {major}.{minor}"


def _cuda() -> str:
    from druse import _native

    library = _native.library()
    if not library.druse_has_cuda():
        raise NoDeviceError("this build has no CUDA kernels; install where nvcc is found")
    count = library.druse_cuda_devices()
    if count == 0:
        raise NoDeviceError("no CUDA device answers; check the driver with nvidia-smi")
    return f"{count} device{'s' if count > 1 else ''}"


PROBES: dict[str, Callable[[], str]] = {
    "ort-cpu": _ort_cpu,
    "ort-openvino": _ort_openvino,
    "ort-cuda": _ort_cuda,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
    "cuda-kernels": _cuda,
    DEVICES: _devices,
}


def main(name: str) -> int:
    """Run one probe and print its answer."""
    try:
        detail = PROBES[name]()
    except NoDeviceError as error:
        sys.stderr.write(f"{error}\n")
        return NO_DEVICE
    sys.stdout.write(json.dumps({"detail": detail}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
