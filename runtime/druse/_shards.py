"""The threads of a run, and its shards: crystals that are finished together, cut into bins that go side by side."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from druse import _trajectory
from druse._graph import NON_FINITE, OUT_OF_MEMORY
from druse._request import Generated, Progress, Ranked, Report, Request
from druse._score import in_parts
from druse.control import Masks
from druse.model import Model
from druse.sampling import LangevinState

_log = logging.getLogger(__name__)


class StoppedError(Exception):
    """Nobody waits for the crystals any more."""


class Work:
    """The threads of a run, and how far they are."""

    def __init__(self, n_threads: int, total: int, report: Report | None) -> None:
        self.pool = ThreadPoolExecutor(n_threads, "druse-sample")
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._done, self._total, self._report = 0.0, total, report

    def tick(self, crystals: float) -> None:
        """So many crystals more are done; raises where the work is no longer wanted."""
        if self._stop.is_set():
            raise StoppedError
        if self._report is not None:
            with self._lock:
                self._done += crystals
                self._report(Progress("crystals", min(self._done, self._total), self._total))

    def close(self) -> None:
        self._stop.set()
        self.pool.shutdown(cancel_futures=True)


def joined(shards: Sequence[range], most: int) -> Iterator[list[range]]:
    """Shards in order, some of them together where they have ``most`` crystals at most."""
    group: list[range] = []
    for shard in shards:
        if group and sum(map(len, group)) + len(shard) > most:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


class Shards:
    """Shards on their way together: their bins are queued when they are made, and waited for by `results`."""

    def __init__(
        self,
        model: Model,
        request: Request,
        ranked: Ranked,
        shards: Sequence[range],
        work: Work,
        *,
        first: int = 0,
    ) -> None:
        """Begins.

        Args:
            model: to generate with.
            request: of the run.
            ranked: of the run, from crystal ``first`` on.
            shards: crystals of the run, by number.
            work: threads.
            first: see ``ranked``.
        """
        masks = request.control.masks(model.manifest.max_atoms, model.manifest.n_species)
        self._shards, rows = shards, np.concatenate([np.arange(shard.start, shard.stop) for shard in shards])
        self._ids, ranked = rows.astype(np.uint64), ranked.take(rows - first)
        self._ranked = ranked
        z_con, heads = _trajectory.heads_of(model, masks, ranked.values, ranked.z)
        self._start = _trajectory.start(heads, masks, request.control, seed=request.seed, ids=self._ids)
        self._start.status[~np.isfinite(ranked.cost) & (self._start.status == 0)] |= NON_FINITE  # its latent failed
        latent, good = model.project(z_con), np.flatnonzero(self._start.status == 0)
        work.tick(float(len(rows) - len(good)))
        self._bins: list[tuple[np.ndarray, Future[list[_trajectory.Finished]]]] = []
        for members, levels in _trajectory.bins_of(model, request.schedule, self._start.crystals.take(good)):
            chosen = good[members]
            walked = functools.partial(self._walked, model, request, masks, latent, chosen, levels, work)
            whole = [range(len(chosen))]
            self._bins.append((chosen, work.pool.submit(_all_parts, whole, walked)))

    def _walked(
        self, model: Model, request: Request, masks: Masks, latent: np.ndarray, chosen: np.ndarray, levels: np.ndarray,
        work: Work, piece: range,
    ) -> _trajectory.Finished:  # fmt: skip
        some = chosen[piece.start : piece.stop]
        share = len(some) / request.schedule.n_evaluations(len(levels))
        crystals = self._start.crystals.take(some)
        try:
            return _trajectory.walk(
                model, request.schedule, crystals, latent[some], levels, masks,
                seed=request.seed, ids=self._ids[some], tick=lambda: work.tick(share),
            )  # fmt: skip
        except MemoryError as error:
            if len(some) > 1:
                raise  # in two halves, it may fit
            _log.warning("crystal %d does not fit in memory, and is left out: %s", self._ids[some[0]], error)
        work.tick(1.0)
        failed = LangevinState(crystals.frac, crystals.species, np.array([OUT_OF_MEMORY], np.uint32))
        return _trajectory.Finished(failed, np.zeros(1, bool))

    def results(self) -> Iterator[Generated]:
        """Each shard's crystals, in order, when all are finished."""
        whole, first = self._whole(), 0
        for shard in self._shards:
            yield whole.take(np.arange(first, first + len(shard)))
            first += len(shard)

    def _whole(self) -> Generated:
        crystals, status, changes = self._start.crystals, self._start.status.copy(), self._start.changes
        frac, species, composition = crystals.frac.copy(), crystals.species.copy(), changes.composition.copy()
        for chosen, future in self._bins:
            parts = future.result()
            atoms = np.concatenate([np.arange(crystals.offsets[b], crystals.offsets[b + 1]) for b in chosen])
            frac[atoms] = np.concatenate([part.state.frac for part in parts])
            species[atoms] = np.concatenate([part.state.species for part in parts])
            status[chosen] |= np.concatenate([part.state.status for part in parts])
            composition[chosen] |= np.concatenate([part.forced for part in parts])
        # atoms of one element stand together, as people and other programs expect
        owner = np.repeat(np.arange(len(crystals)), crystals.n_atoms)
        order = np.lexsort((species, owner))
        columns = {
            "latent": self._ranked.latent_ids,
            "cost": self._ranked.cost,
            **{f"condition_{name}": value for name, value in self._ranked.values.items()},
            **{f"predicted_{name}": value for name, value in self._ranked.predicted.items()},
            "changed_n_atoms": changes.n_atoms,
            "changed_composition": composition,
            "changed_lattice": changes.lattice,
        }
        return Generated(frac[order], crystals.cells, crystals.offsets, species[order], self._ids, status, columns)


def _all_parts(bins: list[range], walked: Callable[[range], _trajectory.Finished]) -> list[_trajectory.Finished]:
    """A bin, or its halves where there is too little memory for it."""
    return list(in_parts(bins, walked, None))
