"""ONNX Runtime's CUDA and TensorRT providers for the score network; the other networks as on the CPU.

The session reads and writes a bucket's arrays where they lie, on the device's own stream, and does not wait. Free
lengths are replaced by the bucket's, so that no shape is computed while it runs, and what it does is the same kernels
each time. Its own CUDA graph stays off: it would hold the network alone, and could not be part of ours.
"""

import contextlib
import importlib
import io
from collections.abc import Mapping

from druse._cuda import CudaDevice
from druse._device import Work
from druse.backends._ort import ONLY_ONNX, OrtCPU, bound, checked_session, onnxruntime
from druse.bundle import Network, Precision
from druse.errors import DeviceError

Providers = list[tuple[str, dict[str, str]]]


class OrtCUDA(OrtCPU):
    """The score network on a GPU. Conditions, heads, Predictor and prior run on the CPU, in float32, as of `OrtCPU`.

    So a run's latents, cells and starting points are the bytes of ``ort-cpu``.
    """

    name = "ort-cuda"
    provider = "CUDAExecutionProvider"

    def __init__(self, precision: Precision, n_threads: int, index: int = 0) -> None:
        """Opens the device of this number.

        Raises:
            DeviceError: there is none of this number, or this ONNX Runtime is not the one for CUDA.
            MissingDependencyError: something is not installed.
        """
        module = onnxruntime("cuda")
        if self.provider not in module.get_available_providers():
            raise DeviceError(
                f"ONNX Runtime {module.__version__} was built without {self.provider}; pip uninstall --yes onnxruntime "
                "&& pip install 'druse[cuda]'"
            )
        super().__init__("fp32", n_threads)
        if hasattr(module, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                module.preload_dlls()  # CUDA and cuDNN from their wheels
        self.device: CudaDevice = CudaDevice(index)
        self.precision, self.typed = precision, True

    @property
    def memory(self) -> int:
        """Bytes free now, on the device."""
        self.device.enter()
        return self.device.memory

    def prepare(
        self,
        content: bytes,
        network: Network,
        precision: Precision,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> Work:
        """Make a network ready for fixed places."""
        options = self._module.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry(*ONLY_ONNX)
        for tensor in (*network.inputs, *network.outputs):
            for name, length in zip(tensor.shape, shapes[tensor.name], strict=True):
                if isinstance(name, str):
                    options.add_free_dimension_override_by_name(name, length)
        session = checked_session(
            self._module, content, network, options, providers=self._providers(precision),
            disabled_optimizers=["GatherSliceToSplitFusion"],
        )  # fmt: skip
        if self.provider not in session.get_providers():
            raise DeviceError(
                f"ONNX Runtime {self._module.__version__} could not load its {self.provider} and fell back to "
                f"{', '.join(session.get_providers())}; {self._cure}"
            )
        return bound(self._module, session, network, shapes, addresses, ("cuda", self.device.index))

    _cure = "`druse doctor` says what is missing"

    def _providers(self, precision: Precision) -> Providers:
        """In the order in which they take nodes, each with its options."""
        cuda = {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self.device.stream),
            "use_tf32": "1" if precision == "tf32" else "0",
            "enable_cuda_graph": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [(OrtCUDA.provider, cuda)]

    def describe(self) -> str:
        """Version, device and threads."""
        return f"ONNX Runtime {self._module.__version__} on {self.device.name}, the rest on {self.workers} x 1 threads"


class OrtTensorRT(OrtCUDA):
    """ONNX Runtime's TensorRT provider in the place of its CUDA provider, which takes what TensorRT refuses.

    It is here to compare with; `druse.backends._tensorrt` is what asks TensorRT itself. The provider's networks are
    typed weakly: it has no option against TF32, and with float16 allowed TensorRT chooses where. So of the precisions
    only TF32 is what it says.
    """

    name = "ort-tensorrt"
    provider = "TensorrtExecutionProvider"

    def __init__(self, precision: Precision, n_threads: int, index: int = 0) -> None:
        """As of `OrtCUDA`.

        Raises:
            DeviceError: see there; or the precision is another than TF32.
            MissingDependencyError: see there.
        """
        if precision != "tf32":
            raise DeviceError(
                f"ort-tensorrt computes in tf32 (TensorRT chooses by itself there), got {precision}; take tensorrt"
            )
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")  # its wheel's libraries, if they are not the system's
        super().__init__(precision, n_threads, index)

    _cure = "it needs TensorRT 10, libnvinfer.so.10: pip install 'tensorrt>=10,<11'"

    def _providers(self, precision: Precision) -> Providers:
        how = {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self.device.stream),
            "trt_cuda_graph_enable": "0",  # as of ONNX Runtime's own
        }
        return [(self.provider, how), *super()._providers(precision)]
