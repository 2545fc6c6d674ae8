"""Bundles from trained or imported models: exported, checked against PyTorch, and written whole or not at all."""

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from druse import radius_graph
from druse.backends import open_backend
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
    Precision,
    PriorSpec,
    Provenance,
)
from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.crystals import Crystals
from druse.errors import DruseError, InputError
from druse.lattice import cells_from_parameters
from druse.verify import verify
from druse_export._dependencies import require
from druse_export.bundles.networks import (
    Exported,
    ExportedCGCNN,
    ExportedCondition,
    ExportedDecoder,
    ExportedHeads,
    ExportedPredictor,
    ExportedPrior,
    ExportedPriorCondition,
    ExportedProjection,
    embed,
)
from druse_export.bundles.onnx import to_onnx
from druse_export.models.cgcnn import CGCNN, neighbor_table
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.geometry import score_geometry, score_graph
from druse_export.models.prior import Prior

TOLERANCES: dict[Precision, float] = {"fp32": 2e-5, "bf16": 0.1, "fp16": 0.02}
"""Largest deviation from float64, relative to the largest value of each output."""

Arrays = dict[str, np.ndarray]
Progress = Callable[[str, int, int], None]


def build_con_cdvae(
    model: ConCDVAE,
    priors: Mapping[str, Prior],
    out: Path,
    *,
    name: str,
    licence: str,
    provenance: Provenance,
    values: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a Con-CDVAE with its priors, check it on ONNX Runtime against PyTorch, and write it.

    Args:
        model: in evaluation mode, float32.
        priors: by name, the same.
        out: folder to make; it appears whole or not at all.
        name: for the manifest.
        licence: SPDX identifier or text.
        provenance: of the weights.
        values: of the training data's properties, by name, for `druse.bundle.CONDITIONS`; None: none are kept.
        progress: called with what is being exported, how many are done, and how many there are.

    Returns:
        The bundle, opened.

    Raises:
        InputError: ``out`` exists, or a prior does not fit the model.
        DruseError: what was exported deviates from PyTorch by more than the tolerance.
        MissingDependencyError: onnxscript or onnxruntime is not installed.
    """
    config = model.config
    for key, prior in priors.items():
        if prior.config.latent != config.latent or not key.isidentifier():
            raise InputError(f"the prior {key!r} must have the model's latent width {config.latent} and a plain name")
    rng = np.random.default_rng(0)
    exported: dict[str, Exported] = {
        "condition": ExportedCondition(model),
        "heads": ExportedHeads(model),
        "latent_projection": ExportedProjection(model),
        "decoder": ExportedDecoder(model),
    }
    if config.predicted:
        exported["predictor"] = ExportedPredictor(model)
    for key, prior in priors.items():
        exported[f"priors/{key}/condition"] = ExportedPriorCondition(prior)
        exported[f"priors/{key}/network"] = ExportedPrior(prior)
    networks: dict[str, Network] = {}
    files: dict[str, bytes] = {}
    reference: Arrays = {}
    for done, (role, network) in enumerate(exported.items()):
        if progress:
            progress(role, done, len(exported))
        networks[role] = Network(
            file=f"{role}.onnx", inputs=network.inputs, outputs=network.outputs, formulation=network.formulation
        )
        files[f"{role}.onnx"] = to_onnx(network.eval())
        of = priors[role.split("/")[1]].config.conditions if role.startswith("priors/") else config.conditions
        arrays = _decoder_reference(model, rng) if role == "decoder" else _rows_reference(network, of, rng)
        reference |= {f"{role}/{key}": value for key, value in arrays.items()}
    _check_against_pytorch(model, priors, reference)
    if progress:
        progress("checks", len(exported), len(exported))
    files[REFERENCE] = _npz(reference)
    if values is not None:
        files["conditions.parquet"] = _parquet(values)
    decoder = config.decoder
    manifest = ConCDVAEManifest(
        schema=SCHEMA,
        name=name,
        licence=licence,
        files=_listed(files),
        conditions=config.conditions,
        predicted=config.predicted,
        max_atoms=config.max_atoms,
        n_species=decoder.n_species,
        latent=config.latent,
        sigmas=tuple(model.sigmas.tolist()),
        type_sigmas=tuple(model.type_sigmas.tolist()),
        graph=GraphSpec(
            mode=config.graph_mode,
            symmetrise="union" if config.graph_mode == "exact" else "upstream",
            cutoff=decoder.cutoff,
            max_neighbors=decoder.max_neighbors,
            n_radial=decoder.n_radial,
            n_spherical=decoder.n_spherical,
        ),
        condition=networks["condition"],
        heads=networks["heads"],
        latent_projection=networks["latent_projection"],
        predictor=networks.get("predictor"),
        decoder=networks["decoder"],
        priors={
            key: PriorSpec(
                conditions=prior.config.conditions,
                condition=networks[f"priors/{key}/condition"],
                network=networks[f"priors/{key}/network"],
                betas=tuple(prior.betas.tolist()),
            )
            for key, prior in priors.items()
        },
        tolerances=TOLERANCES,
        provenance=_signed(provenance),
    )
    return _write(manifest, files, out)


def build_cgcnn(
    model: CGCNN,
    out: Path,
    *,
    property_: ScalarProperty,
    threshold: float | None = None,
    name: str,
    licence: str,
    provenance: Provenance,
) -> Bundle:
    """The same for a CGCNN of ``property_``; arguments and errors as of `build_con_cdvae`."""
    config = model.config
    network = ExportedCGCNN(model).eval()
    crystals = random_crystals(np.random.default_rng(0), 8)
    double = _double(model)
    with torch.no_grad():
        value = double.predict(_cgcnn_table(crystals, model, torch.float64))
        single = model.predict(_cgcnn_table(crystals, model, torch.float32))
    _require_close("network/value", single, value.numpy())
    reference = {f"network/inputs/{key}": array for key, array in _crystal_arrays(crystals).items()}
    files = {
        "network.onnx": to_onnx(network),
        REFERENCE: _npz({**reference, "network/outputs/value": value.numpy()}),
    }
    manifest = CGCNNManifest(
        schema=SCHEMA,
        name=name,
        licence=licence,
        files=_listed(files),
        target=property_,
        task=config.task,
        threshold=threshold,
        max_neighbors=config.n_neighbors,
        cutoff=config.cutoff,
        network=Network(file="network.onnx", inputs=network.inputs, outputs=network.outputs),
        tolerances=TOLERANCES,
        provenance=_signed(provenance),
    )
    return _write(manifest, files, out)


def random_crystals(rng: np.random.Generator, n: int) -> Crystals:
    """Crystals without symmetry: 2 to 16 atoms, 12 to 30 cubic Angstrom for each."""
    sizes = rng.integers(2, 17, n)
    angles = rng.uniform(70, 110, (n, 3))
    cells = cells_from_parameters(rng.uniform(0.8, 1.2, (n, 3)), angles)
    volume = rng.uniform(12, 30, n) * sizes
    cells *= np.cbrt(volume / np.abs(np.linalg.det(cells)))[:, None, None]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Crystals(rng.random((offsets[-1], 3)), cells, offsets, rng.integers(1, 90, offsets[-1]).astype(np.int32))


def _crystal_arrays(crystals: Crystals) -> Arrays:
    return {key: np.asarray(getattr(crystals, key)) for key in ("frac", "cells", "offsets", "species")}


def _double(module: Any) -> Any:
    """A copy in float64; tables that were computed in float32 keep their values."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False).double().eval()  # what was saved a line before


def _rows_reference(network: Exported, conditions: Sequence[Property], rng: np.random.Generator) -> Arrays:
    """Inputs and float64 outputs of a network on rows."""
    n, values = 8, {spec.name: spec for spec in conditions}
    inputs: Arrays = {}
    for tensor in network.inputs:
        spec = values.get(tensor.name)
        shape = [n if axis == "crystals" else int(axis) for axis in tensor.shape]
        if isinstance(spec, ScalarProperty):
            inputs[tensor.name] = rng.uniform(spec.minimum, spec.maximum, shape).astype(np.float32)
        elif isinstance(spec, ClassProperty):
            inputs[tensor.name] = rng.integers(0, spec.n_classes, shape).astype(np.int32)
        elif isinstance(spec, CompositionProperty):
            inputs[tensor.name] = rng.random(shape).astype(np.float32)
        elif tensor.dtype == "int32":
            inputs[tensor.name] = np.full(shape, 7, np.int32)  # a step of the prior
        else:
            inputs[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        given = [
            torch.from_numpy(v).double() if v.dtype == np.float32 else torch.from_numpy(v) for v in inputs.values()
        ]
        outputs = _double(network)(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays = {f"inputs/{key}": value for key, value in inputs.items()}
    return arrays | {f"outputs/{t.name}": v.numpy() for t, v in zip(network.outputs, outputs, strict=True)}


def _decoder_reference(model: ConCDVAE, rng: np.random.Generator) -> Arrays:
    """Crystals at several noise levels and their scores in float64, on the runtime's float32 graphs and bases."""
    config, crystals = model.config, random_crystals(rng, 8)
    level = np.linspace(0, config.n_levels - 1, len(crystals)).round().astype(np.int32)
    z_con = rng.standard_normal((len(crystals), config.latent)).astype(np.float32)
    with torch.no_grad():
        latent = _double(ExportedProjection(model))(torch.from_numpy(z_con).double()).float()
        geometry = score_geometry(score_graph(crystals, config.decoder, mode=config.graph_mode), config.decoder)
        single = model.score(torch.from_numpy(z_con), torch.from_numpy(level), _types(crystals), geometry)
        force, logits = _double(ExportedDecoder(model))(
            latent.double(),
            torch.from_numpy(level),
            torch.from_numpy(crystals.species.copy()),
            geometry.crystal.int(),
            geometry.radial.double(),
            geometry.legendre.double(),
            geometry.src,
            geometry.dst,
            geometry.in_edge,
            geometry.valid.double(),
            geometry.slot,
        )
        directed = torch.cat([geometry.unit, -geometry.unit]).double() * force.reshape(-1, 1)
        ends = torch.cat([geometry.dst, geometry.src]).long()
        score = torch.zeros(len(crystals.species), 3, dtype=torch.float64).index_add(0, ends, directed)
    _require_close("decoder/scaled", single[0], score.numpy())
    _require_close("decoder/logits", single[1], logits.numpy())
    return {
        **{f"inputs/{key}": value for key, value in _crystal_arrays(crystals).items()},
        "inputs/latent": latent.numpy(),
        "inputs/level": level,
        "outputs/scaled": score.numpy(),
        "outputs/logits": logits.numpy(),
    }


def _types(crystals: Crystals) -> Tensor:
    return torch.from_numpy(crystals.species.astype(np.int64))


def _cgcnn_table(crystals: Crystals, model: CGCNN, dtype: torch.dtype) -> Any:
    config = model.config
    graph = radius_graph(
        crystals.frac,
        crystals.cells,
        crystals.offsets,
        cutoff=config.cutoff,
        max_neighbors=config.n_neighbors,
        shell_tolerance=None,
    )
    table = neighbor_table(graph, crystals.species, config)
    return table._replace(distance=table.distance.to(dtype))


def _check_against_pytorch(model: ConCDVAE, priors: Mapping[str, Prior], reference: Arrays) -> None:
    """The recorded float64 outputs beside those of the networks as they were trained, in float32."""

    def given(role: str, name: str) -> Tensor:
        return torch.from_numpy(reference[f"{role}/inputs/{name}"])

    def compare(role: str, name: str, got: Tensor) -> None:
        _require_close(f"{role}/{name}", got, reference[f"{role}/outputs/{name}"])

    with torch.no_grad():
        values = [given("condition", spec.name) for spec in model.config.conditions]
        mixed = model.mix_latent(given("condition", "z"), embed(model.condition, values))
        compare("condition", "z_con", mixed)
        heads = model.heads(given("heads", "z_con"))
        compare("heads", "n_atoms", heads.n_atoms)
        compare("heads", "composition", heads.composition)
        one = torch.ones(len(heads.lattice), dtype=torch.int64)
        compare("heads", "lattice", torch.cat(model.heads.lengths_and_angles(heads.lattice, one), dim=1))
        for spec in model.config.predicted:
            value = model.predictor(given("predictor", "z"))[spec.name]
            if isinstance(spec, ScalarProperty):
                value = value * (spec.maximum - spec.minimum) + spec.minimum
            compare("predictor", spec.name, value if isinstance(spec, ScalarProperty) else value.softmax(-1))
        for key, prior in priors.items():
            role = f"priors/{key}"
            of = [given(f"{role}/condition", spec.name) for spec in prior.config.conditions]
            terms = _double(ExportedPriorCondition(prior))(*[v.double() if v.is_floating_point() else v for v in of])
            z, step = given(f"{role}/network", "z"), given(f"{role}/network", "step")
            condition = prior.condition({s.name: v for s, v in zip(prior.config.conditions, of, strict=True)})
            whole = prior.predict_noise(z, condition, step.expand(len(z)))
            hoisted = _double(ExportedPrior(prior))(z.double(), terms, step)
            _require_close(f"{role}/network", whole, hoisted.numpy())


def _require_close(what: str, got: Tensor, expected: np.ndarray) -> None:
    difference = np.abs(got.detach().numpy().astype(np.float64) - expected).max(initial=0.0)
    relative = float(difference) / max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    if not relative <= TOLERANCES["fp32"]:
        raise DruseError(f"{what} as exported deviates from PyTorch by {relative:.1e} of its scale; please report this")


def _npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _parquet(values: Mapping[str, np.ndarray]) -> bytes:
    require("pyarrow", purpose="writing Parquet")
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pa.table(dict(values)), buffer, compression="zstd")
    return buffer.getvalue()


def _listed(files: Mapping[str, bytes]) -> dict[str, File]:
    return {
        name: File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in sorted(files.items())
    }


def _signed(provenance: Provenance) -> Provenance:
    version = importlib.metadata.version("druse")
    return msgspec.structs.replace(provenance, created_by=f"druse {version}, torch {torch.__version__}")


def _write(manifest: Manifest, files: Mapping[str, bytes], out: Path) -> Bundle:
    """The folder under another name, opened and verified there, then renamed."""
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        (part / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        _require_verified(Bundle.open(part))
        part.chmod(0o755)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Bundle.open(out)


def _require_verified(bundle: Bundle) -> None:
    for deviation in verify(bundle, open_backend("ort-cpu")):
        if not deviation.ok:
            raise DruseError(
                f"{deviation.output} on ort-cpu deviates from PyTorch by {deviation.largest:.1e} of its scale; please "
                "report this"
            )
