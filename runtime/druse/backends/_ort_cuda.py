"""ONNX Runtime's CUDA provider for the score network; the other networks as on the CPU.

The session reads and writes a bucket's arrays where they lie, on the device's own stream, and does not wait. Free
lengths are replaced by the bucket's, so that no shape is computed while it runs, and what it does is the same kernels
each time. Its own CUDA graph stays off: it would hold the network alone, and could not be part of ours.
"""

import contextlib
import io
from collections.abc import Mapping

from druse._cuda import CudaDevice
from druse._device import Work
from druse.backends._ort import ONLY_ONNX, OrtCPU, bound, checked_session, onnxruntime
from druse.bundle import Network, Precision
from druse.errors import DeviceError

PROVIDER = "CUDAExecutionProvider"


class OrtCUDA(OrtCPU):
    """The score network on a GPU. Conditions, heads, Predictor and prior run on the CPU, in float32, as of `OrtCPU`.

    So a run's latents, cells and starting points are the bytes of ``ort-cpu``.
    """

    name = "ort-cuda"

    def __init__(self, precision: Precision, n_threads: int, index: int = 0) -> None:
        """Opens the device of this number.

        Raises:
            DeviceError: there is none of this number, or this ONNX Runtime is not the one for CUDA.
            MissingDependencyError: something is not installed.
        """
        module = onnxruntime("cuda")
        if PROVIDER not in module.get_available_providers():
            raise DeviceError(
                f"ONNX Runtime {module.__version__} was built without CUDA; pip uninstall --yes onnxruntime && "
                "pip install 'druse[cuda]'"
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
        how = {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self.device.stream),
            "use_tf32": "1" if precision == "tf32" else "0",
            "enable_cuda_graph": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        session = checked_session(
            self._module, content, network, options, providers=[(PROVIDER, how)],
            disabled_optimizers=["GatherSliceToSplitFusion"],
        )  # fmt: skip
        if PROVIDER not in session.get_providers():
            raise DeviceError(
                f"ONNX Runtime {self._module.__version__} could not load its CUDA provider and fell back to "
                f"{', '.join(session.get_providers())}; `druse doctor` says what is missing"
            )
        return bound(self._module, session, network, shapes, addresses, ("cuda", self.device.index))

    def describe(self) -> str:
        """Version, device and threads."""
        return f"ONNX Runtime {self._module.__version__} on {self.device.name}, the rest on {self.workers} x 1 threads"
