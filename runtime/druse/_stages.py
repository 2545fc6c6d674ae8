"""How long the parts of a sampling step take: crystals in a bucket on a device, or in bins on a processor's cores.

Work is repeated as a run repeats it, and timed over many repetitions, between two waits on a device. On cores each part
is run over all bins, side by side, as one evaluation runs them; so the parts add up to a step, but for what its bins
gain by not waiting for one another.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from druse import _gemnet
from druse._device import Array, HostDevice, Work
from druse._resident import TOGETHER, Bucket, Resident
from druse._rooms import OVERFLOW, Room
from druse._score import Workspace, atom_forces, decoder_inputs, spec_graph
from druse.crystals import Crystals
from druse.errors import DeviceError, DruseError
from druse.model import Model
from druse.noise import Purpose, gumbel
from druse.sampling import langevin_update

__all__ = ["Stages", "stages"]

_ROUNDS = 5
_DRIFT, _DIFFUSION = 1e-3, 1e-3


class Stages(NamedTuple):
    """What was measured of one number of crystals.

    Attributes:
        milliseconds: of ``graph`` (half edges, incidence table, padding), ``bases`` (None where the native network
            makes its own), ``network``, ``update`` (draws of types and the Langevin move), and of a whole ``step``.
        room: of the bucket; None on cores.
        captured: whether a step is one launch of a captured graph; None on cores.
        array_bytes: of the bucket's arrays; None on cores.
        device_bytes: by which the device's free memory shrank for the bucket, with the network's own and what was
            captured; None on the host.
    """

    milliseconds: dict[str, float | None]
    room: dict[str, int] | None = None
    captured: bool | None = None
    array_bytes: int | None = None
    device_bytes: int | None = None


def stages(model: Model, crystals: Crystals, *, seconds: float) -> Stages:
    """Measure Langevin steps of these crystals at a middle noise level.

    Args:
        model: on its backend.
        crystals: as many as are to be together.
        seconds: that the rounds of each part shall take; a part that is slower is run a few times all the same.

    Raises:
        OutOfMemoryError: there is no memory for so many.
    """
    z = np.random.default_rng(1).standard_normal((len(crystals), model.manifest.latent)).astype(np.float32)
    latent, level = model.project(z), len(model.manifest.sigmas) // 2
    resident = model.resident
    if resident is None:
        return _on_cores(model, crystals, latent, level, seconds)
    with resident.lock:
        resident.device.enter()
        try:
            return _on_device(resident, crystals, latent, level, seconds)
        finally:
            resident.clear()


def _milliseconds(work: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Of one of so many, the median of a few rounds; the first does not count."""

    def rounds(times: int) -> float:
        wait()
        begin = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        return (time.perf_counter() - begin) / times

    rounds(1)
    times = max(1, int(seconds / _ROUNDS / max(rounds(1), 1e-7)))
    return 1e3 * statistics.median(rounds(times) for _ in range(_ROUNDS))


def _on_device(resident: Resident, crystals: Crystals, latent: np.ndarray, level: int, seconds: float) -> Stages:
    device, before = resident.device, resident.device.memory
    bucket = _filled(resident, crystals, latent, level, Room())

    def steps() -> None:
        bucket.step(
            TOGETHER, first=0, left=1000, drift=_DRIFT, diffusion=_DIFFUSION, seed=0, purpose=Purpose.LANGEVIN,
            draw=True, name=True,
        )  # fmt: skip

    langevin, types = bucket._key(0, Purpose.LANGEVIN, 0), bucket._key(0, Purpose.TYPES, 1)

    def update() -> None:
        bucket.draw(types)
        bucket.move(bucket.frac, bucket.species, bucket.scaled, langevin, _DRIFT, _DIFFUSION, True)

    captured = True

    def ready(work: Work) -> Work:
        nonlocal captured
        try:
            return device.capture(work)
        except DruseError:  # as `Bucket` does: then it is queued kernel by kernel
            captured = False
            return work

    spent: dict[str, float | None] = {
        name: _milliseconds(ready(work), device.wait, seconds)
        for name, work in (("graph", bucket._graph), ("bases", bucket._bases), ("network", bucket._network))
    }
    bucket.evaluate()
    spent["update"] = _milliseconds(ready(update), device.wait, seconds)
    spent["step"] = _milliseconds(steps, device.wait, seconds) / TOGETHER
    arrays = {id(array): array.nbytes for array in _arrays(bucket)}
    on_host = isinstance(device, HostDevice)  # whose free memory is everybody's
    return Stages(
        spent, bucket.shape._asdict(), captured, sum(arrays.values()), None if on_host else before - device.memory
    )


def _filled(resident: Resident, crystals: Crystals, latent: np.ndarray, level: int, room: Room) -> Bucket:
    """A bucket in which every crystal has room, after an evaluation."""
    bucket = resident.bucket(len(crystals), len(crystals.frac), room)
    bucket.fill(crystals, latent, np.arange(len(crystals)))
    bucket.at_level(level)
    bucket.evaluate()
    status = bucket.status()[: len(crystals)]
    if not (status & OVERFLOW).any():
        return bucket
    if room.is_last:
        raise DeviceError(f"crystals of this kind find no room in {bucket.shape}; give fewer of them")
    resident.clear()
    return _filled(resident, crystals, latent, level, room.more(status))


def _arrays(bucket: Bucket) -> Iterator[Array]:
    yield from bucket.network_arrays.values()
    yield from (value for value in vars(bucket).values() if isinstance(value, Array))


def _on_cores(model: Model, crystals: Crystals, latent: np.ndarray, level: int, seconds: float) -> Stages:
    spec, backend = model.manifest.graph, model.backend
    fused = backend.fused and model.manifest.decoder.formulation == _gemnet.FORMULATION
    model.ready()
    run = None if fused else model.runner("decoder")
    pieces = [np.arange(piece.start, piece.stop) for piece in model.bins(crystals.n_atoms)]
    bins = [(crystals.take(rows), latent[rows], np.full(len(rows), level, np.int32)) for rows in pieces]
    spaces = [Workspace() for _ in bins]  # one for each bin, so that what is in it stays

    def graph(k: int) -> Any:
        return spec_graph(bins[k][0], spec)

    def inputs(k: int) -> dict[str, np.ndarray]:
        some, latents, levels = bins[k]
        return decoder_inputs(graphs[k], some.species, latents, levels, spec, spaces[k])

    def network(k: int) -> Any:
        if run is not None:
            return run(given[k])
        some, latents, _ = bins[k]
        return model.score(some, None, level, latent=latents, graph=graphs[k])[:2]

    def update(k: int, scaled: np.ndarray, logits: np.ndarray) -> None:
        some, ids = bins[k][0], pieces[k]
        drawn = logits + gumbel(0, Purpose.TYPES, 1, ids, width=logits.shape[1], offsets=some.offsets)
        langevin_update(
            some.frac, some.cells, some.offsets, some.species, scaled, drift=_DRIFT, diffusion=_DIFFUSION, seed=0,
            crystal_ids=ids, logits=drawn,
        )  # fmt: skip

    def step(k: int) -> None:
        some, latents, _ = bins[k]
        update(k, *model.score(some, None, level, latent=latents, graph=graph(k))[:2])

    graphs = [graph(k) for k in range(len(bins))]
    given = [inputs(k) for k in range(len(bins))] if run is not None else []
    answers = [network(k) for k in range(len(bins))]
    if run is not None:
        answers = [
            (atom_forces(each, force), logits[:-1].copy())
            for each, (force, logits) in zip(graphs, answers, strict=True)
        ]
    parts: dict[str, Callable[[int], object] | None] = {
        "graph": graph, "bases": inputs if run is not None else None, "network": network,
        "update": lambda k: update(k, *answers[k]), "step": step,
    }  # fmt: skip
    with ThreadPoolExecutor(backend.workers) as pool:
        spent = {
            name: None
            if part is None
            else _milliseconds(lambda part=part: list(pool.map(part, range(len(bins)))), lambda: None, seconds)  # type: ignore[misc]
            for name, part in parts.items()
        }
    return Stages(spent)
