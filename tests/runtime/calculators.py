"""Calculators of ASE that misbehave with copper and leave other elements alone."""

import collections
import itertools
import os
import time

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from druse import Crystals
from druse._calculators import Evaluation
from druse.io import to_ase


class _Odd(Calculator):
    """EMT where there is no copper."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        emt = EMT()
        emt.calculate(atoms, ["energy", "forces", "stress"], all_changes)
        self.results = {name: np.copy(emt.results[name]) for name in self.implemented_properties}
        if 29 in atoms.numbers:
            self.misbehave(atoms)

    def misbehave(self, atoms):
        raise NotImplementedError


class Sleeps(_Odd):
    def misbehave(self, atoms):
        while True:
            time.sleep(60)


class Spins(_Odd):
    """In native code, where no signal arrives."""

    def misbehave(self, atoms):
        collections.deque(itertools.repeat(0), maxlen=0)


class Raises(_Odd):
    def misbehave(self, atoms):
        raise RuntimeError("copper is too dear\nand so is gold")


class Unknown(_Odd):
    """Forces that are no numbers."""

    def misbehave(self, atoms):
        self.results["forces"][:] = np.nan


class Explodes(_Odd):
    """A pressure that never ends."""

    def misbehave(self, atoms):
        self.results["stress"] = np.array([-1, -1, -1, 0, 0, 0]) * 5.0


class Exits(_Odd):
    def misbehave(self, atoms):
        os._exit(3)


class Stressless(Calculator):
    implemented_properties = ("energy", "forces")


class Slow(EMT):
    """Slow enough for a test to kill it in the middle."""

    def calculate(self, *arguments, **options):
        time.sleep(0.02)
        super().calculate(*arguments, **options)


NUMBER = 5


class Together:
    """A batched potential that asks a calculator of this module, or EMT, for each crystal."""

    def __init__(self, name: str = "") -> None:
        self._calculator = globals()[name] if name else EMT

    def __call__(self, crystals: Crystals) -> Evaluation:
        energy, forces, stress, faults = [], [np.zeros((0, 3))], [], []
        for atoms in to_ase(crystals):
            atoms.calc = self._calculator()
            try:
                energy.append(atoms.get_potential_energy())
                forces.append(atoms.get_forces())
                stress.append(atoms.get_stress(voigt=False))
                faults.append("")
            except NotImplementedError as error:
                energy.append(np.nan)
                forces.append(np.full((len(atoms), 3), np.nan))
                stress.append(np.full((3, 3), np.nan))
                faults.append(str(error))
        return Evaluation(np.array(energy), np.concatenate(forces), np.array(stress), tuple(faults))
