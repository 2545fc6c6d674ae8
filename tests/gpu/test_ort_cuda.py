"""ONNX Runtime on a GPU beside the CPU: scores of the same states, and whole runs that repeat."""

from typing import Any

import numpy as np
import pytest

from druse import Crystals, Generator, SamplingSchedule
from druse._cuda import _Graph
from druse._peak import peak_gflops
from druse.backends import open_backend
from druse.bench import measure
from druse.bundle import Bundle
from druse.errors import DeviceError, DruseError, InputError
from druse.model import Model

pytestmark = pytest.mark.gpu

TOLERANCES = {"fp32": 1e-4, "tf32": 3e-2, "fp16": 3e-2, "bf16": 2e-1}
"""Largest difference of a score or logit, relative to the largest. TF32 and float16 have 10 bits, bfloat16 7."""

SHORT = SamplingSchedule(method="ancestral", n_levels=6, n_steps=2)


def opened(precision: str, name: str = "ort-cuda") -> Model:
    try:
        backend = open_backend(name, precision=precision)
    except DruseError as error:
        pytest.skip(f"{name} cannot run here: {error}")
    return Model.open(Bundle.embedded(), backend=backend)


def noisy(n: int = 200) -> Crystals:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 21, n)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    cells = np.cbrt(18.0 * counts)[:, None, None] * np.eye(3) + rng.uniform(-0.8, 0.8, (n, 3, 3))
    return Crystals(rng.random((offsets[-1], 3)), cells, offsets, rng.integers(1, 90, offsets[-1]).astype(np.int32))


@pytest.mark.parametrize(
    ("name", "precision"), [*(("ort-cuda", precision) for precision in TOLERANCES), ("ort-tensorrt", "tf32")]
)
def test_scores_of_the_same_states(name: str, precision: str) -> None:
    model = opened(precision, name)
    crystals, rng = noisy(), np.random.default_rng(1)
    z_con = rng.standard_normal((len(crystals), model.manifest.latent)).astype(np.float32)
    levels = np.arange(len(crystals)) % len(model.manifest.sigmas)
    try:
        found = model.score(crystals, z_con, levels)
    except DeviceError as error:
        if name == "ort-cuda":
            raise
        pytest.skip(f"{name} cannot run here: {error}")  # there is no TensorRT
    except InputError as error:
        pytest.skip(f"the bundle has no such graphs: {error}")
    wanted = Model.open(Bundle.embedded(), backend="ort-cpu").score(crystals, z_con, levels)
    assert np.array_equal(found.status, wanted.status)
    for mine, other in ((found.scaled, wanted.scaled), (found.logits, wanted.logits)):
        assert np.abs(mine - other).max() <= TOLERANCES[precision] * np.abs(other).max()
    assert [a.tobytes() for a in model.score(crystals, z_con, levels)] == [a.tobytes() for a in found]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_whole_run_twice(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    def made() -> list[Any]:
        generator = Generator(Bundle.embedded(), backend=opened(precision).backend)
        run = generator.generate({"formation_energy_per_atom": -2.0}, count=300, oversample=4, seed=3, schedule=SHORT)
        parts = list(run)
        resident = generator.model.resident
        assert resident is not None
        works = [work for bucket in resident._buckets.values() for work in bucket._ready.values()]
        assert works
        assert all(isinstance(work, _Graph) for work in works), "every step is a captured graph"
        return parts

    first, second = made(), made()
    for mine, other in zip(first, second, strict=True):
        assert mine.frac.tobytes() == other.frac.tobytes()
        assert mine.species.tobytes() == other.species.tobytes()
        assert np.array_equal(mine.status, other.status)
        assert mine.ok.mean() > 0.9
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_what_comes_before_the_sampler_is_the_cpus() -> None:
    """Latents, ranking and cells do not depend on where the score network runs."""
    targets: dict[str, float | int | str] = {"formation_energy_per_atom": -2.0}
    options: dict[str, Any] = {"count": 20, "oversample": 5, "seed": 3, "schedule": SHORT}
    gpu = Generator(Bundle.embedded(), backend=opened("fp32").backend)
    cpu = Generator(Bundle.embedded(), backend="ort-cpu")
    (mine,), (other,) = (list(one.generate(targets, **options, batch=20)) for one in (gpu, cpu))
    assert mine.cells.tobytes() == other.cells.tobytes()
    for name in ("latent", "cost"):
        assert mine.columns[name].tobytes() == other.columns[name].tobytes()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_what_druse_bench_measures(precision: str) -> None:
    backend = opened(precision).backend
    assert peak_gflops(backend, n=512) > 0
    try:
        generator = Generator(Bundle.embedded(), backend=backend)
        (step,) = measure(generator, n_crystals=(40,), schedule=None, peak=False, seconds=0.01).steps
    except InputError as error:
        pytest.skip(f"the bundle has no such graphs: {error}")
    assert step.captured
    assert all(spent is not None and spent > 0 for spent in step.milliseconds.values())
    assert step.device_bytes is not None, "which other processes change too, so no more is asked of it"
    assert step.array_bytes
