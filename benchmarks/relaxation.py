"""Relaxation of many crystals with CHGNet on a few cores: positions and cell, by FIRE, each crystal on its own.

Run ``python benchmarks/relaxation.py`` for times on shaken crystals of MP-20, ``--check`` to compare with ASE. It is
the library's batched relaxation (`druse._fire`, `druse_export.chgnet`) with a limit of stress of its own.

64 crystals (611 atoms, evaluated 27 times on average) take 20 s of one core: 8 CHGNet forward, 7 backward, 3 the
matcher of pymatgen, 1 graphs, FIRE and the rest; and each process takes some seconds to start.
"""

import argparse
import contextlib
import functools
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import torch

from druse import Crystals
from druse._fire import descend
from druse._processes import Processes
from druse._relaxing import GPA
from druse.lattice import parameters_from_cells, volumes
from druse.validity import TOO_CLOSE, structural_faults
from druse_export.chgnet import ChgnetPotential

Progress = Callable[[int, int], None]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mp20" / "val.csv.gz"
STRESS = 0.5  # GPa that no component reaches where a relaxation ends
GROUP = 160  # atoms that move together


class Relaxation(NamedTuple):
    """Crystals before and after, all arrays ``[crystals]``. What failed has NaN, and its crystal is as it came."""

    crystals: Crystals  # relaxed, not wrapped
    energy_before: np.ndarray  # eV/atom, also of what failed later
    energy: np.ndarray  # eV/atom
    n_steps: np.ndarray  # moves made
    converged: np.ndarray  # forces and stress were below their limits
    failed: np.ndarray  # isolated or coincident atoms, NaN, a flat cell, elements beyond Pu; or it exploded
    rmsd: np.ndarray  # Angstrom, pymatgen's matcher, which scales both cells to their mean volume; NaN without a match
    displacement: np.ndarray  # Angstrom, unmatched: rms of fractional displacements less their mean, in the mean cell
    length_change: np.ndarray  # [crystals, 3] Angstrom
    angle_change: np.ndarray  # [crystals, 3] degrees


potential = functools.cache(ChgnetPotential)  # one for each process


def _relax_share(work: tuple[Crystals, int, float]) -> Relaxation:
    before, n_steps, fmax = work
    n, fit = len(before), np.flatnonzero([fault in ("", TOO_CLOSE) for fault in structural_faults(before)])
    found = descend(
        before.take(fit), potential(), fmax=fmax, steps=n_steps, stress_max=STRESS / GPA, group=GROUP
    )  # fmt: skip
    failed, converged, n_moves = np.ones(n, bool), np.zeros(n, bool), np.zeros(n, int)
    first, energy = np.full((2, n), np.nan)
    failed[fit], converged[fit], n_moves[fit] = [bool(text) for text in found.failures], found.converged, found.steps
    first[fit], energy[fit] = found.first / before.n_atoms[fit], found.energy / before.n_atoms[fit]
    energy[failed] = np.nan
    places = {b: k for k, b in enumerate(fit.tolist())}
    after = Crystals.concatenate(before[b] if failed[b] else found.crystals[places[b]] for b in range(n))
    change = np.array([_change(before[b], after[b]) if not failed[b] else np.full(8, np.nan) for b in range(n)])
    changes = change[:, 0], change[:, 1], change[:, 2:5], change[:, 5:]
    return Relaxation(after, first, energy, n_moves, converged, failed, *changes)


def _change(old: Crystals, new: Crystals) -> np.ndarray:
    """The last four fields of a `Relaxation` in a row, of one crystal."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    structures, rmsd = (Structure(c.cells[0], c.species, c.frac) for c in (old, new)), np.nan
    with contextlib.suppress(ValueError):  # a cell that pymatgen cannot reduce
        rmsd = (StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist(*structures) or [np.nan])[0]
    cells, shift = np.concatenate([old.cells, new.cells]), new.frac - old.frac
    rmsd *= np.cbrt(np.sqrt(volumes(cells).prod()) / len(shift))  # the matcher's unit of length
    displacement = np.linalg.norm((shift - shift.mean(axis=0)) @ cells.mean(axis=0)) / np.sqrt(len(shift))
    return np.concatenate([[rmsd, displacement], *np.diff(parameters_from_cells(cells), axis=1)[:, 0]])


def relax(
    crystals: Crystals, *, n_steps: int = 150, fmax: float = 0.1, progress: Progress | None = None, n_processes: int = 2
) -> Relaxation:
    """Relax positions and cells until forces are below ``fmax`` (eV/Angstrom) and stresses below `STRESS`.

    Each takes ``n_steps`` at most. ``progress`` is called with crystals done and crystals in all. Processes have one
    thread each, which is faster than one with two; where there is one, work and threads are the caller's. Without the
    allocator of `begin_anew` all takes twice as long.
    """
    order = np.argsort(-crystals.n_atoms, kind="stable")  # what may take longest first
    ends = np.cumsum(crystals.n_atoms[order])
    share = (ends - 1) // np.clip(ends[-1] / (4 * n_processes), GROUP, 5 * GROUP)
    shares = np.split(order, np.flatnonzero(np.diff(share)) + 1)
    done: list[Relaxation] = []
    with Processes(n_processes, purpose="relaxing crystals") as processes:
        for part in processes.map(_relax_share, ((crystals.take(s), n_steps, fmax) for s in shares)):
            done.append(part)
            if progress is not None:
                progress(sum(len(d.energy) for d in done), len(crystals))
    (parts, *arrays), back = zip(*done, strict=True), np.argsort(order)
    return Relaxation(Crystals.concatenate(parts).take(back), *(np.concatenate(a)[back] for a in arrays))


def shaken(data: Path, n: int, max_atoms: int = 20, noise: float = 0.1) -> Crystals:
    """Crystals from all over MP-20, every coordinate moved by Gaussian noise (Angstrom)."""
    from druse.tables import load_table

    crystals, rng = load_table(data, n_jobs=1).crystals, np.random.default_rng(0)
    crystals = crystals.take(rng.permutation(np.flatnonzero(crystals.n_atoms <= max_atoms))[:n])
    cart = crystals.cart + rng.normal(0.0, noise, crystals.cart.shape)
    inverse = np.repeat(np.linalg.inv(crystals.cells), crystals.n_atoms, axis=0)
    return crystals.replace(frac=np.einsum("ni,nij->nj", cart, inverse))


def check(crystals: Crystals) -> bool:
    """Whether energies, forces and stresses are CHGNet's own, and relaxations end where ASE's do."""
    from ase import Atoms
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE
    from chgnet.model.dynamics import CHGNetCalculator

    good, result, mine = True, relax(crystals), potential()
    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(use_device="cpu")
    for b, c in enumerate(crystals):
        atoms = Atoms(c.species, cell=c.cells[0], scaled_positions=c.frac, pbc=True, calculator=calculator)
        ours, n = mine(c), len(atoms)
        pairs = [(ours.energy / n, atoms.get_potential_energy() / n), (ours.forces, atoms.get_forces())]
        pairs.append((ours.stress * GPA, atoms.get_stress(voigt=False) * GPA))
        errors = [np.abs(x - y).max() for x, y in pairs]
        fire = FIRE(FrechetCellFilter(atoms), logfile=None)
        for _ in fire.irun(fmax=0.0, steps=150):
            strongest = np.linalg.norm(atoms.get_forces(), axis=1).max()
            if strongest < 0.1 and np.abs(atoms.get_stress()).max() * GPA < STRESS:
                break
        end, ase = result.energy[b], atoms.get_potential_energy() / len(atoms)
        good &= bool(np.all(np.less([*errors, abs(end - ase)], (2e-5, 1e-3, 1e-2, 5e-3))))
        print("{:>12}: {:.0e} eV/atom, {:.0e} eV/Å, {:.0e} GPa off;".format(str(atoms.symbols), *errors), end=" ")
        print(f"relaxed to {end:.4f} eV/atom in {result.n_steps[b]} steps, by ASE to {ase:.4f} in {fire.nsteps}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare 6 crystals with ASE; ends with 1 if they differ")
    parser.add_argument("--n", type=int, default=64, help="crystals")
    parser.add_argument("--data", type=Path, default=DATA, help="MP-20 as csv.gz")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="chgnet|pymatgen|ase")
    torch.set_num_threads(1)
    if options.check:
        raise SystemExit(not check(shaken(options.data, 6, max_atoms=6)))
    crystals, begun = shaken(options.data, options.n), time.perf_counter()
    result = relax(crystals)
    seconds, work = time.perf_counter() - begun, np.sum((result.n_steps + 1) * crystals.n_atoms)
    print(f"{len(crystals)} crystals, {len(crystals.frac)} atoms, {work} evaluations of an atom: {seconds:.0f} s")
    medians = map(np.nanmedian, (result.n_steps, result.rmsd, result.displacement))
    print(f"{result.converged.mean():.0%} converged, {result.failed.mean():.0%} failed; medians:", end=" ")
    print("{:.0f} steps, rmsd {:.3f} Å, displacement {:.3f} Å".format(*medians))


if __name__ == "__main__":
    import relaxation  # what a process is to find must not belong to __main__

    relaxation.main()
