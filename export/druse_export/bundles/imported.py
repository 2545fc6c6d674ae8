"""Bundles from checkpoints of others."""

import hashlib
import math
from collections.abc import Collection
from pathlib import Path

import torch

from druse.bundle import Bundle, Precision, Provenance
from druse.errors import InputError
from druse_export.bundles.build import Progress, build_cgcnn, build_con_cdvae
from druse_export.bundles.trained import property_values
from druse_export.importing.cgcnn import read_cgcnn
from druse_export.importing.upstream import read_run
from druse_export.training.properties import scalar


def import_bundle(
    run: Path,
    out: Path,
    *,
    name: str,
    licence: str,
    property_: str | None = None,
    threshold: float | None = None,
    below: bool = False,
    version: str | None = None,
    data: Path | None = None,
    precisions: Collection[Precision] = (),
    progress: Progress | None = None,
) -> Bundle:
    """A bundle of a run directory of Con-CDVAE's authors, or of a CGCNN checkpoint of theirs.

    Args:
        run: the directory, or the file.
        out: folder to make.
        name: for the manifest.
        licence: SPDX identifier or text.
        property_: what a CGCNN predicts: a known name, or ``NAME=LOW:HIGH:SPACING[:UNIT]``.
        threshold: of a classifying CGCNN.
        below: whether its class 1 is what is not above the threshold, as in the authors' models of formation energy;
            the bundle's is always what is above.
        version: of a CGCNN, part of the names of its columns; None: 1.
        data: crystals with properties, which are kept for the strategy less to draw from.
        precisions: see `druse_export.bundles.build.build_con_cdvae`.
        progress: see there.

    Raises:
        InputError: it is neither, something in it is refused, or what a CGCNN predicts is not said.
    """
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it first")
    if run.is_dir():
        if property_ is not None or threshold is not None or below or version is not None:
            raise InputError(
                f"{run} says itself what its model is of; leave --property, --threshold, --below and --version out"
            )
        found = read_run(run)
        files = [path for path in sorted(run.iterdir()) if path.is_file()]
        provenance = Provenance(
            source="imported", weights=_hashes(files), note="a run directory of Con-CDVAE's authors"
        )
        values = None if data is None else property_values(data, found.model, found.priors)
        return build_con_cdvae(
            found.model, found.priors, out, name=name, licence=licence, provenance=provenance, values=values,
            precisions=precisions, progress=progress,
        )  # fmt: skip
    model = read_cgcnn(run)
    if precisions or data is not None:
        raise InputError(f"{run.name} is a CGCNN, which takes no data and no other precision; leave them out")
    if property_ is None:
        raise InputError(
            f"{run.name} does not say what it predicts; give --property, such as formation_energy_per_atom"
        )
    classifies = model.config.task == "classification"
    if classifies != (threshold is not None):
        needs = "is a classification; give --threshold" if classifies else "is a regression; leave --threshold out"
        raise InputError(f"{run.name} {needs}")
    if below and not classifies:
        raise InputError(f"{run.name} is a regression; leave --below out")
    if below:
        with torch.no_grad():
            model.out.weight.copy_(model.out.weight.flip(0))
            model.out.bias.copy_(model.out.bias.flip(0))
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"`threshold` must be a number, got {threshold}")
    provenance = Provenance(source="imported", weights=_hashes([run]), note="a CGCNN checkpoint of Con-CDVAE's authors")
    return build_cgcnn(
        model, out, property_=scalar(property_), threshold=threshold, name=name, version=version or "1",
        licence=licence, provenance=provenance,
    )  # fmt: skip


def _hashes(files: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
