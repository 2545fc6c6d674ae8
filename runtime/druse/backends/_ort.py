"""ONNX Runtime on the CPU, and what its other providers share with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from druse._device import Device, free_memory
from druse.backends import OutOfMemoryError, Runner
from druse.bundle import Network, Precision
from druse.errors import DeviceError, DruseError, InputError, MissingDependencyError

ONLY_ONNX = ("session.load_model_format", "ONNX")
"""Or ONNX Runtime would take a file that begins like one of its own format for one, whatever was looked at before."""

_TYPES = {"tensor(float)": "float32", "tensor(int32)": "int32"}


def onnxruntime(extra: str) -> Any:
    """The module, or the extra that brings it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        raise MissingDependencyError(f"this backend needs ONNX Runtime; pip install 'druse[{extra}]'") from error
    return module


def runner(session: Any, network: Network) -> Runner:
    """A session as a function of arrays.

    Raises:
        InputError: it has other inputs or outputs than the manifest says.
    """
    for found, wanted, what in (
        (session.get_inputs(), network.inputs, "inputs"),
        (session.get_outputs(), network.outputs, "outputs"),
    ):
        has = [(t.name, _TYPES.get(t.type, t.type), len(t.shape)) for t in found]
        needs = [(t.name, t.dtype, len(t.shape)) for t in wanted]
        if has != needs:
            raise InputError(f"{network.file} has the {what} {has}, the manifest says {needs}; build the bundle again")
    names = [tensor.name for tensor in network.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        try:
            return tuple(session.run(names, inputs))
        except Exception as error:  # ONNX Runtime has one class for everything
            if "allocat" in str(error).lower() or "bad_alloc" in str(error):
                raise OutOfMemoryError(f"{network.file}: {_first_line(error)}") from error
            raise DruseError(f"{network.file} failed: {_first_line(error)}") from error

    return run


def open_session(module: Any, content: bytes, network: Network, options: Any, **how: Any) -> Runner:
    """A session of a network's file, as a function.

    Raises:
        InputError: ONNX Runtime does not take the file.
    """
    try:
        session = module.InferenceSession(content, options, **how)
    except Exception as error:
        raise InputError(f"{network.file} is refused by ONNX Runtime: {_first_line(error)}") from error
    return runner(session, network)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class OrtCPU:
    """ONNX Runtime's CPU provider: one thread for each call."""

    name = "ort-cpu"
    device: Device | None = None

    def __init__(self, precision: Precision, n_threads: int) -> None:
        if precision not in ("fp32", "fp16"):
            raise DeviceError(f"ort-cpu computes in fp32 or fp16 (ONNX Runtime's CPU has no other products), got {precision}")
        self._module = onnxruntime("cpu")
        self.precision: Precision = precision
        self.typed, self.fused = precision != "fp32", precision == "fp32"
        self.workers = n_threads

    @property
    def memory(self) -> int:
        """Bytes free now."""
        return free_memory()

    def load(self, content: bytes, network: Network, precision: Precision) -> Runner:  # noqa: ARG002  in the graph
        """Make a network ready; its runner may be called from several threads at once."""
        options = self._module.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # shapes change with every call
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry(*ONLY_ONNX)
        return open_session(self._module, content, network, options, providers=["CPUExecutionProvider"])

    def describe(self) -> str:
        """Version and threads."""
        return f"ONNX Runtime {self._module.__version__}, {self.workers} x 1 threads"
