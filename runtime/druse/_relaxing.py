"""One crystal, or a few together, relaxed in a process that may be lost."""

import contextlib
import ctypes
import functools
import os
import tempfile
import time
import warnings
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np

from druse._calculators import Calculators, Potentials, first_line, quiet
from druse._fingerprints import as_structure
from druse._fire import EXPLODED, NOT_FINITE, VOLUME_FACTOR, descend
from druse._processes import time_limit
from druse.crystals import Crystals
from druse.errors import DruseError, InputError
from druse.lattice import parameters_from_cells, volumes
from druse.validity import TOO_CLOSE, structural_faults

GPA = 160.21766208
"""Of one eV per cubic Angstrom."""

Optimizer = Literal["FIRE", "BFGS", "LBFGS"]

_FUSED = "its atoms fused: " + TOO_CLOSE
_MATCHER_SECONDS = 60.0
_START_SECONDS = 600.0
_BATCH_SECONDS = 4  # times those of one crystal; a batch that takes longer is done crystal by crystal
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h

_calculators, _potentials = Calculators(), Potentials()


class Relaxing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How crystals are relaxed.

    Attributes:
        calculator: by name; see `druse._calculators.calculator_class`.
        arguments: of the calculator.
        optimizer: of ASE.
        fmax: eV/Angstrom that no force reaches in the end, of atoms or of `FrechetCellFilter` on the cell.
        steps: at most.
        cell: whether cells move too.
        pressure: GPa.
        seconds: for one crystal, by the clock on the wall; a batch that takes four times as long is done
            crystal by crystal.
        batched: whether several crystals share a call of the potential; FIRE only.
    """

    calculator: str
    arguments: dict[str, Any] = {}  # msgspec copies it
    optimizer: Optimizer = "FIRE"
    fmax: float = 0.05
    steps: int = 500
    cell: bool = True
    pressure: float = 0.0
    seconds: float = 300.0
    batched: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(Optimizer):
            raise InputError(f"`optimizer` must be one of {', '.join(get_args(Optimizer))}, got {self.optimizer!r}")
        for name in ("fmax", "seconds"):
            if not (np.isfinite(value := getattr(self, name)) and value > 0):
                raise InputError(f"`{name}` must be above 0, got {value}")
        if self.steps < 0:
            raise InputError(f"`steps` must not be negative, got {self.steps}")
        if not np.isfinite(self.pressure):
            raise InputError(f"`pressure` must be a number of GPa, got {self.pressure}")
        if self.pressure and not self.cell:
            raise InputError("a pressure moves cells; leave out one of `pressure` and `cell=False`")
        if self.batched and self.optimizer != "FIRE":
            raise InputError("crystals in batches are relaxed by FIRE; leave out the optimizer, or say --no-batched")


class Change(NamedTuple):
    """What a relaxation has done to a crystal, in the cells as they are given, as in table 3 of the paper.

    Attributes:
        lengths: ``[3]`` of a, b, c, without sign, Angstrom.
        angles: ``[3]`` of alpha, beta, gamma, without sign, degrees.
        volume: relative, with sign.
        rmsd: StructureMatcher's root mean square distance of atoms, in units of the cube root of the volume of an atom;
            NaN where it finds no match.
        rmsd_angstrom: the same in Angstrom, both cells scaled to the geometric mean of their volumes.
    """

    lengths: np.ndarray
    angles: np.ndarray
    volume: float
    rmsd: float
    rmsd_angstrom: float


class Relaxed(NamedTuple):
    """A crystal that was relaxed, or could not be.

    Attributes:
        crystal: a batch of one, not wrapped. Where there is a failure: the last good geometry, or as it came where a
            clock, a crash or fused atoms ended it.
        energy: eV, of all atoms; this and what follows belong to `crystal`, and are NaN where nobody knows.
        forces: ``[atoms, 3]`` eV/Angstrom.
        stress: ``[3, 3]`` eV/Angstrom^3; NaN where cells do not move.
        steps: moves made.
        converged: whether all forces came below the limit.
        failure: why it was given up; empty where it was not.
        change: from what came to `crystal`.
        seconds: it took; a share of its batch's.
    """

    crystal: Crystals
    energy: float
    forces: np.ndarray
    stress: np.ndarray
    steps: int
    converged: bool
    failure: str
    change: Change
    seconds: float

    @property
    def fmax(self) -> float:
        """Of the strongest force on an atom, eV/Angstrom."""
        return float(np.linalg.norm(self.forces, axis=1).max(initial=0.0)) if len(self.forces) else np.nan


class _State(NamedTuple):
    crystal: Crystals
    energy: float
    forces: np.ndarray
    stress: np.ndarray
    steps: int = 0
    converged: bool = False


def probe(how: Relaxing) -> str:
    """Why crystals cannot be relaxed so; empty where they can."""
    _settle()
    try:
        with time_limit(_START_SECONDS):
            known = getattr(_start(how), "implemented_properties", None)
    except Exception as error:
        return str(error) if isinstance(error, DruseError) else first_line(error)
    if how.cell and known is not None and "stress" not in known:
        return f"the calculator {how.calculator!r} knows no stress, by which cells move; give --no-cell (cell=False)"
    return ""


def _start(how: Relaxing) -> Any:
    """The calculator, and all that has to be imported, which counts for no crystal."""
    import ase.filters
    import ase.optimize  # noqa: F401

    return (_potentials if how.batched else _calculators).get(how.calculator, how.arguments)


def relax_some(work: tuple[Crystals, Relaxing]) -> list[Relaxed] | None:
    """A batch, relaxed; None where it has to be done crystal by crystal, because something ended it early."""
    crystals, how = work
    _settle()
    faults = [fault if fault != TOO_CLOSE else "" for fault in structural_faults(crystals)]
    results = {b: given_up(crystals[b], fault) for b, fault in enumerate(faults) if fault}
    fit = np.array([b for b in range(len(crystals)) if b not in results], np.int64)
    if len(fit):
        clock = time.perf_counter()
        found: list[tuple[_State, str]] | str
        try:
            _start(how)
            with time_limit(how.seconds * min(len(fit), _BATCH_SECONDS)), quiet():
                found = _batch(crystals.take(fit), how) if how.batched else [_alone(crystals[b], how) for b in fit]
        except TimeoutError:
            _calculators.forget()
            found = f"not done after {how.seconds:g} s"
        except Exception as error:
            _calculators.forget()
            found = str(error) if isinstance(error, DruseError) else first_line(error)
        seconds = (time.perf_counter() - clock) / len(fit)
        if isinstance(found, str):
            if len(crystals) > 1:
                return None
            results |= {int(b): given_up(crystals[b], found, seconds) for b in fit}
        else:
            results |= {int(b): _finished(crystals[b], *one, seconds) for b, one in zip(fit, found, strict=True)}
    return [results[b] for b in range(len(crystals))]


def given_up(crystal: Crystals, failure: str, seconds: float = 0.0) -> Relaxed:
    """A crystal as it came, and why."""
    nothing = Change(np.full(3, np.nan), np.full(3, np.nan), np.nan, np.nan, np.nan)
    forces, stress = np.full((len(crystal.species), 3), np.nan), np.full((3, 3), np.nan)
    return Relaxed(crystal, np.nan, forces, stress, 0, False, failure, nothing, seconds)


def killed(work: tuple[Crystals, Relaxing]) -> list[Relaxed] | None:
    """The result of a batch that ended its process."""
    crystals, how = work
    if len(crystals) > 1:
        return None
    return [
        given_up(crystals[0], f"its process ended: a crash, too little memory, or not done after {how.seconds:g} s")
    ]


def change_between(before: Crystals, after: Crystals) -> Change:
    """What lies between two geometries of a crystal."""
    cells = np.concatenate([before.cells, after.cells])
    (lengths, angles), (old, new) = parameters_from_cells(cells), volumes(cells)
    rmsd = np.nan
    with contextlib.suppress(Exception), time_limit(_MATCHER_SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _matcher().get_rms_dist(as_structure(before), as_structure(after))
        rmsd = np.nan if found is None else float(found[0])
    unit = float(np.cbrt(np.sqrt(old * new) / max(len(before.species), 1)))
    return Change(
        np.abs(np.diff(lengths, axis=0)[0]), np.abs(np.diff(angles, axis=0)[0]), new / old - 1, rmsd, rmsd * unit
    )


@functools.cache
def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    # CDVAE's: the paper's mean of 0.307 is above the matcher's own stol of 0.3
    return StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)


def _finished(before: Crystals, state: _State, failure: str, seconds: float) -> Relaxed:
    if not failure and structural_faults(state.crystal)[0] == TOO_CLOSE:
        return given_up(before, _FUSED, seconds)
    if failure and not np.isfinite(state.energy):
        return given_up(before, failure, seconds)
    change = change_between(before, state.crystal)
    return Relaxed(*state, failure, change, seconds)


def _batch(crystals: Crystals, how: Relaxing) -> list[tuple[_State, str]]:
    potential = _potentials.get(how.calculator, how.arguments)
    found = descend(crystals, potential, fmax=how.fmax, steps=how.steps, cell=how.cell, pressure=how.pressure / GPA)
    ends = crystals.offsets
    return [
        (
            _State(
                found.crystals[b], float(found.energy[b]), found.forces[ends[b] : ends[b + 1]], found.stress[b],
                int(found.steps[b]), bool(found.converged[b]),
            ),
            found.failures[b],
        )
        for b in range(len(crystals))
    ]  # fmt: skip


def _alone(crystal: Crystals, how: Relaxing) -> tuple[_State, str]:
    import ase.optimize
    from ase import Atoms
    from ase.filters import FrechetCellFilter

    calculator = _calculators.get(how.calculator, how.arguments)
    atoms = Atoms(
        crystal.species, cell=crystal.cells[0], scaled_positions=crystal.frac, pbc=True, calculator=calculator
    )
    moving = FrechetCellFilter(atoms, scalar_pressure=how.pressure / GPA) if how.cell else atoms
    nothing = given_up(crystal, "")
    good, failure, volume = _State(crystal, np.nan, nothing.forces, nothing.stress), "", atoms.get_volume()
    with tempfile.TemporaryDirectory() as folder:
        if "directory" not in how.arguments:  # programs of their own write files, and not all into one place
            with contextlib.suppress(Exception):
                calculator.directory = folder
        optimizer = getattr(ase.optimize, how.optimizer)(moving, logfile=None)
        try:
            for converged in optimizer.irun(fmax=how.fmax, steps=how.steps):
                energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces(), np.float64)
                stress = np.array(atoms.get_stress(voigt=False), np.float64) if how.cell else nothing.stress
                if not (
                    np.isfinite(energy) and np.isfinite(forces).all() and (np.isfinite(stress).all() or not how.cell)
                ):
                    failure = NOT_FINITE
                elif not 1 / VOLUME_FACTOR < atoms.get_volume() / volume < VOLUME_FACTOR:
                    failure = EXPLODED
                if failure:
                    break
                frac, cells = atoms.get_scaled_positions(wrap=False), np.array(atoms.cell[:], np.float64)[None]
                good = _State(
                    crystal.replace(frac=frac, cells=cells), energy, forces, stress, optimizer.nsteps, bool(converged)
                )
        except TimeoutError:
            raise
        except Exception as error:
            failure = first_line(error)
    return good, failure


@functools.cache
def _settle() -> None:
    """In a process of our own: native code prints nothing to the caller's output, and free memory stays here.

    Without the latter, page faults take half the time of CHGNet.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
