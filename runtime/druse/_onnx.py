"""A look through an ONNX file before a backend gets it.

Reads the protocol-buffer wire format just far enough to see every operation and every tensor. Refused are operations
beyond arithmetic on what is given, subgraphs and functions, tensors outside the file, and tensors that claim more
numbers than the file holds. Field numbers are those of ``onnx.proto`` (https://github.com/onnx/onnx, IR version 10).
"""

import math
from collections.abc import Iterator

from druse.errors import InputError

__all__ = ["OPERATIONS", "check_network"]

OPERATIONS = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Cos",
        "Div",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "Greater",
        "Identity",
        "LayerNormalization",
        "Less",
        "Log",
        "LogSoftmax",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Softplus",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Swish",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
"""Operations of the standard that take numbers and give numbers."""

_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}  # TensorProto.DataType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATION, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS, _ATTRIBUTE_NUMBERS = 5, 10, (2, 3, 4, 7, 8, 9)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_INT32, _TENSOR_INT64, _TENSOR_RAW = 1, 2, 4, 5, 7, 9
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

Value = int | memoryview


class _MalformedError(Exception):
    pass


def check_network(content: bytes, name: str) -> None:
    """Refuse a file that is not a plain feed-forward network.

    Args:
        content: of the ONNX file.
        name: for the error.

    Raises:
        InputError: it is no ONNX file, or holds something that a bundle's network has no use for.
    """
    try:
        _check_model(memoryview(content))
    except (_MalformedError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be used: {error}; build the bundle again from its checkpoint") from error


def _check_model(model: memoryview) -> None:
    graphs = 0
    for field, value in _fields(model):
        if field == _MODEL_GRAPH:
            graphs += 1
            _check_graph(_message(value))
        elif field == _MODEL_OPSET:
            _check_domain(_text(dict(_fields(_message(value))).get(1, memoryview(b""))))
        elif field in (_MODEL_FUNCTIONS, _MODEL_TRAINING):
            raise _MalformedError("it defines functions or training steps")
    if graphs != 1:
        raise _MalformedError("it is no ONNX model")


def _check_graph(graph: memoryview) -> None:
    for field, value in _fields(graph):
        if field == _GRAPH_NODE:
            _check_node(_message(value))
        elif field == _GRAPH_TENSOR:
            _check_tensor(_message(value))
        elif field == _GRAPH_SPARSE:
            raise _MalformedError("it has sparse tensors")


def _check_node(node: memoryview) -> None:
    for field, value in _fields(node):
        if field == _NODE_OPERATION and _text(value) not in OPERATIONS:
            raise _MalformedError(
                f"it uses the operation {_text(value)!r}, which is not among those that networks need"
            )
        if field == _NODE_DOMAIN:
            _check_domain(_text(value))
        if field == _NODE_ATTRIBUTE:
            for inner, content in _fields(_message(value)):
                if inner in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                    _check_tensor(_message(content))
                elif isinstance(content, memoryview) and inner not in (1, 13, 21, *_ATTRIBUTE_NUMBERS):
                    raise _MalformedError("an operation has a subgraph")


def _check_domain(domain: str) -> None:
    if domain not in ("", "ai.onnx"):
        raise _MalformedError(f"it uses operations of the domain {domain!r}")


def _check_tensor(tensor: memoryview) -> None:
    dims: list[int] = []
    kind, numbers, raw = 0, 0, -1
    for field, value in _fields(tensor):
        if field == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field in (_TENSOR_EXTERNAL, _TENSOR_LOCATION):
            if value != 0:
                raise _MalformedError("a tensor lies in another file")
        elif field == _TENSOR_RAW:
            raw = len(_message(value))
        elif field == _TENSOR_FLOATS:
            numbers += len(value) // 4 if isinstance(value, memoryview) else 1
        elif field in (_TENSOR_INT32, _TENSOR_INT64):
            numbers += len(_varints(value)) if isinstance(value, memoryview) else 1
    if kind not in _ITEM_BYTES:
        raise _MalformedError(f"a tensor has the type {kind}, which networks have no use for")
    size = math.prod(dims)
    held = raw // _ITEM_BYTES[kind] if raw >= 0 else numbers
    if any(n < 0 or n >= 2**63 for n in dims) or size != held:
        raise _MalformedError(f"a tensor claims the shape {dims} but holds {held} numbers")


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of a message, in order: numbers as int, the rest as bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield field, value
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise _MalformedError("it is no ONNX model")
        if place + size > len(message):
            raise _MalformedError("it is cut off")
        yield field, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise _MalformedError("it is cut off")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _MalformedError("it is no ONNX model")


def _varints(packed: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        values.append(value)
    return values


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError("it is no ONNX model")
    return value


def _text(value: Value) -> str:
    return bytes(_message(value)).decode()
