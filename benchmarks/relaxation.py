"""Relaxation of many crystals with CHGNet on a few cores: positions and cell, by FIRE, each crystal on its own.

Run ``python benchmarks/relaxation.py`` for times on shaken crystals of MP-20, ``--check`` to compare with ASE. CHGNet
0.3.0 (Deng et al., Nat. Mach. Intell. 5, 1031, 2023) computes in float32; FIRE (Bitzek et al., Phys. Rev. Lett. 97,
170201, 2006) has ASE's parameters and the degrees of freedom of ASE's `FrechetCellFilter`.

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
from typing import Any, NamedTuple

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from druse import Crystals, radius_graph
from druse._processes import Processes
from druse.graphs import COINCIDENT, EMPTY, ISOLATED, STOPPED
from druse.lattice import parameters_from_cells, volumes

Progress = Callable[[int, int], None]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mp20" / "val.csv.gz"
GPA = 160.21766208  # of one eV per cubic Angstrom
STRESS = 0.5  # GPa that no component reaches where a relaxation ends
# Cubic Angstrom and eV, both per atom: what lies outside has exploded. Elements have 5 to 115, and -15 to 0.
VOLUMES, ENERGIES, HEAVIEST = (2.0, 300.0), (-20.0, 100.0), 94
GROUP = 160  # atoms that move together
DT, DT_MAX, MAX_STEP, N_MIN, F_INC, F_DEC, ALPHA, F_ALPHA = 0.1, 1.0, 0.2, 5, 1.1, 0.5, 0.1, 0.99


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


class Gate:
    """A `GatedMLP` of joined rows: its first layers come before rows are gathered, and are summed."""

    def __init__(self, layer: Any) -> None:
        self.branches = []
        for mlp, norm, last in (layer.mlp_core, layer.bn1, functional.silu), (layer.mlp_gate, layer.bn2, torch.sigmoid):
            first, *more = (m for m in mlp.layers if hasattr(m, "weight"))
            blocks = [w.contiguous() for w in first.weight.split(64, dim=1)]
            self.branches.append((blocks, first.bias, more, norm, last))

    def __call__(self, *parts: tuple[Tensor, Tensor | None]) -> Tensor:
        """Of rows and where each is wanted; None: in their order."""
        outputs = []
        for blocks, bias, more, norm, last in self.branches:
            (rows, place), *others = parts
            hidden = functional.linear(rows, blocks[0], bias).index_select(0, place)
            for block, (rows, place) in zip(blocks[1:], others, strict=True):
                term = functional.linear(rows, block)
                hidden += term if place is None else term.index_select(0, place)
            for linear in more:
                hidden = linear(functional.silu(hidden))
            outputs.append(last(norm(hidden)))
        return outputs[0] * outputs[1]


class Network:
    """CHGNet, an atom in a sixth of the time that its own forward and backward take for one crystal.

    Batches, native graphs, one gradient by edge vectors (forces and virial follow), no graph of second derivatives,
    first layers before gathering, angles' layers on short bonds only, denormal numbers as zero.
    """

    def __init__(self) -> None:
        from chgnet.model.model import CHGNet

        torch.set_flush_denormal(True)  # towards the cutoff gradients fade to denormal numbers, ten times as slow
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = model = CHGNet.load(use_device="cpu", verbose=False).eval().requires_grad_(False)
        self.atom_gates = [Gate(layer.twoBody_atom) for layer in model.atom_conv_layers]
        self.bond_gates = [Gate(layer.twoBody_bond) for layer in model.bond_conv_layers]
        self.angle_gates = [Gate(layer.twoBody_bond) for layer in model.angle_layers]
        self.reference = model.composition_model.fc.weight.view(-1)

    def __call__(self, species: Tensor, vectors: Tensor, ends: Tensor, short: Tensor, angles: Tensor) -> Tensor:
        """Energies of atoms in eV, from the vectors (Angstrom) of half edges from source to target.

        ``ends``: targets and sources. ``short``: the half edges within the cutoff of angles. ``angles``: the atom and
        two directed edges to it, as places in ``short`` and, behind, in its mirrors.
        """
        model, encoder = self.model, self.model.bond_basis_expansion
        lengths, target, source = torch.linalg.vector_norm(vectors, dim=1), ends.view(-1), ends.flip(0).view(-1)
        both, basis = torch.arange(len(lengths)).repeat(2), encoder.rbf_expansion_ag(lengths)
        atom, bond = model.atom_embedding(species - 1), model.bond_embedding(basis)
        weight = model.bond_weights_ag(basis).index_select(0, both)
        unit = vectors[short] / lengths[short, None]
        first, second = (torch.cat([unit, -unit]).index_select(0, edge) for edge in angles[1:])
        angle = torch.acos((first * second).sum(1) * (1 - 1e-6))
        angle = model.angle_embedding(model.angle_basis_expansion.fourier_expansion(angle))
        middle, left, right = angles[0], *(angles[1:] % max(len(short), 1))
        near_weight = model.bond_weights_bg(encoder.rbf_expansion_bg(lengths[short]))
        angle_weight = near_weight.index_select(0, left) * near_weight.index_select(0, right)

        def around(gate: Gate) -> Tensor:
            near = bond.index_select(0, short)
            return gate((near, left), (near, right), (angle, None), (atom, middle))

        for k, gate in enumerate(self.atom_gates):
            message = gate((atom, target), (bond, both), (atom, source)) * weight
            total = torch.zeros_like(atom).index_add(0, target, message)
            atom = atom + model.atom_conv_layers[k].mlp_out(total)
            if k < len(self.bond_gates):
                message = around(self.bond_gates[k]) * angle_weight
                total = message.new_zeros(len(short), message.shape[1]).index_add(0, left, message)
                bond = bond.index_add(0, short, model.bond_conv_layers[k].mlp_out(total))
            if k < len(self.bond_gates) - 1:  # nothing reads the last angles
                angle = angle + around(self.angle_gates[k])
        return model.mlp(model.readout_norm(atom)).view(-1) + self.reference[species - 1]


network = functools.cache(Network)  # one for each process


def evaluate(crystals: Crystals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies in eV/atom, forces in eV/Angstrom, stresses ``[crystals, 3, 3]`` in GPa; NaN for what has exploded."""
    n, n_atoms, owner = len(crystals), crystals.n_atoms, np.repeat(np.arange(len(crystals)), crystals.n_atoms)
    good = (volumes(crystals.cells) > VOLUMES[0] * n_atoms) & (volumes(crystals.cells) < VOLUMES[1] * n_atoms)
    good &= np.bincount(owner, (crystals.species < 1) | (crystals.species > HEAVIEST), n) == 0
    if good.all():
        arrays, options = (crystals.frac, crystals.cells, crystals.offsets), {"symmetrise": "union", "n_threads": 1}
        graph = radius_graph(*arrays, cutoff=6.0, max_neighbors=None, incidence=False, **options)
        good = (graph.status & (STOPPED | EMPTY | COINCIDENT | ISOLATED)) == 0
    if not good.all():
        energy, forces, stress = (np.full(shape, np.nan) for shape in (n, (len(owner), 3), (n, 3, 3)))
        if good.any():
            energy[good], forces[good[owner]], stress[good] = evaluate(crystals.take(np.flatnonzero(good)))
        return energy, forces, stress
    ends, short = np.stack([graph.dst, graph.src]).astype(np.int64), np.flatnonzero(graph.distance < 3.0)
    indices = ends, short, _angles(ends[:, short].ravel(), len(owner))
    vectors = torch.from_numpy(graph.unit * graph.distance[:, None]).requires_grad_()
    energies = network()(torch.tensor(crystals.species, dtype=torch.long), vectors, *map(torch.from_numpy, indices))
    slope = torch.autograd.grad(energies.sum(), vectors)[0].numpy().astype(np.float64)
    forces, virial = np.zeros((len(owner), 3)), np.zeros((n, 3, 3))
    np.add.at(forces, graph.src, slope)
    np.subtract.at(forces, graph.dst, slope)
    product = vectors.detach().numpy()[:, :, None] * slope[:, None, :]
    np.add.at(virial, owner[graph.src], (product + product.swapaxes(1, 2)) / 2)
    energy = np.bincount(owner, energies.detach().numpy(), n) / n_atoms
    return energy, forces, virial * (GPA / volumes(crystals.cells))[:, None, None]


def _angles(target: np.ndarray, n_atoms: int) -> np.ndarray:
    """``[3, angles]`` an atom and two different edges to it, in either order."""
    order, degree = np.argsort(target, kind="stable"), np.bincount(target, minlength=n_atoms)
    partners = degree[target[order]] - 1
    left = np.repeat(np.arange(len(order)), partners)
    right = np.arange(len(left)) - np.repeat(np.cumsum(partners) - partners, partners)
    right += np.repeat((np.cumsum(degree) - degree)[target[order]], partners)
    right += right >= left
    return np.stack([target[order[left]], order[left], order[right]])


class Fire:
    """FIRE for many vectors ``[crystals, rows, 3]`` of unit mass; ``since``: steps with a power F v above 0."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        each = (shape[0], 1, 1)
        self.v, self.dt, self.alpha = np.zeros(shape), np.full(each, DT), np.full(each, ALPHA)
        self.since = np.full(each, -1)

    def step(self, chosen: np.ndarray, force: np.ndarray) -> np.ndarray:
        """The next moves of the chosen crystals."""
        norm = functools.partial(np.linalg.norm, axis=(1, 2), keepdims=True)
        v, dt, alpha, since = (values[chosen] for values in (self.v, self.dt, self.alpha, self.since))
        down = np.sum(force * v, axis=(1, 2), keepdims=True) > 0
        longer = down & (since > N_MIN)
        v = np.where(down, (1 - alpha) * v + alpha * force * norm(v) / np.maximum(norm(force), 1e-30), 0.0)
        dt = np.where(longer, np.minimum(dt * F_INC, DT_MAX), np.where(down | (since < 0), dt, dt * F_DEC))
        v += dt * force
        self.v[chosen], self.dt[chosen], self.since[chosen] = v, dt, np.where(down, since + 1, 0)
        self.alpha[chosen] = np.where(longer, alpha * F_ALPHA, np.where(down, alpha, ALPHA))
        return dt * v * np.minimum(1.0, MAX_STEP / np.maximum(norm(dt * v), 1e-30))


def _relax_share(work: tuple[Crystals, int, float]) -> Relaxation:
    """The first unfinished crystals that make up `GROUP` atoms move together.

    ``x`` has a crystal's positions before deformation and, below, U times the number of atoms. With F = exp U its cell
    is ``cell @ F^T``, its positions ``x @ F^T``, and the force on U the adjoint of exp's derivative at U of -V stress
    F^-T, or G: the upper right block of exp [[U^T, G], [0, U^T]].
    """
    before, n_steps, fmax = work
    n, n_atoms, width = len(before), before.n_atoms, before.n_atoms.max()
    x, inside = np.zeros((n, width + 3, 3)), np.arange(width) < n_atoms[:, None]
    x[:, :width][inside] = before.cart
    inverse, fire = np.linalg.pinv(np.nan_to_num(before.cells, posinf=0, neginf=0)), Fire(x.shape)

    def geometry(chosen: np.ndarray) -> tuple[Crystals, np.ndarray, np.ndarray]:
        u = x[chosen, width:] / n_atoms[chosen, None, None]
        f = torch.linalg.matrix_exp(torch.from_numpy(u)).numpy()
        frac, part = (x[chosen, :width] @ inverse[chosen])[inside[chosen]], before.take(chosen)
        return part.replace(frac=frac, cells=part.cells @ f.swapaxes(1, 2)), u, f

    first, energy, n_moves = *np.full((2, n), np.nan), np.zeros(n, int)
    converged, failed, ended = np.zeros((3, n), bool)
    while not ended.all():
        chosen = np.flatnonzero(~ended)
        chosen = chosen[np.cumsum(n_atoms[chosen]) <= max(GROUP, n_atoms[chosen[0]])]
        moved, u, f = geometry(chosen)
        energy[chosen], forces, stress = evaluate(moved)
        first = np.where(n_moves == 0, energy, first)
        force, virial = np.zeros((len(chosen), width + 3, 3)), -stress * (volumes(moved.cells) / GPA)[:, None, None]
        force[:, :width][inside[chosen]] = forces
        excess = np.maximum(np.linalg.norm(force, axis=2).max(1) / fmax, np.abs(stress).max((1, 2)) / STRESS)
        failed[chosen] = ~(np.isfinite(excess) & (energy[chosen] > ENERGIES[0]) & (energy[chosen] < ENERGIES[1]))
        converged[chosen] = ~failed[chosen] & (excess < 1)
        ended[chosen] = (failed | converged | (n_moves == n_steps))[chosen]
        chosen, u, f, force, virial = (values[~ended[chosen]] for values in (chosen, u, f, force, virial))
        block = np.kron(np.eye(2), u.swapaxes(1, 2))
        block[:, :3, 3:] = virial @ np.linalg.inv(f).swapaxes(1, 2)
        force = force @ f
        block = torch.linalg.matrix_exp(torch.from_numpy(block)).numpy()
        force[:, width:] = block[:, :3, 3:] / n_atoms[chosen, None, None]
        x[chosen] += fire.step(chosen, force)
        n_moves[chosen] += 1
    energy[failed], after = np.nan, geometry(np.arange(n))[0]
    frac = np.where(np.repeat(failed, n_atoms)[:, None], before.frac, after.frac)
    after = after.replace(frac=frac, cells=np.where(failed[:, None, None], before.cells, after.cells))
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

    good, result = True, relax(crystals)
    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(network().model, use_device="cpu")
    for b, c in enumerate(crystals):
        atoms = Atoms(c.species, cell=c.cells[0], scaled_positions=c.frac, pbc=True, calculator=calculator)
        theirs = atoms.get_potential_energy() / len(atoms), atoms.get_forces(), atoms.get_stress(voigt=False) * GPA
        errors = [np.abs(x - y).max() for x, y in zip(evaluate(c), theirs, strict=True)]
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
