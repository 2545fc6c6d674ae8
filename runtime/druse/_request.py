"""What a run is asked for, what it ranks, and what it gives; `druse.generate` is the public face."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from druse._arrays import Bool, CrystalIds, Float32, Float64, Latents, Status, number
from druse._graph import STOPPED
from druse.control import Control
from druse.crystals import Crystals
from druse.errors import InputError
from druse.schedules import SamplingSchedule, sampling_schedule

DEFAULT_SCHEDULE = "predictor-corrector-15"
OVERSAMPLE = 100
"""Latents drawn for each crystal that is kept, as in the paper (20,000 for 200)."""

_EVALUATIONS = 16_384
"""Evaluations in a shard of the default size: about a minute's work of two cores."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        stage: ``latents`` or ``crystals``.
        done: latents, or crystals with fractions for those on their way.
        total: of them.
    """

    stage: str
    done: float
    total: int


Report = Callable[[Progress], None]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to generate; with the bundle it determines every crystal.

    Attributes:
        targets: by property: numbers, class numbers or labels, formulas.
        count: of crystals.
        strategy, independent: see `druse.strategies.conditions_for`.
        control: what every crystal must be.
        schedule: of the sampler.
        oversample: latents drawn for each crystal that is kept.
        seed: of the run.
        batch: crystals in a shard, which are finished and stored together. 0: by the schedule.
    """

    targets: dict[str, float | int | str]
    count: int
    strategy: str = "auto"
    independent: bool = False
    control: Control = Control()
    schedule: SamplingSchedule = sampling_schedule(DEFAULT_SCHEDULE)
    oversample: int = OVERSAMPLE
    seed: int = 0
    batch: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "oversample", "seed", "batch"):  # numbers of NumPy are not for JSON
            msgspec.structs.force_setattr(self, name, _plain(getattr(self, name)))
        number("count", self.count, "a whole number from 1 up", lambda n: 1 <= n <= 2**40, integer=True)
        number("oversample", self.oversample, "a whole number from 1 up", lambda n: 1 <= n <= 2**20, integer=True)
        number("seed", self.seed, "a whole number from 0 to 2^64 - 1", lambda n: 0 <= n < 2**64, integer=True)
        number("batch", self.batch, "a whole number from 0 (by the schedule)", lambda n: 0 <= n <= 2**20, integer=True)
        for field in msgspec.structs.fields(type(self)):  # what a file would not give back, no run may begin with
            try:
                plain = msgspec.convert(msgspec.to_builtins(getattr(self, field.name), enc_hook=_known), field.type)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise InputError(f"`{field.name}` of a request cannot be used: {error}") from error
            msgspec.structs.force_setattr(self, field.name, plain)

    def shards(self, n_levels: int) -> Sequence[range]:
        """The crystals of the run, by number, as they are finished together.

        Args:
            n_levels: of the model.
        """
        size = self.batch or max(8, min(256, _EVALUATIONS // self.schedule.most_evaluations(n_levels)))
        return _Cut(self.count, size)


class _Cut(Sequence[range]):
    """Crystals in pieces of a size, the last perhaps smaller; a run may have more of them than there is memory."""

    def __init__(self, count: int, size: int) -> None:
        self._firsts, self._count = range(0, count, size), count

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[one] for one in range(*k.indices(len(self)))]
        first = self._firsts[k]
        return range(first, min(first + self._firsts.step, self._count))


class Ranked(NamedTuple):
    """The chosen latents of a run, best first; crystal i of the run comes from row i.

    Attributes:
        latent_ids: ``[crystals]`` numbers of the latents among all that were drawn.
        z: ``[crystals, latent]``.
        cost: ``[crystals]`` what they were ranked by; see `Generator.rank`.
        values: by property ``[crystals]``, what they were conditioned on.
        predicted: by property, what the Predictor says of them: scalars ``[crystals]``, classes as probabilities.
    """

    latent_ids: CrystalIds
    z: Latents
    cost: Float64[np.ndarray, "crystals"]
    values: dict[str, np.ndarray]
    predicted: dict[str, Float32[np.ndarray, "crystals ..."]]

    def take(self, rows: Any) -> "Ranked":
        """Some of them."""
        return Ranked(
            self.latent_ids[rows],
            self.z[rows],
            self.cost[rows],
            {name: value[rows] for name, value in self.values.items()},
            {name: value[rows] for name, value in self.predicted.items()},
        )

    @classmethod
    def concatenate(cls, first: "Ranked", second: "Ranked") -> "Ranked":
        """Both, in order."""

        def both(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: np.concatenate([a[name], b[name]]) for name in a}

        return cls(
            np.concatenate([first.latent_ids, second.latent_ids]),
            np.concatenate([first.z, second.z]),
            np.concatenate([first.cost, second.cost]),
            both(first.values, second.values),
            both(first.predicted, second.predicted),
        )


class Ranking(NamedTuple):
    """How far a run has ranked its latents.

    Attributes:
        drawn: latents so far, the first of them.
        best: of these, at most as many as the run has crystals.
    """

    drawn: int
    best: Ranked


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Generated(Crystals):
    """Crystals of a run.

    Attributes:
        ids: ``[crystals]`` their numbers in the run; with the run's seed they name every draw.
        status: ``[crystals]`` see `druse.graphs`; not 0 where a crystal failed, whose places then mean nothing.
        columns: by name, one entry for each crystal: ``latent``, ``cost``, ``condition_X``, ``predicted_X``, and
            ``changed_n_atoms``, ``changed_composition``, ``changed_lattice``: where the control made a difference.
    """

    ids: CrystalIds
    status: Status
    columns: Mapping[str, np.ndarray]

    @property
    def ok(self) -> Bool[np.ndarray, "crystals"]:
        """Which crystals are good."""
        good: Bool[np.ndarray, "crystals"] = (self.status & STOPPED) == 0
        return good

    def __getitem__(self, b: int) -> "Generated":
        """Crystal ``b`` as a batch of one."""
        return self.take([b])

    def take(self, indices: Any) -> "Generated":
        """The crystals of an array of indices, in that order."""
        some, chosen = super().take(indices), np.asarray(indices)
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Generated(
            some.frac, some.cells, some.offsets, some.species, self.ids[chosen], self.status[chosen], columns
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _known(value: Any) -> Any:
    """What msgspec does not know by itself: numbers of NumPy."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    raise TypeError(f"got a {type(value).__name__}")
