"""Every network that would run on TensorRT is parsed and built by TensorRT-RTX, which needs no device for that.

What is called of the two libraries to build is the same but for timings of kernels; see `druse.backends._tensorrt`.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
from reference.buckets import bucket_shapes

from druse import Generator, SamplingSchedule
from druse._rooms import LARGEST, Room, Shape, most_atoms
from druse.backends import open_backend
from druse.backends._tensorrt import TensorRT, TensorRTRTX, build, check_addresses, library, messages, tensorrt
from druse.bundle import Bundle, Network, Tensor
from druse.errors import DeviceError, InputError, MissingDependencyError
from druse.verify import verify

onnx = pytest.importorskip("onnx", reason="what makes the small graphs")
from onnx import TensorProto, helper  # noqa: E402

MOST_ATOMS = 11_263
BUCKETS = {
    "smallest": (1, 1, Room()),
    "100 crystals": (100, 1000, Room()),
    "100 crystals, many edges": (100, 1000, Room(edges=2)),
    "100 crystals, many edges into an atom": (100, 1000, Room(crowded=1)),
    "largest": (MOST_ATOMS // 10, MOST_ATOMS, Room()),
}
"""Crystals and atoms that share a bucket, and its room."""


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="what builds engines without a device (pip: tensorrt-rtx-cu13)")


def graph_of(network: Network, nodes: list[Any]) -> bytes:
    """An ONNX file with a network's inputs and outputs."""
    kinds = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, kinds[t.dtype], t.shape) for t in tensors]
        for tensors in (network.inputs, network.outputs)
    )
    graph = helper.make_graph(nodes, "small", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    content: bytes = model.SerializeToString()
    return content


X = Tensor(name="x", dtype="float32", shape=("rows", 8))
Y = Tensor(name="y", dtype="float32", shape=("rows", 8))
SMALL = Network(file="small.onnx", inputs=(X,), outputs=(Y,))
PRODUCT = Network(file="product.onnx", inputs=(X, Tensor(name="w", dtype="float32", shape=("rows", 8))), outputs=(Y,))


@pytest.fixture(scope="module")
def default() -> Bundle:
    return Bundle.embedded()


@pytest.mark.parametrize("bucket", BUCKETS)
def test_the_default_decoder_builds_in_every_bucket(rtx: Any, default: Bundle, bucket: str) -> None:
    manifest = default.con_cdvae
    n_crystals, n_atoms, room = BUCKETS[bucket]
    shape = Shape.of(n_crystals, n_atoms, manifest, room)
    assert (bucket == "largest") == (shape.atoms == most_atoms(manifest, 2**40))
    assert shape.edges <= LARGEST
    for file in manifest.decoder.every_file:
        built = build(rtx, default.read(file), manifest.decoder, bucket_shapes(manifest.decoder, **shape.lengths))
        assert len(built.engine) > 1e6
        assert built.timings == b""


@pytest.mark.parametrize("prior", ["default", "full"])
def test_the_default_priors_build(rtx: Any, default: Bundle, prior: str) -> None:
    network = default.con_cdvae.priors[prior].network
    for file in network.every_file:
        build(rtx, default.read(file), network, bucket_shapes(network, crystals=1024))


def test_tf32_is_a_matter_of_the_build(rtx: Any) -> None:
    content = graph_of(PRODUCT, [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)])
    shapes = {"x": (8, 8), "w": (8, 8), "y": (8, 8)}
    assert build(rtx, content, PRODUCT, shapes, precision="fp32").engine
    assert build(rtx, content, PRODUCT, shapes, precision="tf32").engine


def test_a_sum_by_scatter_is_refused_by_name(rtx: Any) -> None:
    index = Tensor(name="i", dtype="int32", shape=("members", 1))
    rows = Tensor(name="u", dtype="float32", shape=("members", 8))
    network = Network(file="scatter.onnx", inputs=(X, index, rows), outputs=(Y,))
    nodes = [
        helper.make_node("Cast", ["i"], ["j"], to=TensorProto.INT64),
        helper.make_node("ScatterND", ["x", "j", "u"], ["y"], name="sum_of_edges", reduction="add"),
    ]
    message = r"scatter.onnx is refused by TensorRT-RTX [\d.]+: node 'sum_of_edges' \(ScatterND\): .*reduction"
    with pytest.raises(InputError, match=message):
        build(rtx, graph_of(network, nodes), network, bucket_shapes(network, rows=4, members=3))


def test_an_operation_that_it_does_not_know_is_refused_by_name(rtx: Any) -> None:
    nodes = [helper.make_node("Det", ["x"], ["y"], name="volume")]
    with pytest.raises(InputError, match=r"small.onnx is refused by TensorRT-RTX .*'volume' \(Det\)"):
        build(rtx, graph_of(SMALL, nodes), SMALL, bucket_shapes(SMALL, rows=4))


def test_lengths_that_do_not_fit_each_other_are_refused_by_name(rtx: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    with pytest.raises(InputError, match=r"product.onnx is refused by TensorRT-RTX .*product: last dimension"):
        build(rtx, graph_of(PRODUCT, nodes), PRODUCT, bucket_shapes(PRODUCT, rows=4))


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x0a" * 20])
def test_a_file_that_is_no_network(rtx: Any, content: bytes) -> None:
    with pytest.raises(InputError, match=r"small.onnx (is refused|has the inputs \[\])"):
        build(rtx, content, SMALL, bucket_shapes(SMALL, rows=4))


def test_a_file_of_another_signature(rtx: Any) -> None:
    content = graph_of(PRODUCT, [helper.make_node("Mul", ["x", "w"], ["y"])])
    with pytest.raises(InputError, match=r"the manifest says .*; build the bundle again"):
        build(rtx, content, SMALL, bucket_shapes(SMALL, rows=4))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (4, 8)}, "`shapes` must be of x, y, got x"),
        ({"x": (4, 8), "y": (5, 8)}, r"`shapes` of y must be \[rows, 8\], the same wherever named, got \(5, 8\)"),
        ({"x": (4, 9), "y": (4, 8)}, r"`shapes` of x must be \[rows, 8\]"),
        ({"x": (4,), "y": (4, 8)}, r"`shapes` of x must be \[rows, 8\]"),
        ({"x": (0, 8), "y": (0, 8)}, r"`shapes` of x must be \[rows, 8\]"),
    ],
)
def test_shapes_that_are_not_of_the_signature(rtx: Any, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    content = graph_of(SMALL, [helper.make_node("Sigmoid", ["x"], ["y"])])
    with pytest.raises(InputError, match=message):
        build(rtx, content, SMALL, shapes)


def test_outputs_of_another_length_than_they_have(rtx: Any) -> None:
    network = Network(file="sum.onnx", inputs=(X,), outputs=(Tensor(name="y", dtype="float32", shape=("few", 8)),))
    content = graph_of(network, [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)])
    assert build(rtx, content, network, {"x": (4, 8), "y": (8, 8)}).engine
    with pytest.raises(InputError, match=r"`shapes` of y must be \(8, 8\) for these inputs, got \(4, 8\)"):
        build(rtx, content, network, {"x": (4, 8), "y": (4, 8)})


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ({"x": 4096}, "`addresses` must be of x, y, got x"),
        ({"x": 4096, "y": 0}, "got 0x0 for y"),
        ({"x": 4096, "y": 8196}, "must be multiples of 256 and not 0, got 0x2004 for y"),
    ],
)
def test_addresses_that_cannot_be(addresses: dict[str, int], message: str) -> None:
    check_addresses(SMALL, {"x": 4096, "y": 8192})
    with pytest.raises(InputError, match=message):
        check_addresses(SMALL, addresses)


def test_nothing_is_printed(rtx: Any, capfd: pytest.CaptureFixture[str]) -> None:
    content = graph_of(SMALL, [helper.make_node("Sigmoid", ["x"], ["y"])])
    build(rtx, content, SMALL, bucket_shapes(SMALL, rows=4))
    with pytest.raises(InputError):
        build(rtx, b"", SMALL, bucket_shapes(SMALL, rows=4))
    assert capfd.readouterr() == ("", "")


def test_the_last_error_is_taken_once(rtx: Any) -> None:
    runtime = rtx.Runtime(messages(rtx))
    assert runtime.deserialize_cuda_engine(b"no engine at all" * 64) is None
    assert messages(rtx).take_error() != "no reason given"
    assert messages(rtx).take_error() == "no reason given"


def test_without_the_package_it_names_the_extra(rtx: Any) -> None:
    assert library(rtx).startswith("TensorRT-RTX 1.")
    try:
        import tensorrt as installed
    except ImportError:
        with pytest.raises(MissingDependencyError, match=r"needs TensorRT; pip install 'druse\[tensorrt\]'"):
            tensorrt()
    else:
        assert library(installed).startswith("TensorRT 1")


@pytest.mark.parametrize("backend", [TensorRT, TensorRTRTX])
def test_without_a_device_it_says_so(backend: type[TensorRT], tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    pytest.importorskip(backend.module, reason="the package of this backend")
    with pytest.raises(InputError, match=r"must be auto or one of .*tensorrt, tensorrt-rtx"):
        open_backend("nvinfer")
    with pytest.raises(DeviceError, match=r"this machine has no NVIDIA driver|the NVIDIA driver finds no device"):
        backend("fp32", 1, folder=tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_onnx_runtimes_own_provider_is_taken_for_tf32_alone(precision: str) -> None:
    with pytest.raises(DeviceError, match=rf"ort-tensorrt computes in tf32 .* got {precision}; take tensorrt"):
        open_backend("ort-tensorrt", precision=precision)


def test_without_onnx_runtimes_own_provider_it_says_so() -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(DeviceError, match=r"was built without TensorrtExecutionProvider; pip uninstall"):
        open_backend("ort-tensorrt")


@pytest.fixture(params=[TensorRT, TensorRTRTX], ids=lambda backend: backend.name)
def on_device(request: pytest.FixtureRequest, tmp_path: Path) -> TensorRT:
    """The backend on this machine's GPU, with an empty cache."""
    try:
        backend: TensorRT = request.param("fp32", 2, folder=tmp_path / "engines")
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error))
    return backend


@pytest.mark.gpu
def test_on_a_device_it_gives_what_the_bundle_recorded(on_device: TensorRT, default: Bundle) -> None:
    deviations = list(verify(default, on_device))
    assert [deviation for deviation in deviations if not deviation.ok] == []


@pytest.mark.gpu
def test_on_a_device_steps_are_captured_and_engines_kept(
    on_device: TensorRT, default: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = SamplingSchedule(method="ancestral", n_levels=15, skip=0.5)
    made = []
    for _ in range(2):
        with caplog.at_level(logging.INFO, "druse"):
            generator = Generator(default, backend=on_device)
            made.append(list(generator.generate({}, count=8, schedule=schedule)))
        built = [record for record in caplog.records if "building an engine" in record.message]
        assert bool(built) == (len(made) == 1)
        assert "kernel by kernel" not in caplog.text
        caplog.clear()
    first, second = (b"".join(part.frac.tobytes() for part in parts) for parts in made)
    assert first == second
