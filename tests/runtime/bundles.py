"""Tiny bundles, made by hand and without PyTorch, for tests that open, run or damage one."""

import hashlib
import io
import re
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from druse import InputError
from druse.bundle import (
    MANIFEST,
    REFERENCE,
    SCHEMA,
    Bundle,
    CGCNNManifest,
    ConCDVAEManifest,
    File,
    GraphSpec,
    Manifest,
    Network,
    PriorSpec,
    Provenance,
    Tensor,
)
from druse.conditions import ClassProperty, CompositionProperty, ScalarProperty

Files = dict[str, bytes]
_ONNX_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
_ENERGY = ScalarProperty(name="energy", minimum=-2.0, maximum=2.0, spacing=0.5, unit="eV/atom")
_ADVICE = "build|copy|do not use|give|make it|put the file|remove it|update Druse"


def f32(name: str, *shape: int | str) -> Tensor:
    return Tensor(name=name, dtype="float32", shape=shape)


def i32(name: str, *shape: int | str) -> Tensor:
    return Tensor(name=name, dtype="int32", shape=shape)


CGCNN_INPUTS = (
    i32("species", "atoms"),
    i32("neighbor", "atoms", 4),
    f32("distance", "atoms", 4),
    i32("member", "crystals", "members"),
    f32("share", "crystals", "members"),
)


def cgcnn_network() -> onnx.ModelProto:
    """Two for each crystal: the shares of its atoms, which sum up to one, times two."""

    def declared(tensor: Tensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor.name, _ONNX_TYPES[tensor.dtype], list(tensor.shape))

    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array([2.0], np.float32))),
        helper.make_node("Mul", ["share", "two"], ["doubled"]),
        helper.make_node("ReduceSum", ["doubled", "axes"], ["value"], keepdims=0),
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    inputs, outputs = [declared(tensor) for tensor in CGCNN_INPUTS], [declared(f32("value", "crystals"))]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def cgcnn_files() -> Files:
    """All files but the manifest: a network, and two crystals as its reference."""
    reference = {
        "network/inputs/frac": np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]),
        "network/inputs/cells": np.stack([np.eye(3) * 4, np.eye(3) * 3]),
        "network/inputs/offsets": np.array([0, 2, 3]),
        "network/inputs/species": np.array([11, 17, 6], np.int32),
        "network/outputs/value": np.array([2.0, 2.0]),
    }
    return {"network.onnx": cgcnn_network().SerializeToString(deterministic=True), REFERENCE: npz(reference)}


def listed(files: Mapping[str, bytes]) -> dict[str, File]:
    return {name: File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in files.items()}


def cgcnn_manifest(files: Mapping[str, bytes]) -> CGCNNManifest:
    return CGCNNManifest(
        schema=SCHEMA,
        name="tiny",
        licence="CC0-1.0",
        files=listed(files),
        target=_ENERGY,
        task="regression",
        max_neighbors=4,
        cutoff=6.0,
        network=Network(file="network.onnx", inputs=CGCNN_INPUTS, outputs=(f32("value", "crystals"),)),
        tolerances={"fp32": 1e-6},
        provenance=Provenance(source="trained", weights={"last.ckpt": "0" * 64}, figures={"mae": 0.5}),
    )


def con_cdvae_manifest(files: Mapping[str, bytes]) -> ConCDVAEManifest:
    """With something in every optional field; its networks all name ``network.onnx``, so none of them would run."""
    network = Network(file="network.onnx", inputs=(f32("z", "crystals", 2),), outputs=(f32("out", "crystals", 2),))
    spin = ClassProperty(name="spin", n_classes=2, labels=("low", "high"))
    return ConCDVAEManifest(
        schema=SCHEMA,
        name="tiny",
        licence="CC0-1.0",
        files=listed(files),
        conditions=(_ENERGY, spin, CompositionProperty()),
        predicted=(_ENERGY,),
        max_atoms=4,
        n_species=100,
        latent=2,
        sigmas=(10.0, 0.01),
        type_sigmas=(5.0, 0.01),
        graph=GraphSpec(mode="exact", symmetrise="union", cutoff=6.0, max_neighbors=8, n_radial=4, n_spherical=2),
        condition=network,
        heads=network,
        latent_projection=network,
        predictor=network,
        decoder=network,
        priors={"default": PriorSpec(conditions=(_ENERGY,), condition=network, network=network, betas=(0.01, 0.02))},
        tolerances={"fp32": 1e-6},
        provenance=Provenance(source="imported", steps=10, epochs=1, data="none", note="made by hand"),
    )


def with_manifest(files: Mapping[str, bytes], manifest: Manifest | None = None) -> Files:
    """The files with a manifest that lists them: of a CGCNN, if none is given."""
    return {**files, MANIFEST: msgspec.json.encode(manifest or cgcnn_manifest(files))}


def write_folder(place: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def zipped(files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive; pairs instead of a mapping may name a file twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


KINDS = ("folder", "zip", "zip of a folder")
"""How `put` puts a bundle."""


def put(kind: str, place: Path, files: Mapping[str, bytes]) -> Path:
    """Files in a new folder or archive of ``place``: what `Bundle.open` takes."""
    if kind == "folder":
        return write_folder(place / "tiny", files)
    root = "tiny/" if kind == "zip of a folder" else ""
    return put_zip(place, zipped({root + name: data for name, data in files.items()}))


def put_zip(place: Path, archive: bytes) -> Path:
    path = place / "tiny.zip"
    path.write_bytes(archive)
    return path


def require_one_sentence(error: InputError) -> None:
    """An error stands on one line, is not long, and ends with advice."""
    text = str(error)
    assert text.isprintable(), repr(text)
    assert len(text) < 500, text
    assert re.search(rf"[;,] ({_ADVICE})[^;]*$", text), text


def refuse(path: Path, says: str) -> None:
    """Opening a bundle must fail, with this in one sentence (a regular expression)."""
    with pytest.raises(InputError, match=says) as caught:
        Bundle.open(path)
    require_one_sentence(caught.value)


def peak_memory(call: Callable[[], Any]) -> int:
    """Bytes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
