"""A look through an ONNX file before a backend gets it.

Reads the protocol-buffer wire format just far enough to see every operation and every tensor. Refused are operations
beyond arithmetic on what is given, subgraphs and functions, tensors outside the file, and tensors that claim other
than the numbers they hold. How large a network makes the tensors between its operations is not looked at. Field numbers
are those of ``onnx.proto`` (https://github.com/onnx/onnx, IR version 10).
"""

import math
from collections.abc import Iterator

import numpy as np

from druse.errors import InputError

__all__ = ["OPERATIONS", "check_network", "float_tensors"]

OPERATIONS = frozenset(
    {
        *(
            "Abs",
            "Add",
            "Div",
            "Exp",
            "Log",
            "Mul",
            "Neg",
            "Pow",
            "Relu",
            "Sigmoid",
            "Softmax",
            "LogSoftmax",
            "Softplus",
            "Sub",
            "Tanh",
        ),
        *("Cast", "Greater", "Less", "Where", "Max", "Min", "ReduceSum", "BatchNormalization", "Gemm", "MatMul"),
        *("Concat", "Constant", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze"),
        *("Transpose", "Unsqueeze"),
    }
)
"""Operations of the standard that take numbers and give numbers."""

_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}  # TensorProto.DataType
_LARGEST_RANK, _LONGEST_NAME = 16, 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATION, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS = 5, 10
_ATTRIBUTE_PLAIN = (1, 2, 3, 4, 7, 8, 9, 13, 21)  # names, numbers, strings
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_RAW = 1, 2, 9
_TENSOR_FLOATS, _TENSOR_INT32, _TENSOR_INT64, _TENSOR_DOUBLES = 4, 5, 7, 10
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_FLOAT32 = 1

Value = int | memoryview | bytes
"""A number, what has a length of its own, or 4 or 8 bytes."""


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
    except (_MalformedError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be used: {error}; build the bundle again from its checkpoint") from error


def _check_model(model: memoryview) -> None:
    if bytes(model[4:8]) == b"ORTM":  # ONNX Runtime would take it for its own format and not see what is looked at here
        raise _MalformedError("it can be taken for a file of ONNX Runtime's own format")
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
    operations: list[str] = []
    for field, value in _fields(node):
        if field == _NODE_OPERATION:
            operations.append(_text(value))
        elif field == _NODE_DOMAIN:
            _check_domain(_text(value))
        elif field == _NODE_ATTRIBUTE:
            _check_attribute(_message(value))
    if len(operations) != 1 or operations[0] not in OPERATIONS:
        raise _MalformedError(
            f"it uses the operation {', '.join(operations[:2])!r}, which is not among those that networks need"
        )


def _check_attribute(attribute: memoryview) -> None:
    tensors = 0
    for field, value in _fields(attribute):
        if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            tensors += field == _ATTRIBUTE_TENSOR
            _check_tensor(_message(value))
        elif not isinstance(value, int) and field not in _ATTRIBUTE_PLAIN:
            raise _MalformedError("an operation has a subgraph, or sparse tensors")
    if tensors > 1:  # a reader would merge them into one that was not looked at
        raise _MalformedError("it is no ONNX model")


def _check_domain(domain: str) -> None:
    if domain not in ("", "ai.onnx"):
        raise _MalformedError(f"it uses operations of the domain {domain!r}")


def _check_tensor(tensor: memoryview) -> None:
    dims: list[int] = []
    kind, numbers, raw = 0, 0, -1  # type, numbers held as such, bytes held
    for field, value in _fields(tensor):
        if field == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _varints(_message(value))
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field in (_TENSOR_EXTERNAL, _TENSOR_LOCATION):
            if value != 0:
                raise _MalformedError("a tensor lies in another file")
        elif field == _TENSOR_RAW:
            raw = len(_message(value))
        elif field == _TENSOR_FLOATS:
            numbers += len(value) // 4 if not isinstance(value, int) else 0
        elif field == _TENSOR_DOUBLES:
            numbers += len(value) // 8 if not isinstance(value, int) else 0
        elif field in (_TENSOR_INT32, _TENSOR_INT64):
            numbers += 1 if isinstance(value, int) else len(_varints(_message(value)))
    if kind not in _ITEM_BYTES:
        raise _MalformedError(f"a tensor has the type {kind}, which networks have no use for")
    # lengths below 0 are stored as numbers from 2**63, and the product of very many would take hours
    if len(dims) > _LARGEST_RANK or any(n >= 2**31 for n in dims):
        raise _MalformedError(f"a tensor has {len(dims)} axes, or an axis below 0 or above 2,147,483,647")
    size = math.prod(dims)
    if size * _ITEM_BYTES[kind] != raw if raw >= 0 else size != numbers:
        held = f"{raw} bytes" if raw >= 0 else f"{numbers} numbers"
        raise _MalformedError(f"a tensor claims the shape {dims} but holds {held}")


def float_tensors(content: bytes) -> dict[str, np.ndarray]:
    """The float32 weights of a file that `check_network` has passed, by name; views of ``content``."""
    tensors = {}
    for field, graph in _fields(memoryview(content)):
        if field != _MODEL_GRAPH:
            continue
        for inner, tensor in _fields(_message(graph)):
            if inner != _GRAPH_TENSOR:
                continue
            dims: list[int] = []
            name, kind, raw = "", 0, memoryview(b"")
            for place, value in _fields(_message(tensor)):
                if place == _TENSOR_DIMS:
                    dims += [value] if isinstance(value, int) else _varints(_message(value))
                elif place == _TENSOR_TYPE and isinstance(value, int):
                    kind = value
                elif place == _TENSOR_NAME:
                    name = _text(value)
                elif place == _TENSOR_RAW:
                    raw = _message(value)
            if kind == _FLOAT32 and len(raw) == 4 * math.prod(dims):
                tensors[name] = np.frombuffer(raw, np.float32).reshape(dims)
    return tensors


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of a message, in order."""
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
        piece = message[place : place + size]
        yield field, piece if kind == _BYTES else bytes(piece)
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
    if not isinstance(value, memoryview):
        raise _MalformedError("it is no ONNX model")
    return value


def _text(value: Value) -> str:
    text = _message(value)
    if len(text) > _LONGEST_NAME:
        raise _MalformedError("it is no ONNX model")
    return bytes(text).decode()
