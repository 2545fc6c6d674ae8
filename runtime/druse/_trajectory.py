"""From the heads to finished crystals: first types, places and cells, and one bin's way down the noise levels."""

import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from druse._arrays import Bool, CrystalIds, Float32, Float64, Latents, Species, Status
from druse._descent import descend
from druse._graph import NON_FINITE, SINGULAR, STOPPED
from druse._resident import Resident
from druse._rooms import OVERFLOW, Room
from druse._score import spec_graph
from druse.bravais import constrain
from druse.control import Control, Masks
from druse.crystals import Crystals
from druse.lattice import cells_from_parameters, plane_spacings
from druse.model import HeadOutputs, Model
from druse.noise import Purpose, gumbel, uniform
from druse.samplers import run
from druse.sampling import LangevinState, langevin_update
from druse.schedules import SamplingSchedule

_log = logging.getLogger(__name__)

_SMALLEST, _LARGEST, _FLATTEST = 1.0, 100.0, 0.1
"""Lengths of a cell, and distances of its planes, in Angstrom, beyond which heads are not believed."""


class Changes(NamedTuple):
    """Where a control made another crystal than there would have been, each ``[crystals]``.

    Attributes:
        n_atoms: the atom count.
        composition: the first types, or those at the end.
        lattice: the metric tensor, by more than 0.1 %.
    """

    n_atoms: Bool[np.ndarray, "crystals"]
    composition: Bool[np.ndarray, "crystals"]
    lattice: Bool[np.ndarray, "crystals"]


class Start(NamedTuple):
    """Crystals before the first step.

    Attributes:
        crystals: of uniform places.
        status: of those that have no possible cell; they get one that stands for it, and are not sampled.
        changes: by the control, so far.
    """

    crystals: Crystals
    status: Status
    changes: Changes


def chosen_counts(logits: np.ndarray, masks: Masks) -> np.ndarray:
    """``[crystals]`` the most likely atom counts of those allowed."""
    return np.where(masks.n_atoms, logits, -np.inf).argmax(axis=1)  # type: ignore[no-any-return]


def heads_of(model: Model, masks: Masks, values: Mapping[str, np.ndarray], z: Latents) -> tuple[Latents, HeadOutputs]:
    """z_con, and atom count, cell and composition; the count is one that the masks allow."""
    z_con = model.condition({spec.name: values[spec.name] for spec in model.manifest.conditions}, z)
    free = model.heads(z_con)
    counts = chosen_counts(free.n_atoms_logits, masks).astype(np.int32)
    return z_con, free if np.array_equal(counts, free.n_atoms) else model.heads(z_con, n_atoms=counts)


def possible_cells(heads: HeadOutputs, system: str) -> tuple[np.ndarray, Float64[np.ndarray, "crystals"], Status]:
    """Cells of the heads, in a crystal system if one is named; how far each was from it; and status words.

    A crystal whose lengths or angles no cell can have gets a cube, infinity and SINGULAR.
    """
    n = len(heads.lengths)
    cells, change = np.tile(np.eye(3) * 10.0, (n, 1, 1)), np.full(n, np.inf)
    status = np.full(n, SINGULAR, np.uint32)
    lengths, angles = heads.lengths.astype(np.float64), heads.angles.astype(np.float64)
    with np.errstate(invalid="ignore"):
        good = np.flatnonzero(
            np.all((lengths >= _SMALLEST) & (lengths <= _LARGEST), axis=1)
            & np.all((angles > 1) & (angles < 179), axis=1)
            & (angles.sum(axis=1) < 359)
            & (2 * angles.max(axis=1) < angles.sum(axis=1) - 1)
        )
    found = cells_from_parameters(lengths[good], angles[good])
    good, found = (array[plane_spacings(found).min(axis=1) > _FLATTEST] for array in (good, found))
    cells[good], change[good] = constrain(found, system) if system else (found, np.zeros(len(good)))
    status[good] = 0
    return cells, change, status


def start(heads: HeadOutputs, masks: Masks, control: Control, *, seed: int, ids: CrystalIds) -> Start:
    """Crystals of the atom count, cell and composition that the heads and the control say, in uniform places."""
    finite = np.isfinite(heads.composition).all(axis=1) & np.isfinite(heads.n_atoms_logits).all(axis=1)
    cells, change, status = possible_cells(heads, control.crystal_system)
    status[~finite] |= NON_FINITE
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(heads.n_atoms, dtype=np.int64)])
    draws = uniform(seed, Purpose.COMPOSITION, 0, ids, width=3, offsets=offsets)
    species = np.ones(offsets[-1], np.int32)
    other = np.zeros(len(ids), bool)
    free = Control().masks(len(masks.n_atoms) - 1, len(masks.elements))
    for b in np.flatnonzero(finite):
        atoms = slice(offsets[b], offsets[b + 1])
        species[atoms] = draw_types(heads.composition[b], masks, draws[atoms])
        if control:
            without = draw_types(heads.composition[b], free, draws[atoms])
            other[b] = not np.array_equal(np.sort(species[atoms]), np.sort(without))
    frac = uniform(seed, Purpose.COORDINATES, 0, ids, width=3, offsets=offsets)
    good = status == 0
    recounted = heads.n_atoms != chosen_counts(heads.n_atoms_logits, free)
    changes = Changes(good & recounted, good & other, good & (change > 1e-3))
    return Start(Crystals(frac, cells, offsets, species), status, changes)


def draw_types(logits: Float32[np.ndarray, "species"], masks: Masks, draws: Float64[np.ndarray, "atoms 3"]) -> Species:
    """Types of one crystal's atoms that match a composition: rounded shares first, the rest drawn from what is left.

    Args:
        logits: ``[species]`` of the composition.
        masks: elements that may occur, and the formula where one is fixed.
        draws: ``[atoms, 3]`` uniform numbers: for the elements of the rest, and two for the order of the atoms.
    """
    n = len(draws)
    if masks.unit is not None:
        types = masks.atoms_of(n)
    else:
        wanted = np.where(masks.elements, logits.astype(np.float64), -np.inf)
        share = np.exp(wanted - wanted.max())
        share /= share.sum()
        counts = np.round(share * n).astype(np.int64)
        types = np.repeat(np.arange(1, len(share) + 1, dtype=np.int32), counts)
        if len(types) < n:
            left = np.maximum(share - counts / n, 0.0)
            edges = np.cumsum(left / left.sum())
            more = np.searchsorted(edges[:-1], draws[: n - len(types), 0], side="right") + 1
            types = np.concatenate([types, more.astype(np.int32)])
    # rounding may make more than n of them, at most twice as many: the order decides who stays
    order = np.argsort(draws[:, 1:].T.reshape(-1)[: len(types)], kind="stable")
    return types[order][:n]


class Finished(NamedTuple):
    """A bin of crystals at the end of its way.

    Attributes:
        state: places, types, and all status bits met.
        forced: ``[crystals]`` whether the last logits alone would have named another type somewhere.
    """

    state: LangevinState
    forced: Bool[np.ndarray, "crystals"]


def bins_of(model: Model, schedule: SamplingSchedule, crystals: Crystals) -> list[tuple[np.ndarray, np.ndarray]]:
    """Crystals, by their indices, that go the same way together, with their levels."""
    spacings = plane_spacings(crystals.cells).max(axis=1, initial=0.0)
    levels = [schedule.levels(model.manifest.sigmas, float(spacing)) for spacing in spacings]
    together: dict[bytes, list[int]] = {}
    for b, mine in enumerate(levels):
        together.setdefault(mine.tobytes(), []).append(b)
    return [
        (np.array(group[piece.start : piece.stop]), levels[group[0]])
        for group in together.values()
        for piece in model.bins(crystals.n_atoms[group])
    ]


def walk(
    model: Model,
    schedule: SamplingSchedule,
    crystals: Crystals,
    latent: Latents,
    levels: np.ndarray,
    masks: Masks,
    *,
    seed: int,
    ids: CrystalIds,
    tick: Callable[[], None],
) -> Finished:
    """One bin of crystals down the noise levels, in the calling thread.

    Args:
        model: of the score network.
        schedule: of the sampler.
        crystals: at the start.
        latent: ``[crystals, atom]`` from `Model.project`.
        levels: that they go through.
        masks: of the control.
        seed: of the run.
        ids: of the crystals in the run.
        tick: called before each evaluation of the score network; what it raises ends the walk.
    """
    devices, sigmas = model.devices, model.manifest.sigmas
    if devices is not None:
        return devices.on_any(
            lambda resident: _descended(
                resident, schedule, crystals, latent, sigmas, levels, masks, Room(), seed=seed, ids=ids, tick=tick
            )
        )
    cells, offsets, spec = crystals.cells, crystals.offsets, model.manifest.graph
    fixed, allowed, still = masks.unit is not None, masks.allowed, np.zeros_like(crystals.frac, np.float32)
    if allowed is not None:
        allowed = np.tile(allowed, (len(crystals), 1))
    bits = np.zeros(len(crystals), np.uint32)
    left = schedule.n_evaluations(len(levels))
    last: list[Any] = [None]

    def score(state: LangevinState, level: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal left
        tick()
        now = Crystals(state.frac, cells, offsets, state.species)
        scaled, logits, status = model.score(now, None, level, latent=latent, graph=spec_graph(now, spec))
        bits[:] |= status & STOPPED
        last[0] = logits
        left -= 1
        if schedule.draw_types and left and not fixed:
            logits = logits + gumbel(seed, Purpose.TYPES, left, ids, width=logits.shape[1], offsets=offsets)
        return scaled, logits

    def update(
        state: LangevinState, vector: Any, logits: Any, *, drift: float, diffusion: float = 0.0, step: int = 0,
        purpose: int = Purpose.LANGEVIN,
    ) -> LangevinState:  # fmt: skip
        named: dict[str, Any] = {"noise": still} if diffusion == 0 else {"seed": seed, "crystal_ids": ids}
        if not fixed:
            named |= {"logits": logits, "allowed": allowed}
        after = langevin_update(
            state.frac, cells, offsets, state.species, vector, drift=drift, diffusion=diffusion, step=step,
            purpose=purpose, **named,
        )  # fmt: skip
        bits[:] |= after.status
        return after

    first = LangevinState(crystals.frac, crystals.species, bits)
    state = run(schedule, score, update, first, sigmas, levels)
    return _finished(state._replace(status=bits), last[0], offsets)


def _finished(state: LangevinState, logits: np.ndarray, offsets: np.ndarray) -> Finished:
    other = logits.argmax(axis=1) + 1 != state.species
    differs = np.array([bool(other[a:b].any()) for a, b in itertools.pairwise(offsets)], bool)
    return Finished(state, differs & (state.status == 0))


def _descended(
    resident: Resident, schedule: SamplingSchedule, crystals: Crystals, latent: Latents, sigmas: tuple[float, ...],
    levels: np.ndarray, masks: Masks, room: Room, *, seed: int, ids: CrystalIds, tick: Callable[[], None],
) -> Finished:  # fmt: skip
    """`walk` on the backend's device; crystals whose graph found no room go again, with more."""
    arrived = descend(
        resident, schedule, crystals, latent, sigmas, levels, masks, room,
        seed=seed, ids=ids, tick=tick,
    )  # fmt: skip
    state = LangevinState(arrived.frac, arrived.species, arrived.met)
    finished = _finished(state, arrived.logits, crystals.offsets)
    again = np.flatnonzero(arrived.met & OVERFLOW)
    if len(again) and not room.is_last:
        more = room.more(arrived.met)
        _log.info("%d of %d crystals had graphs too large for their bucket; again, %s", len(again), len(crystals), more)
        redone = _descended(
            resident, schedule, crystals.take(again), latent[again], sigmas, levels, masks, more, seed=seed,
            ids=ids[again], tick=tick,
        )  # fmt: skip
        atoms = np.concatenate([np.arange(crystals.offsets[b], crystals.offsets[b + 1]) for b in again])
        state.frac[atoms], state.species[atoms] = redone.state.frac, redone.state.species
        state.status[again], finished.forced[again] = redone.state.status, redone.forced
    return finished
