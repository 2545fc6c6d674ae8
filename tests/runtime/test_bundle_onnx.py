"""What is looked for in a network's file before a backend gets it."""

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path

import bundles
import numpy as np
import onnx
import pytest
from bundles import refuse, require_one_sentence, with_manifest, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from druse import InputError
from druse._onnx import OPERATIONS, check_network

FILES = bundles.cgcnn_files()
PLAIN = FILES["network.onnx"]
Change = Callable[[onnx.ModelProto], object]


def changed(change: Change) -> bytes:
    model = bundles.cgcnn_network()
    change(model)
    return model.SerializeToString(deterministic=True)


def bundle_of(network: bytes, place: Path) -> Path:
    return write_folder(place / "tiny", with_manifest({**FILES, "network.onnx": network}))


def refuse_network(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=f"^tiny cannot be used: .*{says}") as caught:
        check_network(content, "tiny")
    require_one_sentence(caught.value)


def node(model: onnx.ModelProto, operation: str, **attributes: object) -> None:
    model.graph.node.append(helper.make_node(operation, ["share"], ["other"], **attributes))


def set_external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/hostname")


def sparse() -> onnx.SparseTensorProto:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [10**12])


def tensor(dims: list[int], kind: int = TensorProto.FLOAT, **held: object) -> TensorProto:
    return TensorProto(name="t", dims=dims, data_type=kind, **held)


SUBGRAPH = helper.make_graph([helper.make_node("Identity", ["share"], ["y"])], "inner", [], [])
TYPE = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])

REFUSED: dict[str, tuple[Change, str]] = {
    **{
        f"operation {name}": (lambda m, name=name: node(m, name), f"the operation {re.escape(repr(name))}, which is")
        for name in ("If", "Loop", "Scan", "SequenceMap", "ConstantOfShape", "RandomNormal", "StringConcat",
                     "EPContext", "ImageDecoder", "PyOp", "relu", "", "a\nb")
    },
    "operation with a long name": (lambda m: node(m, "Relu" * 10**5), "no ONNX model"),
    "node of another domain": (lambda m: node(m, "Add", domain="com.microsoft"), "of the domain 'com.microsoft'"),
    "node of ai.onnx.ml": (lambda m: node(m, "Add", domain="ai.onnx.ml"), "of the domain 'ai.onnx.ml'"),
    "import of ai.onnx.ml": (lambda m: m.opset_import.add(domain="ai.onnx.ml", version=3), "the domain 'ai.onnx.ml'"),
    "import of one's own": (lambda m: m.opset_import.add(domain="x\n", version=1), r"of the domain 'x\\n'"),
    "subgraph of an allowed operation": (lambda m: node(m, "Add", body=SUBGRAPH), "subgraph"),
    "subgraphs of an allowed operation": (lambda m: node(m, "Add", bodies=[SUBGRAPH]), "subgraph"),
    "type of an allowed operation": (lambda m: node(m, "Add", kind=TYPE), "subgraph"),
    "sparse constant": (lambda m: node(m, "Constant", sparse_value=sparse()), "sparse"),
    "sparse initializer": (lambda m: m.graph.sparse_initializer.append(sparse()), "sparse tensors"),
    "local function": (lambda m: m.functions.add(name="Add", domain="mine"), "functions or training"),
    "training step": (lambda m: m.training_info.add(), "functions or training"),
    "external data": (set_external, "a tensor lies in another file"),
    "external location alone": (
        lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL), "lies in another file"),
    "external path alone": (lambda m: m.graph.initializer[0].external_data.add(key="a"), "lies in another file"),
    "no graph": (lambda m: m.ClearField("graph"), "no ONNX model"),
    "ONNX Runtime's mark": (lambda m: setattr(m, "producer_name", "ORTM"), "ONNX Runtime's own format"),
}  # fmt: skip

TENSORS = {
    "huge, empty": tensor([10**6, 10**6]),
    "huge by product": tensor([2**20] * 4, raw_data=b""),
    "one more": tensor([3], raw_data=bytes(8)),
    "one less": tensor([1], raw_data=bytes(8)),
    "part of a number": tensor([2], raw_data=bytes(11)),
    "numbers": tensor([1000], float_data=[1.0]),
    "integers": tensor([1000], TensorProto.INT32, int32_data=[1]),
    "long integers": tensor([2], TensorProto.INT64, int64_data=[1]),
    "doubles": tensor([2], TensorProto.DOUBLE, double_data=[1.0]),
    "nothing for a scalar": tensor([]),
    "negative": tensor([-1], raw_data=bytes(4)),
    "two negatives": tensor([-1, -1], raw_data=bytes(4)),
    "product that wraps": tensor([2**32, 2**32], raw_data=b""),
    "huge beside nothing": tensor([0, 2**62], raw_data=b""),
    "many axes": tensor([1] * 17, raw_data=bytes(4)),
    "very many axes": tensor([2**31 - 1] * 10**4, raw_data=bytes(4)),
    "strings": tensor([1], TensorProto.STRING, string_data=[b"x"]),
    "complex": tensor([1], TensorProto.COMPLEX64, raw_data=bytes(8)),
    "no type": tensor([1], 0, raw_data=bytes(4)),
    "unknown type": tensor([1], 999, raw_data=bytes(4)),
}


def test_the_plain_one_is_taken() -> None:
    onnx.checker.check_model(bundles.cgcnn_network(), full_check=True)
    check_network(PLAIN, "tiny")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_the_bundle_is_opened(case: str, tmp_path: Path) -> None:
    change, says = REFUSED[case]
    refuse(bundle_of(changed(change), tmp_path), f"^tiny: network.onnx cannot be used: .*{says}")


@pytest.mark.parametrize("where", ["initializer", "constant", "list"])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_what_they_claim(case: str, where: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        if where == "initializer":
            model.graph.initializer.append(TENSORS[case])
        else:
            node(model, "Constant", value=TENSORS[case] if where == "constant" else [TENSORS[case]])

    refuse_network(changed(change), "a tensor (claims|has)")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3)])
@pytest.mark.parametrize("raw", [True, False])
def test_honest_tensors_are_taken(dtype: str, shape: tuple[int, ...], raw: bool) -> None:
    array = np.zeros(shape, dtype)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    held = numpy_helper.from_array(array) if raw else helper.make_tensor("t", kind, shape, array.ravel().tolist())
    check_network(changed(lambda model: model.graph.initializer.append(held)), "tiny")


def message(field: int, content: bytes, kind: int = 2) -> bytes:
    """A field of a message as it is stored, with a length unless ``kind`` is another."""
    length, size = b"", len(content)
    while kind == 2:
        length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            break
    return bytes([field << 3 | kind]) + length + content


OPSET = message(8, message(2, b"\x14", 0))
ONES = tensor([2], raw_data=bytes(8)).SerializeToString()


def constant(attribute: bytes) -> bytes:
    return message(7, message(1, message(2, b"c") + message(4, b"Constant") + message(5, attribute))) + OPSET


STORED = {
    "nothing": b"",
    "a pickle": b"\x80\x04N.",
    "text": b"import os",
    "zeros": bytes(1000),
    "random": np.random.default_rng(0).bytes(1000),
    "a graph twice": PLAIN + PLAIN,
    "a graph as a number": message(7, b"\1", 0),
    "a graph as four bytes": message(7, bytes(4), 5),
    "a node without an operation": message(7, message(1, b"")),
    "two operations": message(7, message(1, message(4, b"Relu") + message(4, b"Relu"))),
    "a tensor in two parts": constant(message(5, ONES) + message(5, ONES)),
    "a tensor as a number": constant(message(5, b"\1", 0)),
    "a subgraph as eight bytes": constant(message(6, bytes(8), 1)),
    "a name that is no text": message(7, message(1, message(4, b"\xff\xfe"))),
    "a domain that is a number": message(8, message(1, b"\1", 0)),
    "a group": message(7, b"", 3) + message(7, b"", 4),
    "a length past the end": b"\x3a\x7f",
    "an endless number": b"\x08" + b"\xff" * 1000,
    "a number without an end": b"\x08\xff",
    "a length of 2**63": b"\x3a" + b"\xff" * 9 + b"\x7f",
}


@pytest.mark.parametrize("case", STORED)
def test_what_no_writer_of_onnx_would_store(case: str) -> None:
    refuse_network(STORED[case], "no ONNX model|cut off|subgraph|operation|codec|claims")


def test_the_bytes_built_here_are_a_network_but_for_what_is_wrong() -> None:
    check_network(constant(message(1, b"value") + message(5, ONES)), "tiny")


def test_every_truncation() -> None:
    """Never another error; what is cut between two fields of the model may still be a model."""
    taken = []
    for length in range(len(PLAIN)):
        try:
            check_network(PLAIN[:length], "tiny")
        except InputError as error:
            require_one_sentence(error)
        else:
            taken.append(length)
    assert taken == [len(PLAIN) - len(message(8, b"\x0a\0\x10\x14"))]


def is_acceptable(model: onnx.ModelProto) -> bool:
    """The slow twin: the same rules on what the official parser makes of a file."""
    graph = model.graph
    tensors = list(graph.initializer)
    for each in graph.node:
        if each.op_type not in OPERATIONS or each.domain not in ("", "ai.onnx"):
            return False
        for attribute in each.attribute:
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
            if any(attribute.HasField(name) for name in ("g", "tp", "sparse_tensor")):
                return False
            if attribute.graphs or attribute.type_protos or attribute.sparse_tensors:
                return False
    if model.functions or model.training_info or graph.sparse_initializer or not model.HasField("graph"):
        return False
    return all(opset.domain in ("", "ai.onnx") for opset in model.opset_import) and all(map(is_honest, tensors))


def is_honest(held: TensorProto) -> bool:
    if held.external_data or held.data_location or held.data_type not in {1, 2, 3, 5, 6, 7, 9, 10, 11, 16}:
        return False
    size = 1
    for n in held.dims:
        size *= n
    if min(held.dims, default=0) < 0:
        return False
    if held.HasField("raw_data"):
        return len(held.raw_data) == size * helper.tensor_dtype_to_np_dtype(held.data_type).itemsize
    return size == len(held.float_data) + len(held.int32_data) + len(held.int64_data) + len(held.double_data)


MUTATION = st.tuples(
    st.sampled_from(["flip", "set", "insert", "delete", "copy"]), st.integers(0, len(PLAIN) - 1), st.integers(0, 255)
)


def mutated(content: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(content)
    for how, at, value in mutations:
        if how == "flip":
            data[at % len(data)] ^= 1 << value % 8
        elif how == "set":
            data[at % len(data)] = value
        elif how == "insert":
            data.insert(at, value)
        elif how == "delete":
            del data[at : at + value % 8 + 1]
        else:
            data[at:at] = data[value : value + 40]
    return bytes(data)


def check_against_the_twin(content: bytes) -> None:
    try:
        check_network(content, "tiny")
    except InputError as error:
        require_one_sentence(error)
        return
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception:  # the parser's own error has another name in each of its builds
        return
    assert is_acceptable(model)


@settings(max_examples=300, deadline=dt.timedelta(seconds=10))
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4))
def test_mutated_networks(mutations: list[tuple[str, int, int]]) -> None:
    """Refused in one sentence, or what the official parser sees in it is acceptable too."""
    check_against_the_twin(mutated(PLAIN, mutations))


@settings(max_examples=200, deadline=dt.timedelta(seconds=10))
@given(content=st.binary(max_size=200))
def test_random_bytes(content: bytes) -> None:
    check_against_the_twin(content)


@pytest.mark.parametrize("case", REFUSED)
def test_the_twin_refuses_the_same(case: str) -> None:
    model = onnx.ModelProto.FromString(changed(REFUSED[case][0]))
    assert not is_acceptable(model) or "long name" in case or "mark" in case
