"""Bundles from trained or imported models: exported, checked against PyTorch, and written whole or not at all."""

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch

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
    PriorSpec,
    Provenance,
)
from druse.conditions import ScalarProperty
from druse.errors import DruseError, InputError
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
)
from druse_export.bundles.onnx import to_onnx
from druse_export.bundles.reference import (
    TOLERANCES,
    Arrays,
    cgcnn_table,
    check_against_pytorch,
    crystal_arrays,
    decoder_reference,
    double,
    random_crystals,
    require_close,
    rows_reference,
)
from druse_export.models.cgcnn import CGCNN
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.prior import Prior

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
        arrays = decoder_reference(model, rng) if role == "decoder" else rows_reference(network, of, rng)
        reference |= {f"{role}/{key}": value for key, value in arrays.items()}
    check_against_pytorch(model, priors, reference)
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
    exact = double(model)
    with torch.no_grad():
        value = exact.predict(cgcnn_table(crystals, model, torch.float64))
        single = model.predict(cgcnn_table(crystals, model, torch.float32))
    require_close("network/value", single, value.numpy())
    reference = {f"network/inputs/{key}": array for key, array in crystal_arrays(crystals).items()}
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
