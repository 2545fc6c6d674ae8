"""Upstream's run directory, imported: every recorded output of the authors' code (``../shared/fixtures``)."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need PyTorch")

from recorded import CALL, CHAIN, error, offsets_of, recorded, recorded_graph, tensor  # noqa: E402

from druse import Graph  # noqa: E402
from druse.sampling import ddpm_update  # noqa: E402
from druse_export.importing.upstream import UpstreamRun, read_run  # noqa: E402
from druse_export.models.geometry import encoder_geometry, score_geometry  # noqa: E402


@pytest.fixture(scope="module")
def run(shared: Path) -> UpstreamRun:
    return read_run(shared / "fixtures" / "upstream_run")


def test_sizes_and_settings(run: UpstreamRun) -> None:
    assert [spec.name for spec in run.model.config.conditions] == ["formation_energy_per_atom"]
    assert run.model.config.graph_mode == "upstream"
    assert run.model.config.decoder.cutoff == 9.0
    assert sorted(run.priors) == ["default", "full"]
    assert [spec.name for spec in run.priors["full"].condition.properties][:2] == ["crystal_system", "spacegroup"]


@pytest.mark.parametrize("graph", ["bonds", "radius"])
def test_encoder(run: UpstreamRun, shared: Path, graph: str) -> None:
    z = recorded(shared, "encoder_io")
    folder = "inputs" if graph == "bonds" else "otf"
    found = Graph.from_edges(
        z["inputs/frac_coords"],
        z["inputs/cells"],
        offsets_of(z["inputs/num_atoms"]),
        *z[f"{folder}/edge_index"],
        z[f"{folder}/to_jimages"],
    )
    geometry = encoder_geometry(found, run.model.config.encoder)
    hidden = run.model.encoder(tensor(z["inputs/atom_types"]), geometry)
    assert error(hidden, z["hidden" if graph == "bonds" else "otf/hidden"]) < CALL
    if graph == "bonds":
        mu, log_var = run.model.encode(tensor(z["inputs/atom_types"]), geometry)
        assert error(mu, z["mu"]) < CALL
        assert error(log_var, z["log_var"]) < CALL


def test_conditions_heads_and_predictor(run: UpstreamRun, shared: Path) -> None:
    z = recorded(shared, "heads_io")
    model = run.model
    energy = {"formation_energy_per_atom": tensor(z["formation_energy_per_atom"])}
    everything = {key.split("/")[1]: tensor(value) for key, value in z.items() if key.startswith("full_inputs/")}
    assert error(model.condition(energy), z["cond_model"]) < CALL
    assert error(run.priors["default"].condition(energy), z["cond_prior_default"]) < CALL
    assert error(run.priors["full"].condition(everything), z["cond_prior_full"]) < CALL
    assert error(model.mix_latent(tensor(z["z"]), tensor(z["cond_model"])), z["z_con"]) < CALL
    heads = model.heads(tensor(z["z_con"]))
    assert error(heads.n_atoms, z["num_atoms_logits"]) < CALL
    assert np.array_equal(heads.n_atoms.argmax(1).numpy(), z["num_atoms"])
    assert error(heads.lattice, z["lengths_and_angles"]) < CALL
    assert error(heads.composition, z["composition_logits_per_crystal"]) < CALL
    lengths, angles = model.heads.lengths_and_angles(heads.lattice, tensor(z["num_atoms"]))
    assert error(lengths, z["lengths"]) < CALL
    assert error(angles, z["angles"]) < CALL
    scaled = model.heads.scaled_lattice(lengths, angles, tensor(z["num_atoms"]))
    assert error(scaled, heads.lattice.detach().numpy()) < CALL
    predicted = model.predictor(tensor(z["z"]))["formation_energy_per_atom"]
    assert error(predicted[:, None], z["predictor_norm"]) < CALL
    assert error(model.time(torch.arange(50)), z["time_emb"]) < CALL
    assert error(model.sigmas, z["sigmas"]) < CALL
    assert error(model.type_sigmas, z["type_sigmas"]) < CALL


@pytest.mark.parametrize("name", ["default", "full"])
def test_prior(run: UpstreamRun, shared: Path, name: str) -> None:
    z = recorded(shared, "prior_io")
    prior = run.priors[name]
    values = {key.split("/")[-1]: tensor(value) for key, value in z.items() if key.startswith(f"{name}/inputs/")}
    condition = prior.condition(values).expand(4, -1)
    assert error(condition, z[f"{name}/cond"]) < CALL
    assert error(prior.predict_noise(tensor(z["z0"]), condition, tensor(z[f"{name}/t"])), z[f"{name}/eps"]) < CALL

    alpha = 1 - prior.betas.double().numpy()
    alpha_bar = np.cumprod(alpha)
    latents = z["z0"]
    with torch.no_grad():
        for k, t in enumerate(range(299, -1, -1)):
            eps = prior.predict_noise(tensor(latents), condition, torch.full((4,), t)).numpy()
            latents, status = ddpm_update(
                latents,
                eps,
                alpha=float(alpha[t]),
                alpha_bar=float(alpha_bar[t]),
                noise_scale=float(z["posterior_variance"][t]) ** 0.5 if t > 0 else 0.0,
                noise=z["noise_f16"][k].astype(np.float32) if t > 0 else np.zeros_like(latents),
            )
            assert not status.any()
    assert error(tensor(latents), z[f"{name}/gen"]) < CHAIN


@pytest.mark.parametrize("name", ["small", "big"])
def test_decoder(run: UpstreamRun, shared: Path, name: str) -> None:
    z = recorded(shared, "decoder_io")
    graph = recorded_graph(z, name)
    geometry = score_geometry(graph, run.model.config.decoder)
    score, logits = run.model.decoder(tensor(z[f"{name}/inputs/z"]), tensor(z[f"{name}/inputs/atom_types"]), geometry)
    # the network's scale: edge forces of `small` cancel by symmetry, and what is left says nothing of it
    scale = float(np.abs(z["big/pred_cart_coord_diff_f64"]).max())
    assert error(score, z[f"{name}/pred_cart_coord_diff_f64"], scale) < CALL
    assert error(logits, z[f"{name}/pred_atom_types_f64"]) < CALL
