"""Inputs and float64 outputs that a bundle records, and their check against the networks as they were trained."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from druse.basis import legendre_block
from druse.bundle import Precision
from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.crystals import Crystals
from druse.errors import DruseError
from druse.lattice import cells_from_parameters
from druse_export.bundles.networks import (
    Exported,
    ExportedDecoder,
    ExportedPrior,
    ExportedPriorCondition,
    ExportedProjection,
    InPrecision,
    embed,
)
from druse_export.models.cgcnn import CGCNN, crystal_table
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.gemnet import ScoreGeometry
from druse_export.models.geometry import score_geometry, score_graph
from druse_export.models.prior import Prior

TOLERANCES: dict[Precision, float] = {"fp32": 2e-5, "bf16": 0.1, "fp16": 0.02}
"""Largest deviation from float64, relative to the largest value of each output."""

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions besides fp32 that can be written in a graph."""

Arrays = dict[str, np.ndarray]


def random_crystals(rng: np.random.Generator, n: int) -> Crystals:
    """Crystals without symmetry: 2 to 16 atoms, 12 to 30 cubic Angstrom for each."""
    sizes = rng.integers(2, 17, n)
    angles = rng.uniform(70, 110, (n, 3))
    cells = cells_from_parameters(rng.uniform(0.8, 1.2, (n, 3)), angles)
    volume = rng.uniform(12, 30, n) * sizes
    cells *= np.cbrt(volume / np.abs(np.linalg.det(cells)))[:, None, None]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Crystals(rng.random((offsets[-1], 3)), cells, offsets, rng.integers(1, 90, offsets[-1]).astype(np.int32))


def crystal_arrays(crystals: Crystals) -> Arrays:
    """The arrays of a batch, by name."""
    return {key: np.asarray(getattr(crystals, key)) for key in ("frac", "cells", "offsets", "species")}


def double(module: Any) -> Any:
    """A copy in float64; tables that were computed in float32 keep their values."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False).double().eval()  # what was saved a line before


def rows_reference(network: Exported, conditions: Sequence[Property], rng: np.random.Generator) -> Arrays:
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
        outputs = double(network)(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays = {f"inputs/{key}": value for key, value in inputs.items()}
    return arrays | {f"outputs/{t.name}": v.numpy() for t, v in zip(network.outputs, outputs, strict=True)}


def decoder_reference(model: ConCDVAE, rng: np.random.Generator) -> Arrays:
    """Crystals at several noise levels and their scores in float64, on the runtime's float32 graphs and bases."""
    config, crystals = model.config, random_crystals(rng, 8)
    level = np.linspace(0, config.n_levels - 1, len(crystals)).round().astype(np.int32)
    z_con = rng.standard_normal((len(crystals), config.latent)).astype(np.float32)
    with torch.no_grad():
        latent = double(ExportedProjection(model))(torch.from_numpy(z_con).double()).float()
        geometry, given = _decoder_inputs(model, crystals, latent, level)
        single = model.score(torch.from_numpy(z_con), torch.from_numpy(level), _types(crystals), geometry)
        force, logits = double(ExportedDecoder(model))(*_as_double(given))
        score = _on_atoms(geometry, force)
    require_close("decoder/scaled", single[0], score.numpy())
    require_close("decoder/logits", single[1], logits.numpy())
    return {
        **{f"inputs/{key}": value for key, value in crystal_arrays(crystals).items()},
        "inputs/latent": latent.numpy(),
        "inputs/level": level,
        "outputs/scaled": score.numpy(),
        "outputs/logits": logits.numpy(),
    }


def _decoder_inputs(
    model: ConCDVAE, crystals: Crystals, latent: Tensor, level: np.ndarray
) -> tuple[ScoreGeometry, list[Tensor]]:
    """The geometry of crystals, and the decoder's arguments as they are exported."""
    config = model.config.decoder
    graph = score_graph(crystals, config, mode=model.config.graph_mode)
    geometry = score_geometry(graph, config)
    return geometry, [
        latent,
        torch.from_numpy(level),
        torch.from_numpy(crystals.species.copy()),
        geometry.crystal.int(),
        geometry.radial,
        torch.from_numpy(legendre_block(graph, n_spherical=config.n_spherical)),
        geometry.src,
        geometry.dst,
        geometry.in_edge,
        geometry.valid,
        geometry.slot,
    ]


def _as_double(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.double() if value.is_floating_point() else value for value in values]


def _on_atoms(geometry: ScoreGeometry, force: Tensor) -> Tensor:
    """Forces along edges, summed on atoms."""
    directed = torch.cat([geometry.unit, -geometry.unit]).double() * force.reshape(-1, 1).double()
    ends = torch.cat([geometry.dst, geometry.src]).long()
    return torch.zeros(len(geometry.crystal), 3, dtype=torch.float64).index_add(0, ends, directed)


def _types(crystals: Crystals) -> Tensor:
    return torch.from_numpy(crystals.species.astype(np.int64))


def cgcnn_table(crystals: Crystals, model: CGCNN, dtype: torch.dtype) -> Any:
    """The neighbour table of crystals, with distances of a type."""
    table = crystal_table(crystals, model.config)
    return table._replace(distance=table.distance.to(dtype))


def check_against_pytorch(model: ConCDVAE, priors: Mapping[str, Prior], reference: Arrays) -> None:
    """The recorded float64 outputs beside those of the networks as they were trained, in float32."""

    def given(role: str, name: str) -> Tensor:
        return torch.from_numpy(reference[f"{role}/inputs/{name}"])

    def compare(role: str, name: str, got: Tensor) -> None:
        require_close(f"{role}/{name}", got, reference[f"{role}/outputs/{name}"])

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
            terms = double(ExportedPriorCondition(prior))(*[v.double() if v.is_floating_point() else v for v in of])
            z, step = given(f"{role}/network", "z"), given(f"{role}/network", "step")
            condition = prior.condition({s.name: v for s, v in zip(prior.config.conditions, of, strict=True)})
            whole = prior.predict_noise(z, condition, step.expand(len(z)))
            hoisted = double(ExportedPrior(prior))(z.double(), terms, step)
            require_close(f"{role}/network", whole, hoisted.numpy())


def check_in_precision(model: ConCDVAE, priors: Mapping[str, Prior], reference: Arrays, precision: Precision) -> None:
    """The recorded float64 outputs beside those of decoder and priors in a lower precision, as PyTorch computes them.

    Raises:
        DruseError: they deviate by more than the tolerance, or leave the range of the type.
    """
    dtype = DTYPES[precision]

    with torch.no_grad():
        crystals = Crystals(*(reference[f"decoder/inputs/{key}"] for key in ("frac", "cells", "offsets", "species")))
        latent, level = torch.from_numpy(reference["decoder/inputs/latent"]), reference["decoder/inputs/level"]
        geometry, inputs = _decoder_inputs(model, crystals, latent, level)
        force, logits = InPrecision(ExportedDecoder(model), dtype)(*inputs)
        require_close("decoder/scaled", _on_atoms(geometry, force), reference["decoder/outputs/scaled"], precision)
        require_close("decoder/logits", logits, reference["decoder/outputs/logits"], precision)
        for key, prior in priors.items():
            role = f"priors/{key}/network"
            values = [torch.from_numpy(reference[f"{role}/inputs/{name}"]) for name in ("z", "terms", "step")]
            (eps,) = InPrecision(ExportedPrior(prior), dtype)(*values)
            require_close(f"{role}/eps", eps, reference[f"{role}/outputs/eps"], precision)


def require_close(what: str, got: Tensor, expected: np.ndarray, precision: Precision = "fp32") -> None:
    """Refuse an output that is further from its float64 twin than rounding explains."""
    difference = np.abs(got.detach().numpy().astype(np.float64) - expected).max(initial=0.0)
    relative = float(difference) / max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    if not relative <= TOLERANCES[precision]:
        advice = "please report this" if precision == "fp32" else f"leave --precision {precision} out"
        raise DruseError(f"{what} as exported in {precision} deviates by {relative:.1e} of its scale; {advice}")
