"""OpenVINO's provider for ONNX Runtime, on the CPU."""

import json
from typing import Any

from druse._device import Device, free_memory
from druse.backends import Runner
from druse.backends._ort import ONLY_ONNX, onnxruntime, open_session
from druse.bundle import Network, Precision
from druse.errors import DeviceError, MissingDependencyError

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OrtOpenVINO:
    """OpenVINO: all threads for each call, in the precision that was asked for (its own choice would be bf16)."""

    name = "ort-openvino"
    device: Device | None = None

    def __init__(self, precision: Precision, n_threads: int) -> None:
        if precision not in _HINTS:
            raise DeviceError(f"ort-openvino computes in fp32 or bf16, got {precision}")
        self._module = onnxruntime("openvino")
        self._devices = _devices(self._module)
        self.precision: Precision = precision
        self.typed, self.fused = False, False
        self.workers, self._n_threads = 1, n_threads

    @property
    def memory(self) -> int:
        """Bytes free now."""
        return free_memory()

    def load(self, content: bytes, network: Network, precision: Precision) -> Runner:
        """Compile a network."""
        options = self._module.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry(*ONLY_ONNX)
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": str(self._n_threads),
            "NUM_STREAMS": "1",
        }
        options.add_provider_for_devices(self._devices, {"load_config": json.dumps({"CPU": config})})
        return open_session(self._module, content, network, options)

    def describe(self) -> str:
        """Version and threads."""
        return f"ONNX Runtime {self._module.__version__} with OpenVINO, 1 x {self._n_threads} threads"


def _devices(module: Any) -> list[Any]:
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError as error:
        raise MissingDependencyError("this backend needs OpenVINO's provider; pip install 'druse[openvino]'") from error
    name = plugin.get_ep_name()

    def found() -> list[Any]:
        return [d for d in module.get_ep_devices() if d.ep_name == name and "CPU" in str(d.device.type)]

    if not found():
        module.register_execution_provider_library(name, plugin.get_library_path())
    if not found():
        raise DeviceError("OpenVINO's provider finds no CPU that it can use; take the backend ort-cpu")
    return found()[:1]
