"""FIRE for many crystals at once, positions and cells, each crystal as if it were alone.

FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006) has ASE's parameters, and the degrees of freedom are those of
ASE's `FrechetCellFilter`:

| symbol | variable | meaning |
|---|---|---|
| U | `u` | logarithm of the deformation, times the number of atoms in `x` |
| F | `f` | exp U: the cell is ``cell @ F^T``, positions ``x @ F^T`` |
| W | `virial` | -V (stress + pressure) |
| L(U, G) | upper right block of exp [[U, G], [0, U]] | derivative of exp at U along G |

The force on U is the adjoint of exp's derivative, L(U^T, W F^-T).
"""

import functools
from typing import NamedTuple

import numpy as np

from druse._calculators import Potential
from druse.crystals import Crystals
from druse.lattice import volumes

DT, DT_MAX, MAX_STEP, N_MIN, F_INC, F_DEC, ALPHA, F_ALPHA = 0.1, 1.0, 0.2, 5, 1.1, 0.5, 0.1, 0.99
VOLUME_FACTOR = 5.0
"""A cell that has grown or shrunk by more than this has exploded."""

EXPLODED = f"its volume changed by more than a factor of {VOLUME_FACTOR:g}"
NOT_FINITE = "its energy, forces or stress are not finite"


class Descent(NamedTuple):
    """Crystals at the end of a relaxation.

    Attributes:
        crystals: not wrapped; the last good geometry where there is a failure.
        energy, forces, stress: there; see `druse._calculators.Evaluation`. NaN where no geometry was good.
        first: ``[crystals]`` eV, energies at the start.
        steps: ``[crystals]`` moves made.
        converged: ``[crystals]`` whether all forces came below the limit.
        failures: for each crystal why it was given up; empty where it was not.
    """

    crystals: Crystals
    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    converged: np.ndarray
    failures: tuple[str, ...]


def descend(
    crystals: Crystals,
    potential: Potential,
    *,
    fmax: float,
    steps: int,
    cell: bool = True,
    pressure: float = 0.0,
    stress_max: float | None = None,
    group: int = 160,
) -> Descent:
    """Relax crystals, of which the first unfinished ones that make up ``group`` atoms move together.

    Args:
        crystals: with atoms, in cells with a volume.
        potential: of all of them.
        fmax: eV/Angstrom that no force reaches in the end; the forces on a cell, of `FrechetCellFilter`, count too.
        steps: at most.
        cell: whether cells move.
        pressure: eV/Angstrom^3.
        stress_max: eV/Angstrom^3 that no component of stress reaches in the end, in place of the forces on the cell.
        group: atoms.
    """
    n, n_atoms, width = len(crystals), crystals.n_atoms, int(crystals.n_atoms.max(initial=0))
    inside, owner = np.arange(width) < n_atoms[:, None], np.repeat(np.arange(n), n_atoms)
    x = np.zeros((n, width + 3, 3))
    x[:, :width][inside] = crystals.cart
    inverse, fire, volume = np.linalg.inv(crystals.cells), _Fire(x.shape), volumes(crystals.cells)
    good, failures = x.copy(), [""] * n  # of `good` each crystal's last geometry without a fault
    first, energy, moves = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.int64)
    forces, stress = np.full((len(owner), 3), np.nan), np.full((n, 3, 3), np.nan)
    ended, converged = np.zeros(n, bool), np.zeros(n, bool)
    while not ended.all():
        chosen = np.flatnonzero(~ended)
        chosen = chosen[np.cumsum(n_atoms[chosen]) <= max(group, n_atoms[chosen[0]])]
        moved, u, f = _geometry(crystals, x, inverse, inside, chosen)
        now = potential(moved)
        ratio = volumes(moved.cells) / volume[chosen]
        places = np.flatnonzero(np.isin(owner, chosen))
        for k, b in enumerate(chosen):
            atoms = slice(moved.offsets[k], moved.offsets[k + 1])
            if now.faults[k]:
                failures[b] = now.faults[k]
            elif not all(np.isfinite(values).all() for values in (now.energy[k], now.forces[atoms], now.stress[k])):
                failures[b] = NOT_FINITE
            elif not 1 / VOLUME_FACTOR < ratio[k] < VOLUME_FACTOR:
                failures[b] = EXPLODED
        fine = np.array([not failures[b] for b in chosen], bool)
        better = chosen[fine]
        good[better], energy[better], stress[better] = x[better], now.energy[fine], now.stress[fine]
        kept = np.repeat(fine, n_atoms[chosen])
        forces[places[kept]] = now.forces[kept]
        first[chosen] = np.where(moves[chosen] == 0, now.energy, first[chosen])
        push = np.zeros((len(chosen), width + 3, 3))
        push[:, :width][inside[chosen]] = now.forces
        strongest = np.linalg.norm(push, axis=2).max(1)
        push[:, :width] = push[:, :width] @ f
        if cell:
            load = now.stress + pressure * np.eye(3)
            on_cells = _on_cells(u, f, -load * volumes(moved.cells)[:, None, None])
            push[:, width:] = on_cells / n_atoms[chosen, None, None]
        if stress_max is None:
            excess = np.linalg.norm(push, axis=2).max(1) / fmax
        else:
            excess = np.maximum(strongest / fmax, np.abs(now.stress).max((1, 2)) / stress_max)
        converged[chosen] = fine & (excess < 1)
        ended[chosen] = ~fine | converged[chosen] | (moves[chosen] == steps)
        going = ~ended[chosen]
        x[chosen[going]] += fire.step(chosen[going], push[going])
        moves[chosen[going]] += 1
    after = _geometry(crystals, good, inverse, inside, np.arange(n))[0]
    return Descent(after, energy, forces, stress, first, moves, converged, tuple(failures))


def _geometry(
    crystals: Crystals, x: np.ndarray, inverse: np.ndarray, inside: np.ndarray, chosen: np.ndarray
) -> tuple[Crystals, np.ndarray, np.ndarray]:
    """The chosen crystals where they are, with their U and F."""
    from scipy.linalg import expm

    width = inside.shape[1]
    u = x[chosen, width:] / crystals.n_atoms[chosen, None, None]
    f = expm(u)
    frac, part = (x[chosen, :width] @ inverse[chosen])[inside[chosen]], crystals.take(chosen)
    return part.replace(frac=frac, cells=part.cells @ f.swapaxes(1, 2)), u, f


def _on_cells(u: np.ndarray, f: np.ndarray, virial: np.ndarray) -> np.ndarray:
    """Forces on U ``[crystals, 3, 3]``."""
    from scipy.linalg import expm

    block = np.kron(np.eye(2), u.swapaxes(1, 2))
    block[:, :3, 3:] = np.nan_to_num(virial @ np.linalg.inv(f).swapaxes(1, 2))
    return expm(block)[:, :3, 3:]  # type: ignore[no-any-return]


class _Fire:
    """FIRE for many vectors ``[crystals, rows, 3]`` of unit mass; ``since``: steps with a power F v above 0."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        each = (shape[0], 1, 1)
        self._v, self._dt, self._alpha = np.zeros(shape), np.full(each, DT), np.full(each, ALPHA)
        self._since = np.full(each, -1)

    def step(self, chosen: np.ndarray, force: np.ndarray) -> np.ndarray:
        """The next moves of the chosen crystals."""
        norm = functools.partial(np.linalg.norm, axis=(1, 2), keepdims=True)
        v, dt, alpha, since = (values[chosen] for values in (self._v, self._dt, self._alpha, self._since))
        down = np.sum(force * v, axis=(1, 2), keepdims=True) > 0
        longer = down & (since > N_MIN)
        v = np.where(down, (1 - alpha) * v + alpha * force * norm(v) / np.maximum(norm(force), 1e-30), 0.0)
        dt = np.where(longer, np.minimum(dt * F_INC, DT_MAX), np.where(down | (since < 0), dt, dt * F_DEC))
        v += dt * force
        self._v[chosen], self._dt[chosen], self._since[chosen] = v, dt, np.where(down, since + 1, 0)
        self._alpha[chosen] = np.where(longer, alpha * F_ALPHA, np.where(down, alpha, ALPHA))
        move: np.ndarray = dt * v * np.minimum(1.0, MAX_STEP / np.maximum(norm(dt * v), 1e-30))
        return move
