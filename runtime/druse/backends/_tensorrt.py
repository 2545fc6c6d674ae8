"""TensorRT 10 and 11, and TensorRT-RTX, by their Python interface: a static engine for each set of shapes.

All three are one module object here, and what is used of it is common to them but for timings of kernels, a flag and a
question about capture. So tests that parse and build with TensorRT-RTX, which needs no device for that, run the code
that TensorRT runs. Networks are strongly typed: precision is what the graph says.
"""

import hashlib
import importlib
import logging
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from druse._cuda import CudaDevice
from druse._device import Work
from druse._driver import gpus
from druse._manifest import in_one_line
from druse.backends import OutOfMemoryError
from druse.backends._engines import EngineCache, default_folder
from druse.backends._ort import OrtCPU
from druse.bundle import Network, Precision
from druse.errors import DeviceError, DruseError, InputError, MissingDependencyError

_log = logging.getLogger(__name__)

BUILD = "1"
"""Part of every key; to be raised when `build` tells TensorRT something else, so that older engines are not used."""

ALIGNMENT = 256
"""Bytes, of every address that an engine gets."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a network's inputs and outputs, by name."""


class Built(NamedTuple):
    """What building gives.

    Attributes:
        engine: in the library's own format.
        timings: how fast kernels were on this device, for the next build; empty where the library keeps none.
    """

    engine: bytes
    timings: bytes


def tensorrt(name: str = "tensorrt") -> Any:
    """The module, or what brings it.

    Args:
        name: ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        MissingDependencyError: it is not installed, or older than TensorRT 10.
    """
    extra = name.replace("_", "-")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"this backend needs {_TITLES[name]}; pip install 'druse[{extra}]'") from error
    if name == "tensorrt" and int(module.__version__.partition(".")[0]) < 10:
        raise MissingDependencyError(
            f"this backend needs TensorRT 10 or 11, got {module.__version__}; pip install -U 'druse[{extra}]'"
        )
    return module


_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def library(module: Any) -> str:
    """Name and version."""
    return f"{_TITLES[module.__name__]} {module.__version__}"


@cache
def messages(module: Any) -> Any:
    """What the library logs to: Druse's logger, and its last error for the sentence of an exception.

    One for the process: the library keeps the first that it is given.
    """
    severity = module.ILogger.Severity
    errors, noise = (severity.ERROR, severity.INTERNAL_ERROR), severity.VERBOSE

    class Messages(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._of_thread = threading.local()

        def log(self, level: Any, text: str) -> None:
            """Called by the library, in any thread; must not raise."""
            if level in errors:
                self._of_thread.error = text
            if level != noise:
                _log.debug("%s", text)

        def take_error(self) -> str:
            """The last error of this thread since it was last asked for."""
            text = getattr(self._of_thread, "error", "") or "no reason given"
            self._of_thread.error = ""
            return in_one_line(text)

    return Messages()


def build(
    module: Any,
    content: bytes,
    network: Network,
    shapes: Shapes,
    *,
    precision: Precision = "fp32",
    timings: bytes = b"",
    n_threads: int = 0,
) -> Built:
    """An engine for these shapes and no others.

    Args:
        module: `tensorrt`.
        content: of the network's ONNX file.
        network: its signature.
        shapes: of every input and output.
        precision: of products that the graph has in float32, which may be rounded to TF32; otherwise as the graph says.
        timings: of an earlier build with the same library on the same device.
        n_threads: of the builder; 0 leaves it the choice.

    Raises:
        InputError: the file is no network of this signature, the shapes do not fit, or the library refuses a node.
        OutOfMemoryError: of the device.
    """
    check_shapes(network, shapes)
    log = messages(module)
    log.take_error()
    builder = module.Builder(log)
    if n_threads:
        builder.max_threads = n_threads
    graph = _parsed(module, builder, content, network)
    for place in range(graph.num_inputs):
        tensor = graph.get_input(place)
        tensor.shape = shapes[tensor.name]
    engine, timings = _compiled(module, builder, graph, precision, timings)
    if engine is None:
        said = log.take_error()
        if _is_want_of_memory(said):
            raise OutOfMemoryError(f"{network.file}: its engine needs more memory than there is: {said}")
        raise InputError(f"{network.file} is refused by {library(module)}: {said}")
    for place in range(graph.num_outputs):
        tensor = graph.get_output(place)
        if tuple(tensor.shape) != tuple(shapes[tensor.name]):
            raise InputError(
                f"`shapes` of {tensor.name} must be {tuple(tensor.shape)} for these inputs, got {shapes[tensor.name]}"
            )
    return Built(engine, timings)


def _compiled(
    module: Any, builder: Any, graph: Any, precision: Precision, timings: bytes
) -> tuple[bytes | None, bytes]:
    """Engine and timings; None where the library has logged an error instead."""
    config = builder.create_builder_config()
    if precision != "tf32":  # otherwise on by itself
        config.clear_flag(module.BuilderFlag.TF32)
    config.max_aux_streams = 0  # all work on the caller's stream
    user_allocation = getattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if user_allocation is not None:  # TensorRT-RTX would otherwise allocate as it runs, which no CUDA graph can hold
        config.set_flag(user_allocation)
    times_kernels = module.__name__ == "tensorrt"  # TensorRT-RTX does not, and would ask for a device
    if times_kernels:
        known = config.create_timing_cache(timings)
        if not config.set_timing_cache(known, False):  # of another device or version
            config.set_timing_cache(config.create_timing_cache(b""), False)
    engine = builder.build_serialized_network(graph, config)
    if engine is None:
        return None, b""
    return bytes(engine), bytes(config.get_timing_cache().serialize()) if times_kernels else b""


def check_shapes(network: Network, shapes: Shapes) -> None:
    """Refuse shapes that are not those of the network's inputs and outputs.

    Raises:
        InputError: one is missing or unknown, or a length is not what the signature or another shape says.
    """
    tensors = (*network.inputs, *network.outputs)
    _check_names("shapes", [tensor.name for tensor in tensors], shapes)
    lengths: dict[str, int] = {}
    for tensor in tensors:
        shape = tuple(shapes[tensor.name])
        pairs = zip(tensor.shape, shape, strict=False)
        wanted = tuple(lengths.setdefault(n, given) if isinstance(n, str) else n for n, given in pairs)
        if len(shape) != len(tensor.shape) or shape != wanted or min(shape, default=1) < 1:
            signature = ", ".join(map(str, tensor.shape))
            raise InputError(f"`shapes` of {tensor.name} must be [{signature}], the same wherever named, got {shape}")


def check_addresses(network: Network, addresses: Mapping[str, int]) -> None:
    """Refuse addresses that are not one for each input and output, aligned.

    Raises:
        InputError: one is missing or unknown, 0, or not a multiple of `ALIGNMENT`.
    """
    _check_names("addresses", [tensor.name for tensor in (*network.inputs, *network.outputs)], addresses)
    for name, address in addresses.items():
        if not address or address % ALIGNMENT:
            raise InputError(f"`addresses` must be multiples of {ALIGNMENT} and not 0, got {address:#x} for {name}")


def _check_names(what: str, wanted: list[str], given: Mapping[str, Any]) -> None:
    if sorted(given) != sorted(wanted):
        raise InputError(f"`{what}` must be of {', '.join(wanted)}, got {', '.join(given) or 'none'}")


def _parsed(module: Any, builder: Any, content: bytes, network: Network) -> Any:
    """The network in TensorRT's own form."""
    strongly_typed = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # version 11 has no other networks
    graph = builder.create_network(strongly_typed)
    parser = module.OnnxParser(graph, messages(module))
    if not parser.parse(content):
        said = "it is no ONNX model"
        if parser.num_errors:
            error = parser.get_error(0)
            said = f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"
        raise InputError(f"{network.file} is refused by {library(module)}: {in_one_line(said)}")
    kinds = {module.DataType.FLOAT: "float32", module.DataType.INT32: "int32"}
    for found, wanted, what in (
        ([graph.get_input(i) for i in range(graph.num_inputs)], network.inputs, "inputs"),
        ([graph.get_output(i) for i in range(graph.num_outputs)], network.outputs, "outputs"),
    ):
        has = [(t.name, kinds.get(t.dtype, str(t.dtype)), len(t.shape)) for t in found]
        needs = [(t.name, t.dtype, len(t.shape)) for t in wanted]
        if has != needs:
            raise InputError(f"{network.file} has the {what} {has}, the manifest says {needs}; build the bundle again")
    return graph


def _is_want_of_memory(said: str) -> bool:
    return "OutOfMemory" in said or "out of memory" in said.lower()


class TensorRT(OrtCPU):
    """TensorRT for the score network, on a GPU; the other networks as of `OrtCPU`, in float32.

    Args:
        precision: of products in the score network.
        n_threads: of the host's networks, and of building.
        index: number of the device.
        folder: where engines are kept; None: the platform's cache of this user.
    """

    name = "tensorrt"
    module = "tensorrt"

    def __init__(self, precision: Precision, n_threads: int, index: int = 0, folder: Path | None = None) -> None:
        """Opens the device.

        Raises:
            MissingDependencyError: something is not installed.
            DeviceError: there is no such device, or Druse was built without CUDA.
        """
        self._library = tensorrt(self.module)
        super().__init__("fp32", n_threads)
        found = gpus()
        self.device: CudaDevice = CudaDevice(index)
        self._gpu = found[self.device.index]
        self.precision, self.typed = precision, True
        self._cache = EngineCache(default_folder() if folder is None else folder)
        self._runtime = self._library.Runtime(messages(self._library))
        self._building = threading.Lock()  # two at once would time their kernels against each other

    @property
    def memory(self) -> int:
        """Bytes free now, on the device."""
        self.device.enter()
        return self.device.memory

    def describe(self) -> str:
        """Version, device and threads."""
        return f"{library(self._library)} on {self.device.name}, the rest on {self.workers} x 1 threads"

    def prepare(
        self,
        content: bytes,
        network: Network,
        precision: Precision,
        shapes: Shapes,
        addresses: Mapping[str, int],
    ) -> Work:
        """An engine between fixed places, whose addresses must be multiples of `ALIGNMENT`.

        Raises:
            InputError: the network is refused, or shapes or addresses do not fit.
            OutOfMemoryError: of the device.
            DeviceError: the device fails, or is none that the library supports.
        """
        check_addresses(network, addresses)
        self.device.enter()
        engine, stream = self._engine(content, network, precision, shapes), self.device.stream
        context = engine.create_execution_context()
        if context is None:
            raise self._failure(network)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failure(network)
        capturable = getattr(context, "is_stream_capturable", None)  # of TensorRT-RTX
        if capturable is not None and not capturable(stream):
            _log.warning("%s: %s cannot run it within a CUDA graph", network.file, library(self._library))

        def enqueue() -> None:
            if not context.execute_async_v3(stream):
                raise self._failure(network)

        return enqueue

    def _engine(self, content: bytes, network: Network, precision: Precision, shapes: Shapes) -> Any:
        """The engine, from the cache or built."""
        about = {"library": library(self._library), "device": str(self._gpu), "build": BUILD}
        lengths = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
        tf32 = str(precision == "tf32")
        key = {**about, "network": hashlib.sha256(content).hexdigest(), "shapes": lengths, "tf32": tf32}
        with self._building:
            kept = self._cache.read(key)
            engine = None if kept is None else self._runtime.deserialize_cuda_engine(kept)
            if engine is None:
                _log.info("%s: building an engine for %s", network.file, lengths)
                timings = {**about, "timings": "of kernels"}
                built = build(
                    self._library,
                    content,
                    network,
                    shapes,
                    precision=precision,
                    timings=self._cache.read(timings) or b"",
                    n_threads=self.workers,
                )
                self._cache.write(key, built.engine)
                if built.timings:
                    self._cache.write(timings, built.timings)
                engine = self._runtime.deserialize_cuda_engine(built.engine)
            if engine is None:
                raise self._failure(network)
        return engine

    def _failure(self, network: Network) -> DruseError:
        said = messages(self._library).take_error()
        if _is_want_of_memory(said):
            return OutOfMemoryError(f"{network.file}: the device has not enough memory: {said}")
        return DeviceError(f"{network.file}: {library(self._library)} on {self._gpu}: {said}")


class TensorRTRTX(TensorRT):
    """TensorRT-RTX: engines are built without looking at the device, and compiled for it when they are loaded."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
