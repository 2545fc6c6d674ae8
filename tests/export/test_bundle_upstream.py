"""Upstream's run directory as a bundle, without PyTorch: every recorded output through ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the import needs PyTorch")

from recorded import CALL, CHAIN, error, offsets_of, recorded, recorded_graph, tensor  # noqa: E402

from druse.backends import open_backend  # noqa: E402
from druse.bundle import Bundle  # noqa: E402
from druse.crystals import Crystals  # noqa: E402
from druse.model import Model  # noqa: E402
from druse.sampling import ddpm_update  # noqa: E402
from druse.verify import verify  # noqa: E402
from druse_export.bundles.imported import import_bundle  # noqa: E402
from druse_export.importing.upstream import read_run  # noqa: E402

ENERGY = "formation_energy_per_atom"


@pytest.fixture(scope="module")
def model(shared: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Model:
    run = shared / "fixtures" / "upstream_run"
    folder = made_once(
        "upstream_bundle", lambda out: import_bundle(run, out, name="upstream", licence="MIT, the authors'")
    )
    return Model.open(folder, backend="ort-cpu", n_threads=2)


def test_heads_and_predictor(model: Model, shared: Path) -> None:
    z = recorded(shared, "heads_io")
    assert error(model.condition({ENERGY: z[ENERGY]}, z["z"]), z["z_con"]) < CALL
    heads = model.heads(z["z_con"])
    assert error(heads.n_atoms_logits, z["num_atoms_logits"]) < CALL
    assert np.array_equal(heads.n_atoms, z["num_atoms"])
    assert error(heads.lengths, z["lengths"]) < CALL
    assert error(heads.angles, z["angles"]) < CALL
    assert error(heads.composition, z["composition_logits_per_crystal"]) < CALL
    (spec,) = model.manifest.predicted
    predicted = (model.predict(z["z"])[ENERGY] - spec.minimum) / (spec.maximum - spec.minimum)
    assert error(predicted[:, None], z["predictor_norm"]) < CALL


@pytest.mark.parametrize("name", ["default", "full"])
def test_prior(model: Model, shared: Path, name: str) -> None:
    z = recorded(shared, "prior_io")
    values = {key.split("/")[-1]: value for key, value in z.items() if key.startswith(f"{name}/inputs/")}
    terms = model.prior_terms({key: value[0] for key, value in values.items()}, 4, prior=name)
    steps = np.unique(z[f"{name}/t"])
    for step in steps:  # one call takes one step
        rows = z[f"{name}/t"] == step
        assert error(model.prior_step(z["z0"], terms, int(step), prior=name)[rows], z[f"{name}/eps"][rows]) < CALL

    alpha = 1 - np.array(model.manifest.priors[name].betas)
    alpha_bar = np.cumprod(alpha)
    latents = z["z0"]
    for k, t in enumerate(range(299, -1, -1)):
        latents, status = ddpm_update(
            latents,
            model.prior_step(latents, terms, t, prior=name),
            alpha=float(alpha[t]),
            alpha_bar=float(alpha_bar[t]),
            noise_scale=float(z["posterior_variance"][t]) ** 0.5 if t > 0 else 0.0,
            noise=z["noise_f16"][k].astype(np.float32) if t > 0 else np.zeros_like(latents),
        )
        assert not status.any()
    assert error(latents, z[f"{name}/gen"]) < CHAIN


@pytest.mark.parametrize("name", ["small", "big"])
@torch.no_grad()
def test_score(model: Model, shared: Path, name: str) -> None:
    network = read_run(shared / "fixtures" / "upstream_run").model
    z = recorded(shared, "decoder_io")
    # the fixture's input is z_con beside random numbers in place of an embedded level, and no level's row gives them:
    # what they add is put into `latent`, from which the row of level 0 is taken away
    layer = network.decoder.atom_latent
    of_latent, of_time = torch.split(layer.weight[:, 128:].double(), [256, 64], dim=1)
    level_0 = network.time(torch.zeros(1)).double() @ of_time.T
    z_con, time = torch.split(tensor(z[f"{name}/inputs/z"]).double(), [256, 64], dim=1)
    latent = (z_con @ of_latent.T + time @ of_time.T + layer.bias - level_0).float().numpy()
    offsets = offsets_of(z[f"{name}/inputs/num_atoms"])
    frac, cells = (z[f"{name}/inputs/{key}"].astype(np.float64) for key in ("frac_coords", "cells"))
    crystals = Crystals(frac, cells, offsets, z[f"{name}/inputs/atom_types"].astype(np.int32))
    found = model.score(crystals, None, 0, latent=latent, graph=recorded_graph(z, name))
    # the network's scale: edge forces of `small` cancel by symmetry, and what is left says nothing of it
    scale = float(np.abs(z["big/pred_cart_coord_diff_f64"]).max())
    assert error(found.scaled, z[f"{name}/pred_cart_coord_diff_f64"], scale) < CALL
    assert error(found.logits, z[f"{name}/pred_atom_types_f64"]) < CALL


def test_verify(model: Model) -> None:
    deviations = {d.output: d for d in verify(model.bundle, open_backend("ort-cpu", n_threads=2))}
    assert all(deviation.ok and deviation.largest < 5e-6 for deviation in deviations.values())
    assert deviations["decoder/scaled"].alone
    assert "priors/full/network/eps" in deviations


def test_the_archive_is_the_same_bundle(model: Model, tmp_path: Path) -> None:
    model.bundle.write_zip(tmp_path / "bundle.zip")
    assert Bundle.open(tmp_path / "bundle.zip").digest == model.bundle.digest
