"""Bundles whose graphs state another precision than float32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="what checks ONNX files")
pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("onnxruntime", reason="what runs bundles")

import small_bundle  # noqa: E402

from druse.backends import open_backend  # noqa: E402
from druse.bundle import Bundle  # noqa: E402
from druse.errors import DeviceError, InputError  # noqa: E402
from druse.model import Model  # noqa: E402
from druse_export.bundles.reference import random_crystals  # noqa: E402

Make = Callable[[str, Callable[[Path], object]], Path]
LARGE = ("decoder", "priors/default/network", "priors/wide/network")


@pytest.fixture(scope="module")
def folder(made_once: Make) -> Path:
    return made_once("precise_bundle", lambda out: small_bundle.make(out, 256, ("fp16", "bf16")))


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
@pytest.mark.parametrize("role", LARGE)
def test_weights_and_products_are_in_the_precision(folder: Path, role: str, precision: str, kind: str) -> None:
    network = Bundle.open(folder).con_cdvae.networks[role]
    path = network.precisions[precision]  # type: ignore[index]
    assert path == f"{role}.{precision}.onnx"
    model = onnx.load(folder / path)
    onnx.checker.check_model(model, full_check=True)
    wanted = getattr(onnx.TensorProto, kind)
    weights = [t for t in model.graph.initializer if len(t.dims) == 2 and t.data_type != onnx.TensorProto.INT64]
    assert weights
    assert {t.data_type for t in weights} == {wanted}
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert products
    assert {types[node.output[0]] for node in products if node.output[0] in types} == {wanted}
    outside = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert outside <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}


def test_a_typed_backend_takes_the_large_networks_from_their_graphs(folder: Path) -> None:
    half, plain = open_backend("ort-cpu", precision="fp16", n_threads=1), open_backend("ort-cpu", n_threads=1)
    plain.fused = False
    rng = np.random.default_rng(0)
    crystals, z = random_crystals(rng, 5), rng.standard_normal((5, 256)).astype(np.float32)
    models = [Model.open(folder, backend=backend) for backend in (half, plain)]
    heads = [model.heads(z) for model in models]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*heads, strict=True))
    low, full = (model.score(crystals, z, 20) for model in models)
    for a, b in zip(low[:2], full[:2], strict=True):
        off = np.abs(a - b).max() / np.abs(b).max()
        assert 1e-5 < off < 0.02
    terms = [model.prior_terms({"band_gap": 2.0}, 5) for model in models]
    low_eps, eps = (model.prior_step(z, t, 3) for model, t in zip(models, terms, strict=True))
    assert 1e-6 < np.abs(low_eps - eps).max() / np.abs(eps).max() < 0.02


def test_a_bundle_without_the_precision_says_what_to_do(made_once: Make) -> None:
    plain = made_once("small_bundle", lambda out: small_bundle.make(out, 256))
    model = Model.open(plain, backend="ort-cpu", precision="fp16", n_threads=1)
    with pytest.raises(InputError, match=r"has no decoder with products in fp16; build the bundle again with --prec"):
        model.score(random_crystals(np.random.default_rng(0), 1), np.zeros((1, 256), np.float32), 0)


def test_precisions_that_are_not_there() -> None:
    with pytest.raises(DeviceError, match="no other products"):
        open_backend("ort-cpu", precision="bf16")
    with pytest.raises(InputError, match="must be of bf16, fp16, got fp32"):
        small_bundle.make(Path("never"), precisions=("fp32",))
