"""Bundles from weights that `druse train` wrote."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from druse.bundle import Bundle, Provenance
from druse.conditions import CompositionProperty
from druse.elements import formula_of
from druse.errors import InputError
from druse_export.bundles.build import Progress, build_cgcnn, build_con_cdvae
from druse_export.data.table import default_cache, load_table
from druse_export.models.cgcnn import CGCNN
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.prior import Prior
from druse_export.models.weights import digest, read_prior_weights, read_weights
from druse_export.training.properties import scalar
from druse_export.training.runs import weights_of


def build_bundle(
    model: Path,
    out: Path,
    *,
    name: str,
    licence: str,
    priors: Mapping[str, Path] | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """A bundle of a model of step one with its priors, or of a CGCNN.

    Args:
        model: run, or its file of weights.
        out: folder to make.
        name: for the manifest.
        licence: SPDX identifier or text.
        priors: runs or files of weights of step two, by the names that they shall have.
        data: training data, whose properties are kept for drawing conditions from.
        progress: see `druse_export.bundles.build.build_con_cdvae`.

    Raises:
        InputError: a file is not what it should be, or a prior was trained on the latents of another model.
    """
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it first")
    path = weights_of(model)
    network, facts = read_weights(path)
    if isinstance(network, CGCNN):
        if priors or data:
            raise InputError(f"{path.name} is a CGCNN, which takes neither priors nor data")
        settings = _settings(facts, path)
        return build_cgcnn(
            network,
            out,
            property_=scalar(settings["property"], unit=facts.get("unit", "")),
            threshold=settings.get("threshold"),
            name=name,
            licence=licence,
            provenance=_provenance(facts, {path.name: digest(path)}),
        )
    if not isinstance(network, ConCDVAE):
        raise InputError(f"{path.name} holds a prior; give a model of step one, and this with --prior NAME={path}")
    hashes = {path.name: digest(path)}
    loaded: dict[str, Prior] = {}
    for key, place in (priors or {}).items():
        prior_path = weights_of(place)
        loaded[key], prior_facts = read_prior_weights(prior_path)
        known = _settings(prior_facts, prior_path).get("model", "")
        if known and known != hashes[path.name]:
            raise InputError(
                f"the prior {key!r} was trained on the latents of other weights than {path.name}; train it again with "
                f"druse train prior --model {model}"
            )
        hashes[f"{key}: {prior_path.name}"] = digest(prior_path)
    values = None if data is None else _values(data, network, loaded)
    return build_con_cdvae(
        network, loaded, out, name=name, licence=licence, provenance=_provenance(facts, hashes), values=values,
        progress=progress,
    )  # fmt: skip


def _settings(facts: Mapping[str, str], path: Path) -> dict[str, Any]:
    if "job" in facts:
        found: dict[str, Any] = tomllib.loads(facts["job"])["settings"]
        return found
    if "settings" in facts:
        return msgspec.json.decode(facts["settings"], type=dict[str, Any])
    raise InputError(f"{path.name} does not say how it was trained; write it again with druse train weights")


def _provenance(facts: Mapping[str, str], hashes: dict[str, str]) -> Provenance:
    data = facts.get("data", "")
    if "job" in facts:
        data = tomllib.loads(facts["job"])["data"]["train"]
    figures = {key.removeprefix("val_"): float(value) for key, value in facts.items() if key.startswith("val_")}
    steps, epoch = facts.get("step"), facts.get("epoch")
    return Provenance(
        source="trained",
        weights=hashes,
        data=data,
        steps=None if steps is None else int(steps),
        epochs=None if epoch is None else int(epoch) + 1,
        figures=figures,
        note=facts.get("validation", ""),
    )


def _values(data: Path, model: ConCDVAE, priors: Mapping[str, Prior]) -> dict[str, np.ndarray]:
    """Every property that a condition has, of every crystal of the data; formulas as text."""
    table = load_table(data, cache=default_cache())
    specs = [*model.config.conditions, *(spec for prior in priors.values() for spec in prior.config.conditions)]
    values: dict[str, np.ndarray] = {}
    for spec in specs:
        if isinstance(spec, CompositionProperty):
            values[spec.name] = np.array([formula_of(crystal.species) for crystal in table.crystals])
        elif spec.name in table.properties:
            values[spec.name] = table.properties[spec.name]
        else:
            raise InputError(
                f"{data} has no column {spec.name!r}, on which the model is conditioned; give its own data"
            )
    return values
