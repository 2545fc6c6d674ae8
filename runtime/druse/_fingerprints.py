"""Fingerprints of structures and compositions, by which CDVAE measures coverage."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import warnings
import zipfile
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from druse._dependencies import require
from druse._files import whole_file
from druse._processes import Processes, time_limit
from druse.crystals import Crystals
from druse.errors import DruseError
from druse.validity import TOO_CLOSE, structural_faults

Progress: TypeAlias = Callable[[int, int], None]

_FORMAT = 1  # of the cache
_SECONDS = 60.0  # and one more for each atom: a hundred times what a crystal takes
_BLOCK = 256
KILLED = "the process that worked on it was killed"


class Cutoffs(NamedTuple):
    """How near a crystal must be: distances between fingerprints of structures, and between those of compositions."""

    structure: float
    composition: float


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of a batch of crystals.

    Attributes:
        structure: ``[crystals, 61]``: CrystalNN's order parameters, the mean over sites (Zimmermann and Jain, RSC
            Adv. 10, 6063, 2020). NaN where there is none.
        composition: ``[crystals, 132]``: Magpie's element statistics, standardised as CDVAE does, with the means and
            deviations that it published. NaN where there is none.
        failures: for each crystal why there is none; empty where there is.
    """

    structure: np.ndarray
    composition: np.ndarray
    failures: tuple[str, ...]

    @property
    def good(self) -> np.ndarray:
        """``[crystals]``: which have fingerprints."""
        return np.array([not reason for reason in self.failures], bool)


def as_structure(crystal: Crystals) -> Any:
    """One crystal as a structure of pymatgen."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(crystal.cells[0]), crystal.species.tolist(), crystal.frac)


def fingerprints(
    crystals: Crystals, processes: Processes, *, cache: Path | None = None, progress: Progress | None = None
) -> Fingerprints:
    """Fingerprints of crystals, a fifth of a second each for ten atoms.

    Args:
        crystals: a crystal that a library does not take, or takes too long over, is a failure with a reason.
        processes: that do the work.
        cache: folder to keep the result in, under the hash of the crystals; None keeps nothing.
        progress: called with crystals done and crystals in all.

    Raises:
        MissingDependencyError: matminer is not installed.
    """
    require("matminer", "pymatgen.core", purpose="fingerprints of crystals", extra="evaluate")
    stored = None if cache is None else cache / f"{_hash(crystals)}.npz"
    if stored is not None and (kept := _read_cache(stored, len(crystals))) is not None:
        return kept
    faults = [fault if fault != TOO_CLOSE else "" for fault in structural_faults(crystals)]
    chosen = [b for b, fault in enumerate(faults) if not fault]
    found: dict[int, tuple[np.ndarray, np.ndarray] | str] = {b: fault for b, fault in enumerate(faults) if fault}
    works = ((crystals[b], _SECONDS + float(crystals.n_atoms[b]) if processes.isolated else None) for b in chosen)
    for b, result in zip(chosen, processes.map(_describe, works, killed=lambda _: KILLED), strict=True):
        found[b] = result
        if progress is not None:
            progress(len(found), len(crystals))
    labels, means, deviations = _scaler()
    structure = np.full((len(crystals), len(_featurizers()[0].feature_labels())), np.nan)
    composition = np.full((len(crystals), len(labels)), np.nan)
    failures = [""] * len(crystals)
    for b, result in found.items():
        if isinstance(result, str):
            failures[b] = result
        else:
            structure[b] = result[0]
            # as CDVAE: what Magpie does not know of an element counts as average
            composition[b] = np.nan_to_num((result[1] - means) / deviations, nan=0.0)
    made = Fingerprints(structure, composition, tuple(failures))
    if stored is not None and KILLED not in failures:
        _write_cache(stored, made)
    return made


def covered(a: Fingerprints, b: Fingerprints, cutoffs: Cutoffs) -> np.ndarray:
    """``[crystals of a]``: which have a crystal of ``b`` near in structure, and one, maybe another, in composition."""
    found = np.zeros(len(a.failures), bool)
    others = b.good
    if others.any():
        chosen = np.flatnonzero(a.good)
        found[chosen] = _nearest(a.structure[chosen], b.structure[others]) <= cutoffs.structure
        found[chosen] &= _nearest(a.composition[chosen], b.composition[others]) <= cutoffs.composition
    return found


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    blocks = [cdist(a[k : k + _BLOCK], b).min(axis=1) for k in range(0, len(a), _BLOCK)]
    return np.concatenate([np.zeros(0), *blocks])


@functools.cache
def _featurizers() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from matminer.featurizers.composition.composite import ElementProperty
        from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

        magpie = ElementProperty.from_preset("magpie")
        known = tuple(label.removeprefix("MagpieData ") for label in magpie.feature_labels())
        if known != _scaler()[0]:
            raise DruseError("this release of matminer has other Magpie features than CDVAE; install another matminer")
        return CrystalNNFingerprint.from_preset("ops"), magpie


@functools.cache
def _scaler() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names, means and standard deviations of Magpie's features."""
    text = resources.files("druse").joinpath("data", "composition_scaler.txt").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    numbers = np.array([[float(value) for value in row[1:]] for row in rows])
    return tuple(row[0] for row in rows), numbers[:, 0], numbers[:, 1]


def _describe(work: tuple[Crystals, float | None]) -> tuple[np.ndarray, np.ndarray] | str:
    """Both fingerprints of a crystal, that of its composition as matminer gives it; or why there is none."""
    crystal, seconds = work
    sites, magpie = _featurizers()
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = as_structure(crystal)
            composition = np.array(magpie.featurize(structure.composition), np.float64)
            each = [sites.featurize(structure, site) for site in range(len(structure))]
            mean = np.array(each, np.float64).mean(axis=0)
    except Exception as error:
        text = str(error).strip().splitlines()
        return f"{type(error).__name__}: {text[0] if text else 'no reason given'}"
    return (mean, composition) if np.isfinite(mean).all() else "its fingerprint is not finite"


def _hash(crystals: Crystals) -> str:
    versions = [importlib.metadata.version(name) for name in ("matminer", "pymatgen")]
    digest = hashlib.sha256(repr((_FORMAT, versions, len(crystals))).encode())
    for array in (crystals.offsets, crystals.species, crystals.cells, crystals.frac):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _write_cache(path: Path, made: Fingerprints) -> None:
    arrays = {"structure": made.structure, "composition": made.composition, "failures": np.array(made.failures)}
    with whole_file(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _read_cache(path: Path, n: int) -> Fingerprints | None:
    """What was kept; None where there is nothing, or a disk or a person has broken it."""
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            kept = Fingerprints(file["structure"], file["composition"], tuple(map(str, file["failures"])))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    return kept if len(kept.failures) == len(kept.structure) == len(kept.composition) == n else None
