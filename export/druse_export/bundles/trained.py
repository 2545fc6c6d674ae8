"""Bundles from weights that `druse train` wrote."""

import math
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from druse.bundle import Bundle, Precision, Provenance
from druse.conditions import CompositionProperty, ScalarProperty
from druse.elements import formula_of
from druse.errors import InputError
from druse.tables import default_cache, load_table
from druse_export.bundles.build import Progress, build_cgcnn, build_con_cdvae
from druse_export.models.cgcnn import CGCNN
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.prior import Prior
from druse_export.models.weights import digest, read_prior_weights, read_weights, tensors_digest
from druse_export.training.properties import scalar, with_classes
from druse_export.training.runs import weights_of


def build_bundle(
    model: Path,
    out: Path,
    *,
    name: str,
    licence: str,
    priors: Mapping[str, Path] | None = None,
    data: Path | None = None,
    property_: str | None = None,
    version: str | None = None,
    precisions: Collection[Precision] = (),
    note: str = "",
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
        property_: ``NAME=LOW:HIGH:SPACING[:UNIT]`` of what a CGCNN predicts, needed where the name is not a known one.
        version: of a CGCNN, part of the names of its columns; None: 1.
        precisions: see `druse_export.bundles.build.build_con_cdvae`.
        note: anything that users should know of the training, for the provenance.
        progress: see there.

    Raises:
        InputError: a file is not what it should be, or a prior was trained on the latents of another model.
    """
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it first")
    path = weights_of(model)
    network, facts = read_weights(path)
    if isinstance(network, CGCNN):
        if priors or data or precisions:
            raise InputError(f"{path.name} is a CGCNN, which takes no priors, no data and no other precision")
        settings = _settings(facts, path)
        name_, threshold = str(settings.get("property", "")), settings.get("threshold")
        if (network.config.task == "classification") != isinstance(threshold, int | float):
            raise InputError(
                f"{path.name} is a {network.config.task} with the threshold {threshold}; a classification must have "
                "one and a regression none"
            )
        return build_cgcnn(
            network,
            out,
            property_=_target(name_, property_, unit=facts.get("unit", "")),
            threshold=threshold,
            name=name,
            version=version or "1",
            licence=licence,
            provenance=_provenance(facts, {path.name: digest(path)}, path, note),
        )
    for option, given in (("--property", property_), ("--version", version)):
        if given is not None:
            raise InputError(f"{path.name} is no CGCNN and has its properties in itself; leave {option} out")
    if not isinstance(network, ConCDVAE):
        raise InputError(f"{path.name} holds a prior; give a model of step one, and this with --prior NAME={path}")
    hashes, latents_of = {path.name: digest(path)}, {digest(path), tensors_digest(path)}
    loaded: dict[str, Prior] = {}
    for key, place in (priors or {}).items():
        prior_path = weights_of(place)
        loaded[key], prior_facts = read_prior_weights(prior_path)
        known = _settings(prior_facts, prior_path).get("model", "")
        if known and known not in latents_of:
            raise InputError(
                f"the prior {key!r} was trained on the latents of other weights than {path.name}; train it again with "
                f"druse train prior --model {model}"
            )
        hashes[f"{key}: {prior_path.name}"] = digest(prior_path)
    classes = _job(facts, path).data.classes if "job" in facts else {}
    values = None if data is None else property_values(data, network, loaded, classes)
    return build_con_cdvae(
        network, loaded, out, name=name, licence=licence, provenance=_provenance(facts, hashes, path, note),
        values=values, precisions=precisions, progress=progress,
    )  # fmt: skip


def _target(name: str, given: str | None, *, unit: str) -> ScalarProperty:
    if given is not None and given.partition("=")[0] != name:
        raise InputError(f"the weights are of {name!r}, not of {given.partition('=')[0]!r}; give --property {name}=...")
    try:
        return scalar(given or name, unit=unit)
    except InputError as error:
        raise InputError(f"{error}, with --property") from error


def _settings(facts: Mapping[str, str], path: Path) -> dict[str, Any]:
    if "job" in facts:
        return _job(facts, path).settings
    try:
        return msgspec.json.decode(facts["settings"], type=dict[str, Any])
    except (KeyError, msgspec.MsgspecError) as error:
        raise InputError(
            f"{path.name} does not say how it was trained; write it again with druse train weights"
        ) from error


class _Source(msgspec.Struct):
    train: str
    classes: dict[str, str] = {}


class _Job(msgspec.Struct):
    """Of a `druse_export.training.job.Job`, which may be of a later version, what is used here."""

    data: _Source
    settings: dict[str, Any]


def _job(facts: Mapping[str, str], path: Path) -> _Job:
    try:
        return msgspec.convert(tomllib.loads(facts["job"]), _Job)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(
            f"{path.name} holds a job that cannot be read ({error}); write it again with druse train weights"
        ) from error


def _provenance(facts: Mapping[str, str], hashes: dict[str, str], path: Path, note: str) -> Provenance:
    data = _job(facts, path).data.train if "job" in facts else facts.get("data", "")
    try:
        figures = {key.removeprefix("val_"): float(value) for key, value in facts.items() if key.startswith("val_")}
        steps, epoch = (None if key not in facts else int(facts[key]) for key in ("step", "epoch"))
    except ValueError as error:
        raise InputError(f"{path.name} holds a figure that is none ({error}); write it again") from error
    return Provenance(
        source="trained",
        weights=hashes,
        data=data,
        steps=steps,
        epochs=None if epoch is None else epoch + 1,
        figures={key: value for key, value in figures.items() if math.isfinite(value)},  # JSON has no others
        note="; ".join(filter(None, (facts.get("validation", ""), note))),
    )


def property_values(
    data: Path, model: ConCDVAE, priors: Mapping[str, Prior], classes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Every property that a condition has, of every crystal of the data; formulas as text.

    ``classes`` are columns to make of others, see `druse_export.training.properties.with_classes`.
    """
    table = with_classes(load_table(data, cache=default_cache()), classes or {})
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
