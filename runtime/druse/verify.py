"""How far a backend is from the recorded outputs of a bundle, network by network."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from druse._arrays import as_array
from druse._networks import run_rows
from druse.backends import Backend
from druse.bundle import Bundle, CGCNNManifest
from druse.crystals import Crystals
from druse.errors import InputError
from druse.model import Model
from druse.properties import PropertyModel

__all__ = ["Deviation", "verify"]


class Deviation(NamedTuple):
    """An output of a network on a backend, beside the same in float64.

    Attributes:
        output: ``role/name``.
        largest: difference, relative to the largest recorded value.
        rms: root mean square of the differences, relative to that of the recorded values.
        tolerance: for ``largest``, from the manifest; None where it states none for the backend's precision.
        alone: whether each crystal alone gives the same bytes as all together; None where there are no crystals.
    """

    output: str
    largest: float
    rms: float
    tolerance: float | None
    alone: bool | None = None

    @property
    def ok(self) -> bool:
        """Within the tolerance; a backend without a stated one is never ok."""
        return self.tolerance is not None and self.largest <= self.tolerance


def verify(bundle: Bundle, backend: Backend) -> Iterator[Deviation]:
    """Replay the recorded inputs of a bundle.

    Networks that take crystals are replayed from the crystals: their graphs and bases are part of what is verified.

    Raises:
        InputError: the reference lacks something that the manifest has a network for.
    """
    recorded = bundle.reference()
    stated = "fp16" if backend.precision == "tf32" else backend.precision  # TF32 has as many digits
    tolerance = bundle.manifest.tolerances.get(stated)

    def under(place: str) -> dict[str, np.ndarray]:
        found = _Recorded({k.removeprefix(place): v for k, v in recorded.items() if k.startswith(place)})
        if not found:
            raise InputError(f"{bundle.name}: the reference has nothing under {place}; build the bundle again")
        return found

    def compare(role: str, got: dict[str, np.ndarray], alone: bool | None = None) -> Iterator[Deviation]:
        for name, expected in under(f"{role}/outputs/").items():
            if name not in got:
                raise InputError(f"{bundle.name}: the reference has an output {name!r} that {role} does not give")
            yield Deviation(f"{role}/{name}", *_difference(got[name], expected), tolerance, alone)

    manifest = bundle.manifest
    if isinstance(manifest, CGCNNManifest):
        crystals = _crystals(under("network/inputs/"))
        model = PropertyModel(bundle, backend)
        value = model.predict(crystals)
        each = np.concatenate([model.predict(crystal) for crystal in crystals])
        yield from compare("network", {"value": value}, value.tobytes() == each.tobytes())
        return
    generator = Model(bundle, backend)
    for role, network in manifest.networks.items():
        inputs = under(f"{role}/inputs/")
        if role == "decoder":
            yield from compare(role, *_scores(generator, inputs))
        else:
            if role.startswith("priors/") and role.endswith("/network"):
                step = int(as_array("step", inputs["step"], np.int32, 1)[0])
                eps = generator.prior_step(inputs["z"], inputs["terms"], step, prior=role.split("/")[1])
                yield from compare(role, {"eps": eps})
                continue
            given = {t.name: np.ascontiguousarray(inputs[t.name], t.dtype) for t in network.inputs}
            outputs = run_rows(generator.runner(role), network, given)
            yield from compare(role, {t.name: value for t, value in zip(network.outputs, outputs, strict=True)})


def _scores(model: Model, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
    crystals, latent = _crystals(inputs), inputs["latent"]
    level = as_array("level", inputs["level"], np.int32, len(crystals))
    score = model.score(crystals, None, level, latent=latent)
    each = [model.score(crystal, None, level[b], latent=latent[b : b + 1]) for b, crystal in enumerate(crystals)]
    alone = all(
        np.concatenate([getattr(one, name) for one in each]).tobytes() == getattr(score, name).tobytes()
        for name in ("scaled", "logits")
    )
    return {"scaled": score.scaled, "logits": score.logits}, alone


def _crystals(inputs: dict[str, np.ndarray]) -> Crystals:
    return Crystals(*(inputs[name] for name in ("frac", "cells", "offsets", "species")))


class _Recorded(dict[str, np.ndarray]):
    """Arrays by name; one that is asked for and not there is the reference's fault."""

    def __missing__(self, name: str) -> np.ndarray:
        raise InputError(f"the reference lacks the input {name}; build the bundle again")


def _difference(got: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    if got.shape != expected.shape:
        raise InputError(f"the reference has the shape {expected.shape}, the network gives {got.shape}")
    difference, expected = np.abs(got - expected.astype(np.float64)), expected.astype(np.float64)
    if not difference.size:
        return 0.0, 0.0
    scale, rms = float(np.abs(expected).max()), float(np.sqrt(np.mean(expected**2)))
    return float(difference.max()) / max(scale, 1e-30), float(np.sqrt(np.mean(difference**2))) / max(rms, 1e-30)
