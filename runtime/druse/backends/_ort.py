"""ONNX Runtime on the CPU, and what its other providers share with it."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from druse._device import Device, HostDevice, Work, free_memory
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
    """A session as a function of arrays."""
    names = [tensor.name for tensor in network.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        try:
            return tuple(session.run(names, inputs))
        except Exception as error:
            raise _failure(network, error) from error

    return run


def open_session(module: Any, content: bytes, network: Network, options: Any, **how: Any) -> Runner:
    """A session of a network's file, as a function.

    Raises:
        InputError: ONNX Runtime does not take the file, or it has another signature.
    """
    return runner(checked_session(module, content, network, options, **how), network)


def checked_session(module: Any, content: bytes, network: Network, options: Any, **how: Any) -> Any:
    """A session of a network's file, on the providers that were asked for and no others.

    Raises:
        InputError: ONNX Runtime does not take the file, or it has other inputs or outputs than the manifest says.
        OutOfMemoryError: there is no memory for it.
        DeviceError: a provider's device fails.
    """
    try:  # or ONNX Runtime would print what failed, and go on with the CPU
        session = module.InferenceSession(content, options, enable_fallback=0, **how)
    except Exception as error:
        if _is_want_of_memory(error) or _OF_A_DEVICE.search(str(error)):
            raise _failure(network, error, DeviceError) from error
        raise InputError(f"{network.file} is refused by ONNX Runtime: {_first_line(error)}") from error
    for found, wanted, what in (
        (session.get_inputs(), network.inputs, "inputs"),
        (session.get_outputs(), network.outputs, "outputs"),
    ):
        has = [(t.name, _TYPES.get(t.type, t.type), len(t.shape)) for t in found]
        needs = [(t.name, t.dtype, len(t.shape)) for t in wanted]
        if has != needs:
            raise InputError(f"{network.file} has the {what} {has}, the manifest says {needs}; build the bundle again")
    return session


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def bound(
    module: Any,
    session: Any,
    network: Network,
    shapes: Mapping[str, tuple[int, ...]],
    addresses: Mapping[str, int],
    where: tuple[str, int],
) -> Work:
    """A session with its inputs and outputs in fixed places of a device ``(type, index)``; it does not wait."""
    binding, how = session.io_binding(), module.RunOptions()
    how.add_run_config_entry("disable_synchronize_execution_providers", "1")
    for tensor in network.inputs:
        binding.bind_input(
            tensor.name, *where, np.dtype(tensor.dtype).type, list(shapes[tensor.name]), addresses[tensor.name]
        )
    for tensor in network.outputs:
        binding.bind_output(
            tensor.name, *where, np.dtype(tensor.dtype).type, list(shapes[tensor.name]), addresses[tensor.name]
        )

    def run() -> None:
        try:
            session.run_with_iobinding(binding, how)
        except Exception as error:
            raise _failure(network, error, DeviceError) from error

    return run


_OF_A_DEVICE = re.compile(r"CU(DA|DNN|BLAS)|TensorRT|Tensorrt")
"""What ONNX Runtime names when one of NVIDIA's libraries fails, or cannot be loaded."""


def _is_want_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(words in text for words in ("allocat", "bad_alloc", "alloc_failed", "out of memory"))


def _failure(network: Network, error: Exception, other: type[DruseError] = DruseError) -> DruseError:
    """ONNX Runtime has one class for everything."""
    if _is_want_of_memory(error):
        return OutOfMemoryError(f"{network.file}: {_first_line(error)}")
    return other(f"{network.file} failed: {_first_line(error)}")


class OrtCPU:
    """ONNX Runtime's CPU provider: one thread for each call."""

    name = "ort-cpu"
    device: Device | None = None

    def __init__(self, precision: Precision, n_threads: int) -> None:
        if precision not in ("fp32", "fp16"):
            raise DeviceError(
                f"ort-cpu computes in fp32 or fp16 (ONNX Runtime's CPU has no other products), got {precision}"
            )
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
        return open_session(self._module, content, network, self._options(), providers=["CPUExecutionProvider"])

    def _options(self) -> Any:
        options = self._module.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # shapes change with every call
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry(*ONLY_ONNX)
        return options

    def describe(self) -> str:
        """Version and threads."""
        return f"ONNX Runtime {self._module.__version__}, {self.workers} x 1 threads"


class OrtHost(OrtCPU):
    """ONNX Runtime's CPU provider on a bucket in the host's memory: slow, and what the devices are compared with."""

    name = "ort-host"

    def __init__(self, precision: Precision, n_threads: int, index: int = 0) -> None:
        super().__init__(precision, n_threads)
        self.device: Device = HostDevice(index)

    def prepare(
        self,
        content: bytes,
        network: Network,
        precision: Precision,  # noqa: ARG002  in the graph
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> Work:
        """Make a network ready for fixed places."""
        cpu = ["CPUExecutionProvider"]
        session = checked_session(self._module, content, network, self._options(), providers=cpu)
        return bound(self._module, session, network, shapes, addresses, ("cpu", 0))
