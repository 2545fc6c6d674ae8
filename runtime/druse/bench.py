"""What a machine does with a bundle: a step and its parts, its share of the peak, and crystals a second.

```python
from druse import Generator
from druse.bench import measure

report = measure(Generator(backend="ort-cuda", precision="tf32"), n_crystals=(64, 1024))
report.steps[0].milliseconds["network"], report.to_dict()
```

Steps are those of crystals of ten atoms in uniform places at a middle noise level, so that a figure is of the machine
and not of a target; how many steps a crystal takes, its schedule says.
"""

import dataclasses
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from druse import __version__, _gemnet, _native
from druse._onnx import float_tensors
from druse._peak import peak_gflops
from druse._score import spec_graph
from druse._stages import stages
from druse.backends import cores
from druse.crystals import Crystals
from druse.errors import InputError
from druse.generate import DEFAULT_SCHEDULE, Generator, Request
from druse.lattice import plane_spacings
from druse.model import Model
from druse.schedules import SCHEDULES, SamplingSchedule, sampling_schedule

__all__ = ["N_ATOMS", "Report", "Sampled", "Speed", "Step", "measure", "random_crystals"]

N_ATOMS = 10
"""Atoms in each crystal whose steps are measured: the mean of MP-20."""

_VOLUME = 18.0
"""Of an atom, cubic Angstrom."""

_ISAS = {number: name for name, number in _native.ISAS.items()}


@dataclasses.dataclass(frozen=True)
class Step:
    """A Langevin step of so many crystals.

    Attributes:
        crystals, atoms, directed_edges: that take part.
        milliseconds: by part, see `druse._stages.Stages`; they are parts of the last one, ``step``.
        gflop: of the network's products, in billions, padding left out; None where Druse does not know the formulation.
        gflops: billions a second while the network runs.
        share_of_peak: of what large products reach on the same backend in the same precision.
        room: what the bucket has room for, on a backend with a device.
        captured: whether steps are launched as a captured graph.
        array_bytes, device_bytes: of the bucket's arrays, and of all that it takes on the device.
    """

    crystals: int
    atoms: int
    directed_edges: int
    milliseconds: dict[str, float | None]
    gflop: float | None
    gflops: float | None
    share_of_peak: float | None
    room: dict[str, int] | None
    captured: bool | None
    array_bytes: int | None
    device_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a step's time makes of a named schedule.

    Attributes:
        schedule: its name.
        crystals: at once.
        evaluations: of the score network for a crystal, the mean over the crystals of the measured steps.
        per_second: crystals; of sampling alone, without latents and files.
    """

    schedule: str
    crystals: int
    evaluations: float
    per_second: float


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Crystals that were really sampled, from latents that were there.

    Attributes:
        schedule: its name, or its method.
        crystals, good: how many, and of them without a failure.
        evaluations: for a crystal, on average.
        latent_seconds: drawing and ranking of the latents.
        seconds: sampling, with the making of buckets and the first capture.
        per_second: crystals.
    """

    schedule: str
    crystals: int
    good: int
    evaluations: float
    latent_seconds: float
    seconds: float
    per_second: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that ``druse bench`` shows.

    Attributes:
        druse, platform, isa, threads: of Druse and the machine; the instruction set of its native code.
        bundle, sha256: of the network.
        backend, precision, engine: that ran it, and how it describes itself.
        peak_gflops: of large products, on that backend in that precision; None where it was not asked for.
        steps: by number of crystals.
        speeds: of each named schedule, for each of the steps.
        sampled: None where none was asked for.
    """

    druse: str
    platform: str
    isa: str
    threads: int
    bundle: str
    sha256: str
    backend: str
    precision: str
    engine: str
    peak_gflops: float | None
    steps: tuple[Step, ...]
    speeds: tuple[Speed, ...]
    sampled: Sampled | None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)


def measure(
    generator: Generator,
    *,
    n_crystals: Sequence[int] = (64,),
    schedule: str | SamplingSchedule | None = DEFAULT_SCHEDULE,
    peak: bool = True,
    seconds: float = 0.5,
) -> Report:
    """Measure a machine.

    Args:
        generator: on the backend and in the precision that are to be measured.
        n_crystals: numbers of crystals whose steps are measured, each by itself.
        schedule: by which as many crystals as the last of them are really sampled; None: none are.
        peak: whether the rate of large products is measured.
        seconds: that the rounds of each part of a step shall take.

    Raises:
        InputError: a number of crystals is not above 0, or no schedule has this name.
        OutOfMemoryError: there is no memory for so many crystals.
    """
    if not n_crystals or not all(isinstance(n, int) and 0 < n <= 10**6 for n in n_crystals):
        raise InputError(f"`n_crystals` must be whole numbers from 1 to 1,000,000, got {list(n_crystals)}")
    chosen = None if schedule is None else sampling_schedule(schedule)
    model, backend = generator.model, generator.model.backend
    highest = peak_gflops(backend) if peak else None
    steps = tuple(_step(model, n, highest, seconds) for n in n_crystals)
    speeds = tuple(speed for step in steps for speed in _speeds(model, step))
    name = schedule if isinstance(schedule, str) else chosen.method if chosen is not None else ""
    return Report(
        druse=__version__,
        platform=platform.platform(),
        isa=_ISAS[_native.library().druse_best_isa()],
        threads=cores(),
        bundle=generator.bundle.name,
        sha256=generator.bundle.digest,
        backend=backend.name,
        precision=backend.precision,
        engine=backend.describe(),
        peak_gflops=highest,
        steps=steps,
        speeds=speeds,
        sampled=None if chosen is None else _sampled(generator, name, chosen, n_crystals[-1]),
    )


def random_crystals(n: int) -> Crystals:
    """Crystals of `N_ATOMS` atoms of any type in uniform places, their cells almost cubes, always the same ones."""
    rng = np.random.default_rng(0)
    offsets = np.arange(n + 1) * N_ATOMS
    cells = np.cbrt(_VOLUME * N_ATOMS) * np.eye(3) + rng.uniform(-1, 1, (n, 3, 3))
    return Crystals(rng.random((offsets[-1], 3)), cells, offsets, rng.integers(1, 80, offsets[-1]).astype(np.int32))


def _step(model: Model, n: int, peak: float | None, seconds: float) -> Step:
    crystals = random_crystals(n)
    degree = spec_graph(crystals, model.manifest.graph, cores()).degree
    measured = stages(model, crystals, seconds=seconds)
    gflop = _gflop(model, degree)
    network = measured.milliseconds["network"]
    gflops = gflop / network * 1e3 if gflop is not None and network else None
    return Step(
        crystals=n,
        atoms=len(crystals.frac),
        directed_edges=int(degree.sum()),
        gflop=gflop,
        gflops=gflops,
        share_of_peak=gflops / peak if gflops is not None and peak else None,
        **measured._asdict(),
    )


def _gflop(model: Model, degree: np.ndarray) -> float | None:
    network = model.manifest.decoder
    if network.formulation != _gemnet.FORMULATION:
        return None
    tensors = float_tensors(model.bundle.read(network.file))
    return _gemnet.flops(_gemnet.sizes_of(tensors, model.manifest.graph), degree) / 1e9


def _speeds(model: Model, step: Step) -> list[Speed]:
    crystals, seconds = random_crystals(step.crystals), (step.milliseconds["step"] or 0.0) / 1e3
    found = []
    for name, schedule in SCHEDULES.items():
        evaluations = _evaluations(model, schedule, crystals)
        found.append(Speed(name, step.crystals, evaluations, step.crystals / (evaluations * seconds)))
    return found


def _evaluations(model: Model, schedule: SamplingSchedule, crystals: Crystals) -> float:
    """For a crystal, the mean."""
    sigmas, spacings = model.manifest.sigmas, plane_spacings(crystals.cells).max(axis=1)
    return float(np.mean([schedule.n_evaluations(len(schedule.levels(sigmas, float(s)))) for s in spacings]))


def _sampled(generator: Generator, name: str, schedule: SamplingSchedule, count: int) -> Sampled:
    request = Request(targets={}, count=count, strategy="less", oversample=1, schedule=schedule)
    begin = time.perf_counter()
    ranked = generator.rank(request, generator.check(request))
    between = time.perf_counter()
    parts = list(generator.sample(request, ranked))
    seconds = time.perf_counter() - between
    return Sampled(
        schedule=name,
        crystals=count,
        good=sum(int(part.ok.sum()) for part in parts),
        evaluations=_evaluations(generator.model, schedule, Crystals.concatenate(parts)),
        latent_seconds=between - begin,
        seconds=seconds,
        per_second=count / seconds,
    )
