"""CHGNet for many crystals in a call: energies, forces and stresses on a processor.

CHGNet 0.3.0 (Deng et al., Nat. Mach. Intell. 5, 1031, 2023), which its package carries, computes in float32.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from druse._calculators import Evaluation
from druse._dependencies import require
from druse.crystals import Crystals
from druse.graphs import COINCIDENT, EMPTY, ISOLATED, STOPPED, Graph, radius_graph
from druse.lattice import volumes

__all__ = ["ChgnetPotential"]

HEAVIEST = 94
"""Plutonium."""

VOLUMES, ENERGIES = (2.0, 300.0), (-20.0, 100.0)
"""Cubic Angstrom and eV, both of an atom: what lies outside has exploded. Elements have 5 to 115, and -15 to 0."""

_CUTOFF, _ANGLES_WITHIN = 6.0, 3.0  # Angstrom


class ChgnetPotential:
    """CHGNet as a `druse._calculators.Potential`, on the processor, with torch's threads.

    It gives CHGNet's own energies, up to the rounding of float32, an atom in a sixth of the time that its calculator
    takes for one crystal.
    """

    def __init__(self) -> None:
        self._network = _Network()

    def __call__(self, crystals: Crystals) -> Evaluation:
        """Of each crystal; a fault is what CHGNet knows nothing of: an element, a volume, an atom without a bond."""
        n, n_atoms, owner = len(crystals), crystals.n_atoms, np.repeat(np.arange(len(crystals)), crystals.n_atoms)
        volume, faults = volumes(crystals.cells), [""] * n
        strange = np.bincount(owner, (crystals.species < 1) | (crystals.species > HEAVIEST), n) > 0
        with np.errstate(invalid="ignore"):
            fits = (volume > VOLUMES[0] * n_atoms) & (volume < VOLUMES[1] * n_atoms)
        for b in range(n):
            if strange[b]:
                faults[b] = "CHGNet knows the elements up to plutonium only"
            elif not fits[b]:
                faults[b] = f"its volume is not between {VOLUMES[0]:g} and {VOLUMES[1]:g} Å³ for an atom"
        good = np.flatnonzero([not fault for fault in faults])
        while len(good):
            graph = _graph(crystals.take(good))
            lost = (graph.status & (STOPPED | EMPTY | COINCIDENT | ISOLATED)) != 0
            if not lost.any():
                break
            for b in good[lost]:
                faults[b] = f"an atom of it has no other within {_CUTOFF:g} Å, or one at its own place"
            good = good[~lost]
        energy, forces, stress = np.full(n, np.nan), np.full((len(owner), 3), np.nan), np.full((n, 3, 3), np.nan)
        if len(good):
            energy[good], forces[np.isin(owner, good)], stress[good] = self._evaluate(crystals.take(good), graph)
        for b in good[~((energy[good] > ENERGIES[0] * n_atoms[good]) & (energy[good] < ENERGIES[1] * n_atoms[good]))]:
            faults[b] = f"its energy is not between {ENERGIES[0]:g} and {ENERGIES[1]:g} eV for an atom"
        return Evaluation(energy, forces, stress, tuple(faults))

    def _evaluate(self, crystals: Crystals, graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, owner = len(crystals), np.repeat(np.arange(len(crystals)), crystals.n_atoms)
        ends, short = np.stack([graph.dst, graph.src]).astype(np.int64), np.flatnonzero(graph.distance < _ANGLES_WITHIN)
        indices = ends, short, _angles(ends[:, short].ravel(), len(owner))
        vectors = torch.from_numpy(graph.unit * graph.distance[:, None]).requires_grad_()
        species = torch.tensor(crystals.species, dtype=torch.long)
        with _denormals_as_zero():
            energies = self._network(species, vectors, *map(torch.from_numpy, indices))
            slope = torch.autograd.grad(energies.sum(), vectors)[0].numpy().astype(np.float64)
        forces, virial = np.zeros((len(owner), 3)), np.zeros((n, 3, 3))
        np.add.at(forces, graph.src, slope)
        np.subtract.at(forces, graph.dst, slope)
        product = vectors.detach().numpy()[:, :, None] * slope[:, None, :]
        np.add.at(virial, owner[graph.src], (product + product.swapaxes(1, 2)) / 2)
        energy = np.bincount(owner, energies.detach().numpy(), n)
        return energy, forces, virial / volumes(crystals.cells)[:, None, None]


@contextlib.contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Towards the cutoff gradients fade to denormal numbers, ten times as slow. The switch is the whole thread's."""
    before = float(np.float64(5e-324) * np.float64(1.0)) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class _Gate:
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
            hidden = functional.linear(rows, blocks[0], bias)
            hidden = hidden.clone() if place is None else hidden.index_select(0, place)
            for block, (rows, place) in zip(blocks[1:], others, strict=True):
                term = functional.linear(rows, block)
                hidden += term if place is None else term.index_select(0, place)
            for linear in more:
                hidden = linear(functional.silu(hidden))
            outputs.append(last(norm(hidden)))
        return outputs[0] * outputs[1]


class _Network:
    """CHGNet, an atom in a sixth of the time that its own forward and backward take for one crystal.

    Batches, native graphs, one gradient by edge vectors (forces and virial follow), no graph of second derivatives,
    first layers before gathering, angles' layers on short bonds only, denormal numbers as zero.
    """

    def __init__(self) -> None:
        require("chgnet", purpose="relaxing with CHGNet", extra="relax")
        from chgnet.model.model import CHGNet

        with contextlib.redirect_stdout(io.StringIO()):
            self.model = model = CHGNet.load(use_device="cpu", verbose=False).eval().requires_grad_(False)
        self.atom_gates = [_Gate(layer.twoBody_atom) for layer in model.atom_conv_layers]
        self.bond_gates = [_Gate(layer.twoBody_bond) for layer in model.bond_conv_layers]
        self.angle_gates = [_Gate(layer.twoBody_bond) for layer in model.angle_layers]
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

        def around(gate: _Gate) -> Tensor:
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


def _graph(crystals: Crystals) -> Graph:
    return radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=_CUTOFF, max_neighbors=None, symmetrise="union",
        n_threads=1, incidence=False,
    )  # fmt: skip


def _angles(target: np.ndarray, n_atoms: int) -> np.ndarray:
    """``[3, angles]`` an atom and two different edges to it, in either order."""
    order, degree = np.argsort(target, kind="stable"), np.bincount(target, minlength=n_atoms)
    partners = degree[target[order]] - 1
    left = np.repeat(np.arange(len(order)), partners)
    right = np.arange(len(left)) - np.repeat(np.cumsum(partners) - partners, partners)
    right += np.repeat((np.cumsum(degree) - degree)[target[order]], partners)
    right += right >= left
    return np.stack([target[order[left]], order[left], order[right]])
