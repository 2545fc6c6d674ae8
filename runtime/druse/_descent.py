"""One bin of crystals down the noise levels on a device: the host queues work, and reads at the end.

The sampler is that of `druse.samplers`; its state is a pair of arrays on the device. The host runs ahead of it by a few
evaluations and no more, so that progress is told as it is made and a run can be stopped.
"""

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from druse._arrays import CrystalIds, Float64, Latents, Species, SpeciesLogits, Status
from druse._device import Array, Mark
from druse._graph import OUT_OF_MEMORY
from druse._resident import TOGETHER, Bucket, Resident
from druse._rooms import Room
from druse.backends import OutOfMemoryError
from druse.control import Masks
from druse.crystals import Crystals
from druse.noise import Purpose
from druse.samplers import run
from druse.schedules import SamplingSchedule

_AHEAD = 4
"""Launches that the host may be ahead of the device."""


class Arrived(NamedTuple):
    """A bin at the end of its way.

    Attributes:
        frac, species: places and types.
        logits: of the last evaluation.
        met: all status bits met; with one of `druse._rooms.OVERFLOW` a crystal has to go again, with more room.
    """

    frac: Float64[np.ndarray, "atoms 3"]
    species: Species
    logits: SpeciesLogits
    met: Status


class _State(NamedTuple):
    frac: Array
    species: Array


class _Way:
    """The score network and the update of a bin, as `druse.samplers` calls them."""

    def __init__(
        self, bucket: Bucket, schedule: SamplingSchedule, left: int, seed: int, name: bool, tick: Callable[[], None]
    ) -> None:
        self._bucket, self._left, self._seed = bucket, left, seed
        self._name, self._draw, self._tick = name, schedule.draw_types and name, tick
        self._marks: collections.deque[Mark] = collections.deque()

    def score(self, state: _State, level: int) -> tuple[Array, None]:
        self._tick()
        bucket = self._bucket
        self._put(state)
        bucket.at_level(level)
        bucket.evaluate()
        self._left -= 1
        if self._draw and self._left:
            bucket.draw_types(self._seed, self._left)
        self._keep_pace()
        return bucket.copy(bucket.scaled), None

    def __call__(
        self, state: _State, vector: Array, logits: None, *, drift: float, diffusion: float = 0.0, step: int = 0,  # noqa: ARG002  those of the bucket
        purpose: int = Purpose.LANGEVIN,
    ) -> _State:  # fmt: skip
        return _State(
            *self._bucket.moved(
                state.frac, state.species, vector, drift=drift, diffusion=diffusion, seed=self._seed, step=step,
                purpose=purpose, name=self._name,
            )
        )  # fmt: skip

    def steps(self, state: _State, level: int, *, drift: float, diffusion: float, steps: range, purpose: int) -> _State:
        bucket = self._bucket
        alone = 1 if self._draw and steps and self._left == len(steps) else 0  # nothing is drawn at the last evaluation
        together = steps[: len(steps) - alone]
        if together:
            self._put(state)
            bucket.at_level(level)
        for first in range(0, len(together), TOGETHER):
            some = together[first : first + TOGETHER]
            for _ in some:
                self._tick()
            bucket.step(
                len(some), first=some[0], left=self._left - 1, drift=drift, diffusion=diffusion, seed=self._seed,
                purpose=purpose, draw=self._draw, name=self._name,
            )  # fmt: skip
            self._left -= len(some)
            self._keep_pace()
        if together:
            state = _State(bucket.frac, bucket.species)
        for step in steps[len(together) :]:
            vector, logits = self.score(state, level)
            state = self(state, vector, logits, drift=drift, diffusion=diffusion, step=step, purpose=purpose)
        return state

    def _put(self, state: _State) -> None:
        """The state into the places where the bucket's work reads it."""
        bucket = self._bucket
        for own, given in ((bucket.frac, state.frac), (bucket.species, state.species)):
            if own is not given:
                bucket.device.copy(own, given.address)

    def _keep_pace(self) -> None:
        self._marks.append(self._bucket.device.mark())
        if len(self._marks) > _AHEAD:
            self._marks.popleft().wait()


def descend(
    resident: Resident,
    schedule: SamplingSchedule,
    crystals: Crystals,
    latent: Latents,
    sigmas: tuple[float, ...],
    levels: np.ndarray,
    masks: Masks,
    room: Room,
    *,
    seed: int,
    ids: CrystalIds,
    tick: Callable[[], None],
) -> Arrived:
    """Arguments as of `druse._trajectory.walk`.

    Raises:
        OutOfMemoryError: the device has no memory for so many crystals.
    """
    with resident.lock:
        try:
            arrived = _arrive(
                resident, schedule, crystals, latent, sigmas, levels, masks, room, seed=seed, ids=ids, tick=tick
            )
        except MemoryError as error:
            if not resident.recover(error):
                raise OutOfMemoryError(f"{resident.device.name}: {error}") from error
            return descend(
                resident, schedule, crystals, latent, sigmas, levels, masks, room, seed=seed, ids=ids, tick=tick
            )
    if (arrived.met & OUT_OF_MEMORY).any():
        raise OutOfMemoryError("no memory for the candidates of a crystal's graph")
    return arrived


def _arrive(
    resident: Resident,
    schedule: SamplingSchedule,
    crystals: Crystals,
    latent: Latents,
    sigmas: tuple[float, ...],
    levels: np.ndarray,
    masks: Masks,
    room: Room,
    *,
    seed: int,
    ids: CrystalIds,
    tick: Callable[[], None],
) -> Arrived:
    """A function of its own, so that an error's traceback can be rid of the bucket."""
    device = resident.device
    device.enter()
    bucket = resident.bucket(len(crystals), len(crystals.frac), room)
    bucket.fill(crystals, latent, ids)
    if masks.allowed is not None:
        bucket.allow(masks.allowed)
    way = _Way(bucket, schedule, schedule.n_evaluations(len(levels)), seed, masks.unit is None, tick)
    first = _State(bucket.copy(bucket.frac), bucket.copy(bucket.species))
    last = run(schedule, way.score, way, first, sigmas, levels)
    frac, species, logits, met = map(device.download, (last.frac, last.species, bucket.logits, bucket.met))
    n_atoms = len(crystals.frac)
    return Arrived(
        frac[:n_atoms].copy(), species[:n_atoms].copy(), logits[:n_atoms].copy(), met[: len(crystals)].copy()
    )
