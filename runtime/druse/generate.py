"""Crystals to property targets: latents drawn and ranked, then sampled, in one call.

```python
from druse import Generator

for crystals in Generator().generate({"formation_energy_per_atom": -2.0}, count=32, seed=7):
    crystals.frac, crystals.cells, crystals.species, crystals.ids, crystals.columns
```
"""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from druse import _trajectory
from druse._request import DEFAULT_SCHEDULE, OVERSAMPLE, Generated, Progress, Ranked, Ranking, Report, Request
from druse._shards import Shards, Work, joined
from druse.backends import Backend
from druse.bundle import Bundle
from druse.conditions import ClassProperty, ScalarProperty
from druse.control import Control, Masks
from druse.model import Model
from druse.noise import Purpose, normal
from druse.schedules import SamplingSchedule, sampling_schedule
from druse.strategies import Conditions, conditions_for

__all__ = [
    "DEFAULT_SCHEDULE",
    "OVERSAMPLE",
    "Generated",
    "Generator",
    "Progress",
    "Ranked",
    "Ranking",
    "Report",
    "Request",
]

_BLOCK = 4096
"""Latents drawn at once."""


class Generator:
    """A bundle that is ready to generate. Threads may share it."""

    def __init__(
        self,
        bundle: Any = None,
        *,
        backend: str | Backend = "auto",
        precision: str = "auto",
        n_threads: int = 0,
        devices: Sequence[str] = (),
    ) -> None:
        """Open a bundle.

        Args:
            bundle: an opened one, or the path of a folder or ``.zip``; None: the one that comes with Druse.
            backend: see `druse.model.Model.open`.
            precision: see there.
            n_threads: see there.
            devices: see there; the crystals are the same on any number of equal ones.

        Raises:
            InputError, DeviceError, MissingDependencyError: see there.
        """
        chosen = Bundle.embedded() if bundle is None else bundle
        self.model = Model.open(chosen, backend=backend, precision=precision, n_threads=n_threads, devices=devices)
        self.bundle = self.model.bundle

    def generate(
        self,
        targets: Mapping[str, float | int | str] | None = None,
        *,
        count: int,
        strategy: str = "auto",
        independent: bool = False,
        control: Control | None = None,
        schedule: str | SamplingSchedule = DEFAULT_SCHEDULE,
        oversample: int = OVERSAMPLE,
        seed: int = 0,
        batch: int = 0,
        progress: Report | None = None,
    ) -> Iterator[Generated]:
        """Crystals, in batches as they are finished, best-ranked latent first. Nothing is written.

        Args:
            targets: see `Request`, as all that is not said here.
            count: how many.
            strategy: ``auto``, ``default``, ``full`` or ``less``.
            independent: see `Request`.
            control: what every crystal must be.
            schedule: a name of `druse.schedules.SCHEDULES`, or one of your own.
            oversample: latents drawn for each crystal.
            seed: the same seed gives the same crystals.
            batch: crystals that come at once; 0: by the schedule.
            progress: told how far the run is, from any thread, one call at a time.

        Raises:
            InputError: a target, a control or a number cannot be met; before anything is computed.

        Warns:
            druse.strategies.RangeWarning: a target lies outside what the model was trained for.
        """
        request = Request(
            targets=dict(targets or {}), count=count, strategy=strategy, independent=independent,
            control=control or Control(), schedule=sampling_schedule(schedule), oversample=oversample, seed=seed,
            batch=batch,
        )  # fmt: skip
        conditions = self.check(request)

        def crystals() -> Iterator[Generated]:
            ranked = self.rank(request, conditions, progress=progress)
            yield from self.sample(request, ranked, progress=progress)

        return crystals()

    def check(self, request: Request) -> Conditions:
        """What the run is conditioned on, or why it cannot be met.

        Raises:
            InputError: see `generate`.
        """
        self._masks(request)
        return conditions_for(
            self.bundle, request.targets, strategy=request.strategy, control=request.control,
            independent=request.independent,
        )  # fmt: skip

    def rank(self, request: Request, conditions: Conditions, *, progress: Report | None = None) -> Ranked:
        """Draw latents from the prior and keep the best; see `ranking`."""
        *_, whole = self.ranking(request, conditions, progress=progress)
        return whole.best

    def ranking(
        self,
        request: Request,
        conditions: Conditions,
        *,
        after: Ranking | None = None,
        progress: Report | None = None,
    ) -> Iterator[Ranking]:
        """Draw latents from the prior and keep the best, a block at a time; the last is that of all latents.

        The cost of a latent, as in Con-CDVAE: over the given properties that the Predictor knows, |predicted - given|
        in units of the property's range, and 1 - probability of a given class. A control adds, each from 0 to 1, the
        probability of the atom counts that it forbids, the share of the elements that it forbids (or half the summed
        difference from its composition), and the relative change of the lattice's metric tensor. A latent whose
        lattice cannot be comes last. Of equals the first drawn counts. A property that the Predictor does not know
        conditions the latents but does not rank them.

        Args:
            request: of the run.
            conditions: `check`'s answer.
            after: an earlier one of the same request, to go on from.
            progress: told how many latents are drawn.
        """
        total, best = request.count * request.oversample, after.best if after is not None else None
        begin = after.drawn if after is not None else 0
        masks = self._masks(request)
        prior_specs = [spec.name for spec in self.model.manifest.priors[conditions.prior].conditions]
        if progress is not None and begin:
            progress(Progress("latents", begin, total))
        for first in range(begin, total, _BLOCK):
            ids = np.arange(first, min(first + _BLOCK, total), dtype=np.uint64)
            values = conditions.values(request.seed, ids)
            terms = self.model.prior_terms({k: values[k] for k in prior_specs}, len(ids), prior=conditions.prior)
            noise = normal(request.seed, Purpose.LATENT_START, 0, ids, width=self.model.manifest.latent)
            z, status = self.model.denoise(noise, terms, seed=request.seed, crystal_ids=ids, prior=conditions.prior)
            predicted = self.model.predict(z) if self.model.manifest.predictor is not None else {}
            cost = self._distance(conditions.given, predicted, len(ids)) + self._effort(request, masks, values, z)
            cost[(status != 0) | ~np.isfinite(cost)] = math.inf
            block = Ranked(ids, z, cost, values, predicted)
            best = block if best is None else Ranked.concatenate(best, block)
            best = best.take(np.lexsort((best.latent_ids, best.cost))[: request.count])
            drawn = int(ids[-1]) + 1
            if progress is not None:
                progress(Progress("latents", drawn, total))
            yield Ranking(drawn, best)

    def sample(
        self,
        request: Request,
        ranked: Ranked,
        *,
        shards: Sequence[range] | None = None,
        first: int = 0,
        progress: Report | None = None,
    ) -> Iterator[Generated]:
        """Crystals of ranked latents, shard by shard, in order.

        Args:
            request: of the run.
            ranked: `rank`'s answer, or what was stored of it.
            shards: those that are wanted, of `Request.shards`; None: all.
            first: number of the crystal that comes from the first row of ``ranked``.
            progress: told how far the wanted shards are.

        Raises:
            DeviceError: the last of the backend's devices has failed.
        """
        wanted = request.shards(len(self.model.manifest.sigmas)) if shards is None else shards
        work = Work(self.model.walkers, sum(map(len, wanted)), progress)
        self.model.ready()  # before threads want it at the same time
        try:
            waiting: collections.deque[Shards] = collections.deque()
            for shards in joined(wanted, self.model.together(request.schedule)):
                waiting.append(Shards(self.model, request, ranked, shards, work, first=first))
                if len(waiting) > self.model.ahead:
                    yield from waiting.popleft().results()
            while waiting:
                yield from waiting.popleft().results()
        finally:
            work.close()

    def _masks(self, request: Request) -> Masks:
        return request.control.masks(self.model.manifest.max_atoms, self.model.manifest.n_species)

    def _distance(self, given: Mapping[str, Any], predicted: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        cost = np.zeros(n)
        for spec in self.model.manifest.predicted:
            if spec.name not in given or spec.name not in predicted:
                continue
            if isinstance(spec, ScalarProperty):
                distance = np.abs(predicted[spec.name].astype(np.float64) - given[spec.name])
                cost += distance / (spec.maximum - spec.minimum)
            elif isinstance(spec, ClassProperty):
                cost += 1 - predicted[spec.name][:, given[spec.name]].astype(np.float64)
        return cost

    def _effort(self, request: Request, masks: Masks, values: Mapping[str, Any], z: np.ndarray) -> np.ndarray:
        _, heads = _trajectory.heads_of(self.model, masks, values, z)
        _, change, status = _trajectory.possible_cells(heads, request.control.crystal_system)
        cost = np.where(status == 0, change, math.inf)
        if request.control:
            counts, shares = _softmax(heads.n_atoms_logits), _softmax(heads.composition)
            if request.control.n_atoms or masks.unit is not None:
                cost += 1 - counts[:, masks.n_atoms].sum(axis=1)
            if masks.unit is not None:
                cost += 0.5 * np.abs(shares - masks.unit / masks.unit.sum()).sum(axis=1)
            else:
                cost += 1 - shares[:, masks.elements].sum(axis=1)
        return cost


def _softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
