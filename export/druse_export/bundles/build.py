"""Bundles from trained or imported models: exported, checked against PyTorch, and written whole or not at all."""

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch

from druse._dependencies import require
from druse._manifest import is_version
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
from druse.conditions import ScalarProperty
from druse.errors import DruseError, InputError
from druse.verify import verify
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
    InPrecision,
)
from druse_export.bundles.onnx import to_onnx
from druse_export.bundles.reference import (
    DTYPES,
    TOLERANCES,
    Arrays,
    cgcnn_table,
    check_against_pytorch,
    check_in_precision,
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
    precisions: Collection[Precision] = (),
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
        precisions: other ones than fp32, in which decoder and priors are written too, for backends that take the
            precision of products from the graph.
        progress: called with what is being exported, how many are done, and how many there are.

    Returns:
        The bundle, opened.

    Raises:
        InputError: ``out`` exists, or a prior does not fit the model.
        DruseError: what was exported deviates from PyTorch by more than the tolerance.
        MissingDependencyError: onnxscript or onnxruntime is not installed.
    """
    config = model.config
    if not set(precisions) <= DTYPES.keys():
        raise InputError(f"`precisions` must be of {', '.join(DTYPES)}, got {', '.join(precisions)}")
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
        if role == "decoder" or role.endswith("/network"):
            paths: dict[Precision, str] = {kind: f"{role}.{kind}.onnx" for kind in sorted(precisions)}
            networks[role] = msgspec.structs.replace(networks[role], precisions=paths)
            for kind, path in paths.items():
                files[path] = to_onnx(InPrecision(network, DTYPES[kind]))
        of = priors[role.split("/")[1]].config.conditions if role.startswith("priors/") else config.conditions
        arrays = decoder_reference(model, rng) if role == "decoder" else rows_reference(network, of, rng)
        reference |= {f"{role}/{key}": value for key, value in arrays.items()}
    check_against_pytorch(model, priors, reference)
    for kind in precisions:
        check_in_precision(model, priors, reference, kind)
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
    return _write(manifest, files, out, precisions)


def build_cgcnn(
    model: CGCNN,
    out: Path,
    *,
    property_: ScalarProperty,
    threshold: float | None = None,
    name: str,
    version: str = "1",
    licence: str,
    provenance: Provenance,
) -> Bundle:
    """The same for a CGCNN of ``property_``; arguments and errors as of `build_con_cdvae`."""
    if not is_version(version):
        raise InputError(f"`version` must be up to 40 characters that can be printed, without |, got {version!r}")
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
        version=version,
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


def _write(manifest: Manifest, files: Mapping[str, bytes], out: Path, precisions: Collection[Precision] = ()) -> Bundle:
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
        _require_verified(Bundle.open(part), precisions)
        part.chmod(0o755)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Bundle.open(out)


def _require_verified(bundle: Bundle, precisions: Collection[Precision]) -> None:
    """On native code, on every graph, and on those in float16: the other precision has no products on every CPU."""
    graphs = open_backend("ort-cpu")
    graphs.fused = False
    backends = [open_backend("ort-cpu"), graphs]
    if "fp16" in precisions:
        backends.append(open_backend("ort-cpu", precision="fp16"))
    for backend in backends:
        for deviation in verify(bundle, backend):
            if not deviation.ok:
                raise DruseError(
                    f"{deviation.output} on ort-cpu in {backend.precision} deviates from PyTorch by "
                    f"{deviation.largest:.1e} of its scale; please report this"
                )
