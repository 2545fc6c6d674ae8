"""The rate of large products on a backend: the peak that a network's rate is compared with.

It is measured through the backend itself, in its precision: a graph of a few operations, y = x x x ..., is written here
byte by byte (the messages of ``onnx.proto``, https://github.com/onnx/onnx, IR version 8). Where the precision is stated
in graphs, x is cast once and y once, which is little beside `_PRODUCTS` products.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from druse._device import HostDevice
from druse.backends import Backend, ResidentBackend
from druse.bundle import Network, Precision, Tensor

__all__ = ["peak_gflops", "product_graph"]

_PRODUCTS = 8
_LARGE, _SMALL = 8192, 1024
"""Rows and columns, on a GPU and for one thread of a CPU: beyond them the rate rises no more."""

_ROUNDS = 3
_FLOAT, _INT = 1, 2  # TensorProto.FLOAT, AttributeProto.INT
_STATED = {"fp16": 10, "bf16": 16}  # TensorProto.FLOAT16, BFLOAT16


def peak_gflops(backend: Backend, *, n: int = 0) -> float:
    """Billions of floating-point operations a second in products, all workers together; the best of a few rounds.

    Args:
        backend: which is asked in its precision.
        n: rows and columns; 0: enough for the backend.

    Raises:
        OutOfMemoryError: there is no room for a few matrices.
        DeviceError: the backend cannot run.
    """
    resident = backend if isinstance(backend, ResidentBackend) and backend.device is not None else None
    on_host = resident is None or isinstance(resident.device, HostDevice)
    n = n or (_SMALL if on_host else _LARGE)
    # on a processor ONNX Runtime multiplies in float32, whatever the graph states
    stated = backend.precision if backend.typed and not on_host and backend.precision in _STATED else None
    content = product_graph(n, _PRODUCTS, stated)
    network = Network(
        file="a product", inputs=(Tensor(name="x", dtype="float32", shape=(n, n)),),
        outputs=(Tensor(name="y", dtype="float32", shape=(n, n)),),
    )  # fmt: skip
    x = np.random.default_rng(0).random((n, n), np.float32)
    x = (x - np.float32(0.5)) * np.float32(np.sqrt(12 / n))  # so that products neither grow nor vanish
    flops = 2.0 * _PRODUCTS * n**3
    if resident is None:
        run = backend.load(content, network, backend.precision)
        with ThreadPoolExecutor(backend.workers) as pool:
            seconds = _best(lambda: list(pool.map(run, [{"x": x}] * backend.workers)))
        return flops * backend.workers / seconds / 1e9
    device = resident.device
    device.enter()
    arrays = {name: device.empty((n, n), np.float32) for name in ("x", "y")}
    device.upload(arrays["x"], x)
    shapes, addresses = {k: a.shape for k, a in arrays.items()}, {k: a.address for k, a in arrays.items()}
    work = resident.prepare(content, network, backend.precision, shapes, addresses)

    def once() -> None:
        work()
        device.wait()

    seconds = _best(once)
    del work, arrays
    device.trim()
    return flops / seconds / 1e9


def _best(work: Callable[[], object]) -> float:
    """Seconds; the first round does not count."""
    found = []
    for _ in range(_ROUNDS + 1):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def product_graph(n: int, n_products: int, stated: Precision | None) -> bytes:
    """The ONNX file of y = x x ... x, with so many products.

    Args:
        n: rows and columns of x.
        n_products: how many.
        stated: precision of the products, which the graph casts to and from; None: float32.
    """
    first = "x" if stated is None else "x.cast"
    last = "y" if stated is None else "y.cast"
    nodes = [] if stated is None else [_cast("x", first, _STATED[stated])]
    at = first
    for k in range(n_products):
        to = last if k == n_products - 1 else f"p{k}"
        nodes.append(_node("MatMul", [at, first], to))
        at = to
    if stated is not None:
        nodes.append(_cast(last, "y", _FLOAT))
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"products")
    graph += _field(11, _value("x", n)) + _field(12, _value("y", n))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))


def _cast(source: str, to: str, kind: int) -> bytes:
    return _node("Cast", [source], to) + _field(5, _field(1, b"to") + _field(3, kind) + _field(20, _INT))


def _node(operation: str, inputs: Iterable[str], output: str) -> bytes:
    fed = b"".join(_field(1, name.encode()) for name in inputs)
    return fed + _field(2, output.encode()) + _field(4, operation.encode())


def _value(name: str, n: int) -> bytes:
    shape = _field(1, _field(1, n)) * 2
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a message: a number, or what has a length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
