"""What PyTorch or ONNX Runtime computes otherwise than a bundle records is not built."""

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="bundles are exported from PyTorch")
pytest.importorskip("onnxscript", reason="bundles are exported from PyTorch")
pytest.importorskip("onnxruntime", reason="bundles are checked on ONNX Runtime")

from training_data import ENERGY, PRIOR, SMALL  # noqa: E402

from druse.bundle import REFERENCE, Precision, Provenance  # noqa: E402
from druse.errors import DruseError  # noqa: E402
from druse_export.bundles.build import _listed, _write, build_cgcnn, build_con_cdvae  # noqa: E402
from druse_export.models.cgcnn import CGCNN, CGCNNConfig  # noqa: E402
from druse_export.models.con_cdvae import ConCDVAE  # noqa: E402
from druse_export.models.gemnet import ScoreGeometry  # noqa: E402
from druse_export.models.prior import Prior  # noqa: E402

MADE = Provenance(source="trained", note="random weights")
Tensor = torch.Tensor


class OtherMix(ConCDVAE):
    """Computes otherwise than what is exported of it."""

    def mix_latent(self, z: Tensor, condition: Tensor) -> Tensor:
        return super().mix_latent(z, condition) * 1.001


class OtherScore(ConCDVAE):
    def score(self, z_con: Tensor, level: Tensor, atom_types: Tensor, geometry: ScoreGeometry) -> tuple[Tensor, Tensor]:
        score, logits = super().score(z_con, level, atom_types, geometry)
        return score * 1.001, logits


class OtherPrior(Prior):
    def predict_noise(self, z: Tensor, condition: Tensor, step: Tensor) -> Tensor:
        return super().predict_noise(z, condition, step) * 1.001


def build(out: Path, model: type[ConCDVAE] = ConCDVAE, prior: type[Prior] = Prior, *, size: float = 1.0) -> None:
    torch.manual_seed(0)
    network = model(SMALL).eval()
    with torch.no_grad():
        network.decoder.elements.mul_(size)
    precisions: tuple[Precision, ...] = () if size == 1 else ("fp16",)
    priors = {"default": prior(PRIOR.prior).eval()}
    build_con_cdvae(network, priors, out, name="x", licence="MIT", provenance=MADE, precisions=precisions)


@pytest.mark.parametrize(
    ("model", "prior", "size", "message"),
    [
        (OtherMix, Prior, 1, r"condition/z_con as exported in fp32 deviates by 1\.0e-03 of its scale"),
        (OtherScore, Prior, 1, "decoder/scaled as exported in fp32 deviates"),
        (ConCDVAE, OtherPrior, 1, "priors/default/network as exported in fp32 deviates"),
        (ConCDVAE, Prior, 1e6, "deviates by .* of its scale; leave --precision fp16 out"),
    ],
)
def test_what_pytorch_computes_otherwise(
    tmp_path: Path, model: type[ConCDVAE], prior: type[Prior], size: float, message: str
) -> None:
    with pytest.raises(DruseError, match=message):
        build(tmp_path / "bundle", model, prior, size=size)
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_computes_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CGCNN(CGCNNConfig(atom=8, hidden=8, n_convolutions=1)).eval()
    bundle = build_cgcnn(model, tmp_path / "good", property_=ENERGY, name="x", licence="MIT", provenance=MADE)
    files = {name: (tmp_path / "good" / name).read_bytes() for name in bundle.manifest.files}
    with np.load(io.BytesIO(files[REFERENCE])) as content:
        arrays = {name: content[name] for name in content.files}
    arrays["network/outputs/value"] = arrays["network/outputs/value"] * 1.001
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files[REFERENCE] = buffer.getvalue()
    manifest = msgspec.structs.replace(bundle.manifest, files=_listed(files))
    with pytest.raises(DruseError, match="network/value on ort-cpu in fp32 deviates from PyTorch by"):
        _write(manifest, files, tmp_path / "bad")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
