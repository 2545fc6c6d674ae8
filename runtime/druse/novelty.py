"""Which crystals are known: the same as one of a reference, by pymatgen's StructureMatcher."""

import collections
import dataclasses
import hashlib
import importlib.metadata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from druse._arrays import Int64
from druse._dependencies import require
from druse._files import whole_file
from druse._mappings import may_lie
from druse._matching import Counted, Formula, Primitives, first_fits, formulas, primitives_of
from druse._processes import Processes
from druse.candidates import Entries, read_entries
from druse.crystals import Crystals
from druse.errors import InputError

__all__ = ["Known", "Reference", "known"]

_FORMAT = 1  # of the cache
_ARRAYS = ("frac", "cells", "offsets", "species")


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """What a reference knows of a batch of crystals.

    Attributes:
        match: ``[crystals]`` place of the first crystal of the reference that is the same; -1 for a new one, -2 for one
            that cannot be compared, being none or too much for the matcher.
        names: of the reference's crystals, in order.
        pairs: how many were left: ``all``, of one ``formula``, with as many ``atoms`` in a primitive cell, not refused
            by successive ``minima``; and, up to the first match, by ``mappings`` of lattices, and by ``partners`` of
            atoms.
    """

    match: Int64[np.ndarray, "crystals"]
    names: tuple[str, ...]
    pairs: Mapping[str, int]

    @property
    def calls(self) -> int:
        """Pairs of which StructureMatcher was asked."""
        return self.pairs["partners"]


class Reference:
    """Known crystals. Their primitive cells are computed when crystals of their formulas come, and kept.

    Args:
        crystals: any batch; what is no crystal is never matched.
        names: of each; empty gives none.
        cache: file to keep primitive cells in; None keeps them in memory only.

    Attributes:
        crystals: as given.
        names: as given.
    """

    def __init__(self, crystals: Crystals, names: Sequence[str] = (), *, cache: Path | None = None) -> None:
        if names and len(names) != len(crystals):
            raise InputError(f"`names` must have one for each crystal, got {len(names)} for {len(crystals)} crystals")
        self.crystals = crystals
        self.names = tuple(names) or ("",) * len(crystals)
        self._cache = cache
        self._rows = np.full(len(crystals), -1, np.int64)  # of each crystal in `_primitives`; -1: not yet there
        self._primitives = Primitives(Crystals.concatenate([]), np.zeros((0, 3)))
        by_formula: dict[Formula, list[int]] = collections.defaultdict(list)
        for place, formula in enumerate(formulas(crystals)):
            by_formula[formula].append(place)
        by_formula.pop((), None)
        self._places = {formula: np.array(places, np.int64) for formula, places in by_formula.items()}

    def __len__(self) -> int:
        return len(self.crystals)

    @classmethod
    def open(
        cls,
        source: Any,
        *,
        cache: Path | None = None,
        n_jobs: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> "Reference":
        """Known crystals from anywhere.

        Args:
            source: crystals, or a file or folder that `druse.candidates` reads.
            cache: folder to keep in what a file held and the primitive cells, under the hash of the file, or of the
                crystals; None keeps nothing.
            n_jobs: processes that read; 0 for every core.
            progress: called with entries read.

        Raises:
            InputError: see `druse.candidates.pieces`.
        """
        names: tuple[str, ...] = ()
        digest = None
        if isinstance(source, Crystals):
            crystals = source
        else:
            path = Path(source)
            digest = _digest_of(path) if cache is not None and path.is_file() else None
            if digest is not None and cache is not None and (kept := cls._kept(cache / f"{digest}.npz")) is not None:
                return kept
            entries = Entries.concatenate(read_entries([path], n_jobs=n_jobs, progress=progress))
            crystals, names = entries.crystals, entries.ids
        if cache is None:
            return cls(crystals, names)
        stored = cache / f"{digest or _digest_of(crystals)}.npz"
        made = cls(crystals, names, cache=stored)
        if (kept := cls._kept(stored)) is not None and len(kept) == len(made):
            made._rows, made._primitives = kept._rows, kept._primitives
        return made

    def places(self, formula: Formula) -> Int64[np.ndarray, "places"]:
        """Of the crystals of a reduced formula, as `druse._matching.formulas` gives it."""
        return self._places.get(formula, np.zeros(0, np.int64))

    def primitives(
        self, places: Int64[np.ndarray, "places"], processes: Processes, counted: Counted = lambda _: None
    ) -> tuple[Primitives, Int64[np.ndarray, "crystals"]]:
        """Crystals in primitive cells, of which those that are not there yet are computed.

        Args:
            places: those that must be there.
            processes: that do the work.
            counted: called with 1 for each that is computed.

        Returns:
            Some, and for each crystal of the reference which of them it is; -1 where it is not there.
        """
        missing = self.missing(places)
        if len(missing):
            made = primitives_of(self.crystals.take(missing), processes, counted)
            self._rows[missing] = len(self._primitives.crystals) + np.arange(len(missing))
            self._primitives = Primitives.concatenate([self._primitives, made])
            if self._cache is not None:
                self._keep(self._cache)
        return self._primitives, self._rows

    def missing(self, places: Int64[np.ndarray, "places"]) -> Int64[np.ndarray, "missing"]:
        """Those of some places whose primitive cells are still to be computed."""
        return np.unique(places[self._rows[places] < 0])

    def _keep(self, path: Path) -> None:
        here = np.flatnonzero(self._rows >= 0)
        # one that failed may have had bad luck only: it is tried again
        here = here[self._primitives.crystals.n_atoms[self._rows[here]] > 0]
        cells = self._primitives.crystals.take(self._rows[here])
        arrays = {f"given_{name}": getattr(self.crystals, name) for name in _ARRAYS}
        arrays |= {f"primitive_{name}": getattr(cells, name) for name in _ARRAYS}
        arrays |= {
            "names": np.array(self.names, str),
            "places": here,
            "minima": self._primitives.minima[self._rows[here]],
        }
        with whole_file(path, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def _kept(cls, path: Path) -> "Reference | None":
        """What `_keep` wrote; None where there is nothing, or a disk or a person has broken it."""
        try:
            with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
                given, cells = (
                    Crystals(**{name: file[f"{kind}_{name}"] for name in _ARRAYS}) for kind in ("given", "primitive")
                )
                made = cls(given, tuple(map(str, file["names"])), cache=path)
                made._rows[file["places"]] = np.arange(len(file["places"]))
                made._primitives = Primitives(cells, file["minima"].reshape(len(file["places"]), 3))
        except (OSError, EOFError, KeyError, ValueError, IndexError, InputError, zipfile.BadZipFile, zlib.error):
            return None
        return made if len(cells) == len(made._primitives.minima) else None


def known(
    crystals: Crystals,
    reference: Reference,
    *,
    processes: Processes | None = None,
    n_jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Known:
    """Which crystals a reference knows: each is compared with those of its reduced formula, never known with known.

    The same are crystals that StructureMatcher (ltol 0.2, stol 0.3, angle_tol 5; Ong et al., Comput. Mater. Sci. 68,
    314, 2013) fits to one another, ``fit(known, crystal)``: volume does not count, nor does the cell. The answer is
    that of asking it of every pair, for what is not asked of it is refused by it, provably (``docs/novelty.md``); it
    depends on a crystal and the reference alone.

    Args:
        crystals: any batch.
        reference: known crystals.
        processes: that do the work; None starts ``n_jobs``, 0 for every core. In one's own process, with 1, nothing
            ends a crystal that the matcher takes too long over.
        n_jobs: see `processes`.
        progress: called with steps done and steps in all: a primitive cell each, a crystal each.

    Raises:
        MissingDependencyError: pymatgen is not installed.
    """
    require("pymatgen.core", purpose="comparing with known crystals", extra="screen")
    if processes is None:
        with Processes(n_jobs, purpose="comparing with known crystals") as own:
            return known(crystals, reference, processes=own, progress=progress)
    match = np.full(len(crystals), -1, np.int64)
    of_crystal = formulas(crystals)
    match[[b for b, formula in enumerate(of_crystal) if not formula]] = -2
    chosen = [b for b, formula in enumerate(of_crystal) if len(reference.places(formula))]
    touched = [reference.places(formula) for formula in {of_crystal[b]: None for b in chosen}]
    places = np.concatenate([np.zeros(0, np.int64), *touched])
    done, total = 0, len(crystals) + len(chosen) + len(reference.missing(places))

    def count(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    count(len(crystals) - len(chosen))
    olds, row_of = reference.primitives(places, processes, count)
    news = primitives_of(crystals.take(np.array(chosen, np.int64)), processes, count)
    pairs = dict.fromkeys(("all", "formula", "atoms", "minima", "mappings", "partners"), 0)
    pairs["all"] = len(crystals) * len(reference)
    n_atoms = olds.crystals.n_atoms
    left = len(chosen)

    def compared() -> Iterator[tuple[tuple[int, np.ndarray], Crystals, Crystals]]:
        for k, b in enumerate(chosen):
            near = reference.places(of_crystal[b])
            pairs["formula"] += len(near)
            if not news.crystals.n_atoms[k]:
                match[b] = -2
                continue
            near = near[n_atoms[row_of[near]] == news.crystals.n_atoms[k]]
            pairs["atoms"] += len(near)
            near = near[may_lie(olds.minima[row_of[near]], news.edges[k])]
            pairs["minima"] += len(near)
            if len(near):
                yield (b, near), news.crystals[k], olds.crystals.take(row_of[near])

    for (b, near), found in first_fits(compared(), processes):
        match[b] = near[found.place] if found.place >= 0 else found.place
        pairs["mappings"] += found.lying
        pairs["partners"] += found.calls
        left -= 1
        count(1)
    count(left)
    return Known(match, reference.names, pairs)


def _digest_of(source: Crystals | Path) -> str:
    """Of all that primitive cells depend on."""
    versions = [importlib.metadata.version(name) for name in ("druse", "pymatgen")]
    if isinstance(source, Path):
        digest = hashlib.sha256(repr((_FORMAT, versions, source.name)).encode())
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        digest = hashlib.sha256(repr((_FORMAT, versions, len(source))).encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(source, name)).tobytes())
    return digest.hexdigest()[:32]
