"""TensorRT takes what the export writes, in every precision that a bundle can state (see `runtime.test_tensorrt`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("torch", reason="the networks are PyTorch's")
pytest.importorskip("onnxscript", reason="what writes ONNX files")

import small_bundle
from reference.buckets import bucket_shapes

from druse._rooms import Room, Shape
from druse.backends._tensorrt import build
from druse.bundle import Bundle, Precision

BINS = ((1, 1), (100, 1000))
"""Crystals and atoms that share a bucket."""

STATED = ("fp16", "bf16")


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="what builds engines without a device (pip: tensorrt-rtx-cu13)")


@pytest.fixture(scope="module")
def precise(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Bundle:
    return Bundle.open(made_once("precise_bundle", lambda out: small_bundle.make(out, 256, STATED)))


def test_these_are_all_precisions_of_graphs() -> None:
    assert {"fp32", *STATED} <= set(get_args(Precision)) <= {"fp32", "tf32", *STATED}


@pytest.mark.parametrize("together", BINS)
@pytest.mark.parametrize("precision", ["fp32", *STATED])
def test_decoders_build(rtx: Any, precise: Bundle, precision: Precision, together: tuple[int, int]) -> None:
    network, shape = precise.con_cdvae.decoder, Shape.of(*together, precise.con_cdvae, Room())
    file = network.file if precision == "fp32" else network.precisions[precision]
    build(rtx, precise.read(file), network, bucket_shapes(network, **shape.lengths), precision=precision)


@pytest.mark.parametrize("precision", ["fp32", *STATED])
def test_priors_build(rtx: Any, precise: Bundle, precision: Precision) -> None:
    for spec in precise.con_cdvae.priors.values():
        network = spec.network
        file = network.file if precision == "fp32" else network.precisions[precision]
        build(rtx, precise.read(file), network, bucket_shapes(network, crystals=1024), precision=precision)


def test_the_bundle_that_generates_builds(rtx: Any, bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    network, shape = bundle.con_cdvae.decoder, Shape.of(*BINS[1], bundle.con_cdvae, Room())
    build(rtx, bundle.read(network.file), network, bucket_shapes(network, **shape.lengths))
