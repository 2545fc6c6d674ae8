"""Con-CDVAE run directories as the authors' code writes them: YAML, Lightning checkpoints, a pickled scaler."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from druse.conditions import CRYSTAL_SYSTEMS, ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.errors import InputError
from druse_export.importing.checkpoints import Scaler, plain, read_checkpoint
from druse_export.importing.weights import Rule, load_weights, mlp_rules, same
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.dimenet import DimeNetConfig
from druse_export.models.gemnet import GemNetConfig
from druse_export.models.prior import Prior, PriorConfig

_UNITS = {"formation_energy_per_atom": "eV/atom", "band_gap": "eV", "e_above_hull": "eV/atom"}


@dataclasses.dataclass(frozen=True)
class UpstreamRun:
    """The models of a run directory, by the names that `druse` uses."""

    model: ConCDVAE
    priors: dict[str, Prior]
    config: dict[str, Any]


def _property(entry: dict[str, Any]) -> Property:
    kind, name = str(entry.get("_target_", "")).rpartition(".")[2], str(entry.get("condition_name", ""))
    if kind.startswith("Scalar"):
        low, high = float(entry["condition_min"]), float(entry["condition_max"])
        return ScalarProperty(
            name, low, high, float(entry.get("grid_spacing", (high - low) / 10)), _UNITS.get(name, "")
        )
    if kind.startswith("Class"):
        n_classes = int(entry.get("n_type", 0))
        labels = CRYSTAL_SYSTEMS if name == "crystal_system" and n_classes == len(CRYSTAL_SYSTEMS) else ()
        return ClassProperty(name, n_classes, labels)
    if kind.startswith("Vectorial"):
        return CompositionProperty(name)
    raise InputError(f"the run conditions on {name!r} by {kind!r}, which is not known; known: scalar, class, vectorial")


def _condition_rules(properties: tuple[Property, ...], prefix: str) -> list[Rule]:
    rules = mlp_rules(f"{prefix}mix", "condition_model.dense_net", 3)
    for k, spec in enumerate(properties):
        ours, theirs = f"{prefix}embeddings.{k}", f"condition_model.condition_embModel.{k}"
        rules += mlp_rules(f"{ours}.mlp", f"{theirs}.dense_net", 4)
        if isinstance(spec, ScalarProperty):
            rules.append(Rule(f"{ours}.centres", f"{theirs}.gaussian_expansion.offsets"))
        elif isinstance(spec, ClassProperty):
            rules.append(Rule(f"{ours}.embedding.weight", f"{theirs}.embedding_layer.weight"))
    return rules


def _dense(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.weight", f"{theirs}.linear.weight")]


def _residual(ours: str, theirs: str) -> list[Rule]:
    return [*_dense(f"{ours}.first", f"{theirs}.dense_mlp.0"), *_dense(f"{ours}.second", f"{theirs}.dense_mlp.1")]


def _pieces(ours: str, theirs: str, n_atom: int) -> list[Rule]:
    name = f"{theirs}.dense.linear.weight"
    return [
        Rule(f"{ours}.source", name, lambda w: w[:, :n_atom]),
        Rule(f"{ours}.target", name, lambda w: w[:, n_atom : 2 * n_atom]),
        Rule(f"{ours}.feature", name, lambda w: w[:, 2 * n_atom :]),
    ]


def decoder_rules(config: GemNetConfig) -> list[Rule]:
    """Rules for the score network."""
    net, atom = "decoder.gemnet", config.atom
    rules = [
        *_dense("decoder.rbf3", f"{net}.mlp_rbf3"),
        *_dense("decoder.rbf_h", f"{net}.mlp_rbf_h"),
        *_dense("decoder.rbf_out", f"{net}.mlp_rbf_out"),
        Rule("decoder.cbf3", f"{net}.mlp_cbf3.weight"),
        Rule("decoder.elements", f"{net}.atom_emb.embeddings.weight"),
        *same([("decoder.atom_latent", f"{net}.atom_latent_emb"), ("decoder.species", "decoder.fc_atom")]),
        *_pieces("decoder.edge_embedding", f"{net}.edge_emb", atom),
    ]
    for k in range(config.n_blocks + 1):
        ours, theirs = f"decoder.forces.{k}", f"{net}.out_blocks.{k}"
        rules += _dense(f"{ours}.dense", f"{theirs}.seq_forces.0")
        rules += _dense(f"{ours}.radial", f"{theirs}.dense_rbf_F")
        rules += [
            Rule(f"{ours}.scale.factor", f"{theirs}.scale_rbf_F.scale_factor"),
            Rule(f"{ours}.out", f"{theirs}.out_forces.linear.weight"),
        ]
        for layer in range(config.n_atom):
            rules += _residual(f"{ours}.residuals.{layer}", f"{theirs}.seq_forces.{layer + 1}")
    for k in range(config.n_blocks):
        ours, theirs = f"decoder.interactions.{k}", f"{net}.int_blocks.{k}"
        triplets, trip = f"{ours}.triplets", f"{theirs}.trip_interaction"
        rules += _dense(f"{ours}.dense_ca", f"{theirs}.dense_ca")
        for name, other in (
            ("dense_ba", "dense_ba"), ("radial", "mlp_rbf"), ("down", "down_projection"),
            ("up_ca", "up_projection_ca"), ("up_ac", "up_projection_ac"),
        ):  # fmt: skip
            rules += _dense(f"{triplets}.{name}", f"{trip}.{other}")
        rules += [
            Rule(f"{triplets}.scale_radial.factor", f"{trip}.scale_rbf.scale_factor"),
            Rule(f"{triplets}.scale_sum.factor", f"{trip}.scale_cbf_sum.scale_factor"),
            Rule(f"{triplets}.bilinear", f"{trip}.mlp_cbf.weight", lambda w: w.transpose(0, 1)),
        ]
        for group, other, count in (
            ("before_skip", "layers_before_skip", config.n_before_skip),
            ("after_skip", "layers_after_skip", config.n_after_skip),
            ("residual_m", "residual_m", config.n_concat),
        ):
            for layer in range(count):
                rules += _residual(f"{ours}.{group}.{layer}", f"{theirs}.{other}.{layer}")
        update, updated = f"{ours}.atom_update", f"{theirs}.atom_update"
        rules += _dense(f"{update}.radial", f"{updated}.dense_rbf")
        rules += _dense(f"{update}.dense", f"{updated}.layers.0")
        rules.append(Rule(f"{update}.scale.factor", f"{updated}.scale_sum.scale_factor"))
        for layer in range(config.n_atom):
            rules += _residual(f"{update}.residuals.{layer}", f"{updated}.layers.{layer + 1}")
        rules += _pieces(f"{ours}.concat", f"{theirs}.concat_layer", atom)
    return rules


def encoder_rules(config: DimeNetConfig) -> list[Rule]:
    """Rules for the encoder."""
    rules = [
        Rule("encoder.rbf.frequencies", "encoder.rbf.freq"),
        Rule("encoder.elements", "encoder.emb.emb.weight"),
        *same([("encoder.embedding_rbf", "encoder.emb.lin_rbf"), ("encoder.embedding", "encoder.emb.lin")]),
    ]
    for k in range(config.n_blocks + 1):
        ours, theirs = f"encoder.outputs.{k}", f"encoder.output_blocks.{k}"
        rules += same([(f"{ours}.rbf", f"{theirs}.lin_rbf"), (f"{ours}.last", f"{theirs}.lin")], ("weight",))
        rules += same([(f"{ours}.up", f"{theirs}.lin_up")])
        rules += same((f"{ours}.layers.{n}", f"{theirs}.lins.{n}") for n in range(config.n_output_layers))
    for k in range(config.n_blocks):
        ours, theirs = f"encoder.interactions.{k}", f"encoder.interaction_blocks.{k}"
        rules += same(
            ((f"{ours}.{name}", f"{theirs}.lin_{name}") for name in ("rbf1", "rbf2", "sbf1", "sbf2", "down", "up")),
            ("weight",),
        )
        rules += same([(f"{ours}.kj", f"{theirs}.lin_kj"), (f"{ours}.ji", f"{theirs}.lin_ji")])
        rules += same([(f"{ours}.linear", f"{theirs}.lin")])
        for group, other, count in (
            ("before_skip", "layers_before_skip", config.n_before_skip),
            ("after_skip", "layers_after_skip", config.n_after_skip),
        ):
            for n in range(count):
                layer, theirs_n = f"{ours}.{group}.{n}", f"{theirs}.{other}.{n}"
                rules += same([(f"{layer}.first", f"{theirs_n}.lin1"), (f"{layer}.second", f"{theirs_n}.lin2")])
    return rules


def _model_rules(config: ConCDVAEConfig) -> list[Rule]:
    rules = encoder_rules(config.encoder) + decoder_rules(config.decoder)
    rules += _condition_rules(config.conditions, "condition.")
    rules += same([("mu", "fc_mu"), ("log_var", "fc_var"), ("time.linear", "time_mlp.1")])
    rules += mlp_rules("z_condition", "z_condition", 2, batch_norm=True)
    for ours, theirs in (("n_atoms", "fc_num_atoms"), ("lattice", "fc_lattice"), ("composition", "fc_composition")):
        rules += mlp_rules(f"heads.{ours}", theirs, 2, batch_norm=True)
    for k, spec in enumerate(config.predicted):
        if isinstance(spec, ScalarProperty):
            rules += mlp_rules(f"predictor.heads.{k}", f"conditions_predict.{k}.mlp", 3, batch_norm=True)
        else:
            rules += same([(f"predictor.heads.{k}.1", f"conditions_predict.{k}.mlp.1")])
    return (
        rules
        + [Rule(name, name) for name in ("sigmas", "type_sigmas")]
        + [
            Rule("heads.lattice_mean", "lattice_scaler.means"),
            Rule("heads.lattice_std", "lattice_scaler.stds"),
        ]
    )


_ENERGY_BRANCH = ("dense_rbf.", "scale_sum.", "layers.", "seq_energy.", "out_energy.")
_UNUSED_MODEL = (
    *(f"decoder.gemnet.out_blocks.{k}.{name}" for k in range(8) for name in _ENERGY_BRANCH),
    "decoder.gemnet.radial_basis.",
    "decoder.gemnet.cbf_basis3.",
)
_UNUSED_PRIOR = ("sqrt_recip_alphas", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance")


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{path.name} has no `state_dict`; give a checkpoint that Lightning wrote")
    weights = {str(k): v for k, v in content["state_dict"].items() if isinstance(v, Tensor)}
    widths = tuple(k for k in weights if k.endswith("gaussian_expansion.widths"))
    for name in widths:
        del weights[name]
    return weights, plain(content.get("hyper_parameters", {}))


def _newest(folder: Path, pattern: str, *, unless: str | None = None) -> Path | None:
    found = [p for p in folder.glob(pattern) if unless is None or not p.name.startswith(unless)]
    return max(found, key=lambda p: (p.stat().st_mtime, p.name)) if found else None


def read_run(folder: Path) -> UpstreamRun:
    """The models of a run directory of the authors' code. Nothing in it is executed.

    Raises:
        InputError: a file is missing or refused, or weights do not fit; every gap is listed.
    """
    path = _newest(folder, "*.ckpt", unless="prior_")
    if path is None:
        raise InputError(f"{folder} holds no checkpoint (*.ckpt); give the folder that Con-CDVAE's training wrote")
    weights, hyper = _checkpoint(path)
    scaler = read_checkpoint(folder / "lattice_scaler.pt")
    if not isinstance(scaler, Scaler) or not {"means", "stds"} <= vars(scaler).keys():
        raise InputError("lattice_scaler.pt does not hold a scaler with means and stds")
    weights["lattice_scaler.means"] = torch.as_tensor(vars(scaler)["means"])
    weights["lattice_scaler.stds"] = torch.as_tensor(vars(scaler)["stds"])

    config = _config(hyper)
    model = ConCDVAE(config)
    load_weights(model, _model_rules(config), weights, unused=_UNUSED_MODEL, source=path.name)
    priors = {}
    for name in ("default", "full"):
        prior_path = _newest(folder, f"prior_{name}*.ckpt")
        if prior_path is not None:
            priors[name] = _prior(prior_path)
    return UpstreamRun(model.eval(), priors, hyper)


def _config(hyper: dict[str, Any]) -> ConCDVAEConfig:
    try:
        encoder = hyper["encoder"]
        return ConCDVAEConfig(
            conditions=tuple(_property(entry) for entry in hyper["conditionmodel"]["condition_embeddings"]),
            predicted=tuple(_property(entry) for entry in hyper["conditionpre"]["condition_predict"]),
            max_atoms=int(hyper["max_atoms"]),
            latent=int(hyper["latent_dim"]),
            hidden=int(hyper["hidden_dim"]),
            condition_width=int(hyper["conditionmodel"]["n_features"]),
            n_levels=int(hyper["num_noise_level"]),
            sigma_first=float(hyper["sigma_begin"]),
            sigma_last=float(hyper["sigma_end"]),
            type_sigma_first=float(hyper["type_sigma_begin"]),
            type_sigma_last=float(hyper["type_sigma_end"]),
            graph_mode="upstream",
            encoder=DimeNetConfig(cutoff=float(encoder["cutoff"]), max_neighbors=int(encoder["max_num_neighbors"])),
            decoder=GemNetConfig(cutoff=float(hyper["radius"]), max_neighbors=int(hyper["max_neighbors"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the run's configuration lacks or mangles {error}; is it Con-CDVAE's?") from error


def _prior(path: Path) -> Prior:
    weights, hyper = _checkpoint(path)
    try:
        conditions = hyper["conditionmodel"]
        config = PriorConfig(
            conditions=tuple(_property(entry) for entry in conditions["condition_embeddings"]),
            latent=int(hyper["hidden_dim"]),
            condition=int(conditions["n_features"]),
            time=int(hyper["time_emb_dim"]),
            n_steps=int(hyper["ddpm_n_noise"]),
            beta_first=float(hyper["ddpm_noise_start"]),
            beta_last=float(hyper["ddpm_noise_end"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path.name}: its settings lack or mangle {error}; is it Con-CDVAE's prior?") from error
    prior = Prior(config)
    n_layers = len(prior.network.down)
    rules = _condition_rules(prior.condition.properties, "condition.")
    rules += same(
        [("time.linear", "time_mlp.1"), ("network.middle", "decoder.middle_mpl"), ("network.out", "decoder.output_mlp")]
    )
    rules += same((f"network.down.{k}", f"decoder.downmodel.{k}") for k in range(n_layers))
    rules += same((f"network.up.{k}", f"decoder.upmodel.{k}") for k in range(n_layers))
    rules += [Rule("betas", "betas"), Rule("alphas_bar", "sqrt_alphas_cumprod", torch.square)]
    load_weights(prior, rules, weights, unused=_UNUSED_PRIOR, source=path.name)
    return prior.eval()
