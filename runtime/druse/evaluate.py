"""How good generated crystals are beside real ones: the metrics of CDVAE (Xie et al., ICLR 2022), and uniqueness.

======================  ================================================================================================
`structural`            no two atoms closer than 0.5 Angstrom: `druse.validity.structural_faults`
`compositional`         charges that balance: `druse.validity.compositional_faults`
`valid`                 both, and a fingerprint where one was looked for
`recall`                reference crystals with a generated one near in structure, and one near in composition
`precision`             generated crystals with a reference one near in structure, and one near in composition
`density`, `elements`   Wasserstein distances between valid generated crystals and the reference
`unique`                different crystals: `druse.duplicates.duplicates`
======================  ================================================================================================

A crystal that a library fails on is counted against the generator, with the reason. CDVAE takes distances of densities
from 1,000 valid crystals at random, and needs that many; here all the valid ones count, however few.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._arrays import Float64
from druse._dependencies import require
from druse._fingerprints import Cutoffs, covered, fingerprints
from druse._processes import Processes
from druse.crystals import Crystals
from druse.duplicates import duplicates
from druse.errors import InputError
from druse.lattice import volumes
from druse.tables import Rejected
from druse.validity import compositional_faults, structural_faults

__all__ = ["CUTOFFS", "Cutoffs", "Evaluation", "Invalid", "Share", "densities", "evaluate"]

CUTOFFS = {"mp20": Cutoffs(0.4, 10.0), "perov5": Cutoffs(0.2, 4.0), "carbon24": Cutoffs(0.2, 4.0)}
"""CDVAE's, by its data sets."""

_AMU_PER_A3 = 1.66053906660  # g/cm³ (CODATA 2018)


@dataclasses.dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """From 0 to 1; NaN of none."""
        return self.count / self.total if self.total else math.nan

    def interval(self) -> tuple[float, float]:
        """Of 95 % confidence, if the total is a sample drawn at random (Wilson, J. Am. Stat. Assoc. 22, 209, 1927)."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959963984540054, self.total, self.value
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        width = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(middle - width, 0.0), min(middle + width, 1.0)


class Invalid(NamedTuple):
    """A crystal that is not valid: its place in the batch (after its end: those that could not be read), and why."""

    crystal: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        n_crystals: generated, with those that could not be read.
        n_reference: crystals of the reference.
        structural, compositional, valid: shares of the generated crystals.
        recall: share of the reference. It grows with the number of generated crystals.
        precision: share of the generated crystals whose fingerprints were looked for.
        density: Wasserstein distance in g/cm³; NaN if no crystal is valid.
        elements: Wasserstein distance of the numbers of different elements; NaN if no crystal is valid.
        unique: different crystals, of all generated; None if not asked for. It falls as their number grows, so it has
            no interval.
        cutoffs: of coverage.
        invalid: in order.
    """

    n_crystals: int
    n_reference: int
    structural: Share
    compositional: Share
    valid: Share
    recall: Share
    precision: Share
    density: float
    elements: float
    unique: Share | None
    cutoffs: Cutoffs
    invalid: tuple[Invalid, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """How many crystals are invalid for what reason, the most frequent first."""
        return dict(collections.Counter(one.reason for one in self.invalid).most_common())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: shares with their intervals, None for NaN."""
        found: dict[str, Any] = {"n_crystals": self.n_crystals, "n_reference": self.n_reference}
        for name in ("structural", "compositional", "valid", "recall", "precision"):
            share: Share = getattr(self, name)
            low, high = share.interval()
            value = share.value if share.total else None
            found[name] = {"share": value, "low": low, "high": high, **dataclasses.asdict(share)}
        for name in ("density", "elements"):
            distance = getattr(self, name)
            found[name] = None if math.isnan(distance) else distance
        unique = self.unique
        found["unique"] = None if unique is None else {"share": unique.value, **dataclasses.asdict(unique)}
        return {
            **found,
            "cutoffs": self.cutoffs._asdict(),
            "reasons": self.reasons,
            "invalid": [one._asdict() for one in self.invalid],
        }


def evaluate(
    crystals: Crystals,
    reference: Crystals,
    *,
    rejected: Sequence[Rejected] = (),
    cutoffs: Cutoffs = CUTOFFS["mp20"],
    n_coverage: int | None = None,
    unique: bool = True,
    n_jobs: int = 0,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Metrics of generated crystals against real ones. Minutes a core for a thousand crystals, most of it fingerprints.

    Args:
        crystals: generated.
        reference: real ones that the generator was not trained on.
        rejected: others that were generated and are no crystals, such as rows that could not be read: invalid, not
            covered, not unique.
        cutoffs: of coverage; see `CUTOFFS`.
        n_coverage: at most so many generated crystals are looked at for coverage, evenly spread over the batch; None
            for all. Recall depends on it: CDVAE took 10,000.
        unique: whether to look for duplicates.
        n_jobs: processes; 0 for every core. 1 works in the caller's own, where a crystal that crashes or holds a
            library does so to the caller.
        cache: folder to keep fingerprints of the reference in, under the hash of its crystals; None keeps nothing.
        progress: called with the part (``reference``, ``fingerprints``, ``duplicates``), things done and things in all.

    Raises:
        InputError: no crystals, or an empty reference.
        MissingDependencyError: a package of the extra ``evaluate`` is not installed.
    """
    if not len(reference):
        raise InputError("the reference holds no crystals; give a file of real ones, such as a test set")
    n = len(crystals) + len(rejected)
    if not n:
        raise InputError("there are no crystals to evaluate")
    if n_coverage is not None and n_coverage < 1:
        raise InputError(f"`n_coverage` must be 1 or more, or None for all, got {n_coverage}")
    require("smact", "matminer", "pymatgen.core", "scipy", "loky", purpose="evaluating crystals", extra="evaluate")

    def part(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else functools.partial(progress, name)

    structural, compositional = structural_faults(crystals), compositional_faults(crystals)
    chosen = np.arange(n) if n_coverage is None or n_coverage >= n else np.linspace(0, n - 1, n_coverage).astype(int)
    looked_at = chosen[chosen < len(crystals)]
    with Processes(n_jobs, purpose="evaluating crystals") as processes:
        real = fingerprints(reference, processes, cache=cache, progress=part("reference"))
        made = fingerprints(crystals.take(looked_at), processes, progress=part("fingerprints"))
        first = duplicates(crystals, processes=processes, progress=part("duplicates")) if unique else None
    failures = {int(b): f"fingerprint: {why}" for b, why in zip(looked_at, made.failures, strict=True) if why}
    reasons = [structural[b] or compositional[b] or failures.get(b, "") for b in range(len(crystals))] + [
        row.reason for row in rejected
    ]
    valid = np.flatnonzero([not reason for reason in reasons[: len(crystals)]])
    return Evaluation(
        n_crystals=n,
        n_reference=len(reference),
        structural=Share(structural.count(""), n),
        compositional=Share(compositional.count(""), n),
        valid=Share(len(valid), n),
        recall=Share(int(covered(real, made, cutoffs).sum()), len(reference)),
        precision=Share(int(covered(made, real, cutoffs).sum()), len(chosen)),
        density=_distance(densities(crystals.take(valid)), densities(reference)),
        elements=_distance(_n_elements(crystals.take(valid)), _n_elements(reference)),
        unique=None if first is None else Share(int(np.sum(first == np.arange(len(crystals)))), n),
        cutoffs=cutoffs,
        invalid=tuple(Invalid(b, reason) for b, reason in enumerate(reasons) if reason),
    )


def densities(crystals: Crystals) -> Float64[np.ndarray, "crystals"]:
    """Mass densities in g/cm³.

    Raises:
        MissingDependencyError: pymatgen is not installed.
    """
    require("pymatgen.core", purpose="masses of atoms", extra="evaluate")
    atoms = np.array([_mass(z) for z in crystals.species.tolist()], np.float64)
    owner = np.repeat(np.arange(len(crystals)), crystals.n_atoms)
    masses = np.bincount(owner, atoms, minlength=len(crystals))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Float64[np.ndarray, "crystals"] = masses / volumes(crystals.cells) * _AMU_PER_A3
    return found


@functools.cache
def _mass(number: int) -> float:
    from pymatgen.core import Element

    return float(Element.from_Z(number).atomic_mass) if number else 0.0


def _n_elements(crystals: Crystals) -> np.ndarray:
    bounds = zip(crystals.offsets[:-1], crystals.offsets[1:], strict=True)
    return np.array([len(np.unique(crystals.species[a:b])) for a, b in bounds], np.float64)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import wasserstein_distance

    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    return float(wasserstein_distance(a, b)) if len(a) and len(b) else math.nan
