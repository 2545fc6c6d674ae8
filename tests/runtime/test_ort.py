"""Sessions of ONNX Runtime: on the providers that were asked for, or an exception that says whose fault it was."""

from types import SimpleNamespace
from typing import Any

import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="what runs bundles")

from druse.backends import OutOfMemoryError  # noqa: E402
from druse.backends._ort import bound, checked_session  # noqa: E402
from druse.bundle import Bundle  # noqa: E402
from druse.errors import DeviceError, InputError  # noqa: E402

HEADS = Bundle.embedded().con_cdvae.networks["heads"]

FULL = (
    "CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_)",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 2: out of memory ; GPU=0",
    "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 51200",
)
BROKEN = (
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0",
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
    "CUDA_PATH is set but CUDA wasn't able to be loaded",
    "TensorRT EP failed to create engine from network",
)
"""What ONNX Runtime says on GPUs; there need not be one here."""


class Stub:
    """ONNX Runtime where its device fails."""

    def __init__(self, text: str) -> None:
        self.error = RuntimeError(text)

    def InferenceSession(self, *_: Any, **__: Any) -> Any:  # noqa: N802  its name
        raise self.error

    def RunOptions(self) -> Any:  # noqa: N802
        return SimpleNamespace(add_run_config_entry=lambda *_: None)

    def io_binding(self) -> Any:
        return SimpleNamespace(bind_input=lambda *_: None, bind_output=lambda *_: None)

    def run_with_iobinding(self, *_: Any) -> None:
        raise self.error


@pytest.mark.parametrize("provider", [("CPUExecutionProvider", "no options"), 7])
def test_a_provider_that_fails_is_not_replaced(provider: Any, capfd: pytest.CaptureFixture[str]) -> None:
    content, options = Bundle.embedded().read(HEADS.file), onnxruntime.SessionOptions()
    with pytest.raises(InputError, match="is refused by ONNX Runtime"):
        checked_session(onnxruntime, content, HEADS, options, providers=[provider])
    assert "Falling back" not in capfd.readouterr().out


@pytest.mark.parametrize("text", FULL)
def test_a_device_that_is_full(text: str) -> None:
    stub = Stub(text)
    with pytest.raises(OutOfMemoryError, match=HEADS.file):
        checked_session(stub, b"", HEADS, None)
    with pytest.raises(OutOfMemoryError, match=HEADS.file):
        _bound(stub)()


@pytest.mark.parametrize("text", BROKEN)
def test_a_device_that_fails(text: str) -> None:
    stub = Stub(text)
    for call in (lambda: checked_session(stub, b"", HEADS, None), _bound(stub)):
        with pytest.raises(DeviceError, match=r"failed: (CUDA|TensorRT)") as caught:
            call()
        assert not isinstance(caught.value, MemoryError)


def _bound(stub: Stub) -> Any:
    tensors = (*HEADS.inputs, *HEADS.outputs)
    shapes = {tensor.name: tuple(1 for _ in tensor.shape) for tensor in tensors}
    return bound(stub, stub, HEADS, shapes, {tensor.name: 256 for tensor in tensors}, ("cuda", 0))
