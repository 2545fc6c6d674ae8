"""Batched potentials beside the calculators whose energies they give: CHGNet, and a model of TorchSim."""

import contextlib
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from ase.calculators.lj import LennardJones
from crystal_examples import CSCL, FCC, MGO, NACL, ZINC_BLENDE, batch, crystal, supercell

from druse import Crystals
from druse.io import to_ase
from druse.relax import relax

ARGON = {"sigma": 3.4, "epsilon": 0.0104}


def shaken(crystals: Crystals, noise: float) -> Crystals:
    rng = np.random.default_rng(3)
    return crystals.replace(
        frac=crystals.frac + rng.normal(0, noise, crystals.frac.shape),
        cells=crystals.cells @ (np.eye(3) + rng.normal(0, noise, (len(crystals), 3, 3))),
    )


@pytest.fixture(scope="module")
def chgnet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("chgnet.model", reason="the model that is compared; pip install 'druse[relax]'")


@pytest.mark.usefixtures("chgnet")
def test_chgnet_together_is_chgnet() -> None:
    from druse_export.chgnet import ChgnetPotential

    crystals = shaken(batch(NACL, MGO, CSCL, supercell(NACL), ZINC_BLENDE, supercell(supercell(MGO))), 0.02)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from chgnet.model.dynamics import CHGNetCalculator

        potential, calculator = ChgnetPotential(), CHGNetCalculator(use_device="cpu")
        found = potential(crystals)
        assert not any(found.faults)
        for b, atoms in enumerate(to_ase(crystals)):
            atoms.calc = calculator
            assert found.energy[b] == pytest.approx(atoms.get_potential_energy(), abs=2e-5 * len(atoms))
            forces = found.forces[crystals.offsets[b] : crystals.offsets[b + 1]]
            np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-4)
            np.testing.assert_allclose(found.stress[b], atoms.get_stress(voigt=False), atol=2e-5)
        alone = [potential(one) for one in crystals]
    np.testing.assert_allclose(found.energy, [one.energy[0] for one in alone], atol=1e-4)


@pytest.mark.usefixtures("chgnet")
def test_arithmetic_is_as_before() -> None:
    """CHGNet takes denormal numbers as zero, a switch of the whole thread that stays on with whoever forgets it."""
    from druse_export.chgnet import ChgnetPotential

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ChgnetPotential()(batch(NACL, MGO))
    assert np.float64(5e-324) * np.float64(1.0) > 0
    assert np.float32(1e-45) * np.float32(1.0) > 0


@pytest.mark.usefixtures("chgnet")
def test_what_chgnet_does_not_know() -> None:
    from druse_export.chgnet import ChgnetPotential

    heavy = crystal(5 * FCC, [98], [[0, 0, 0]])
    lonely = crystal(6.5 * np.eye(3), [2], [[0, 0, 0]])
    vast = crystal(20 * np.eye(3), [11, 17], [[0, 0, 0], [0.1, 0, 0]])
    crystals = batch(heavy, NACL, lonely, vast)
    found = ChgnetPotential()(crystals)
    assert found.faults[0] == "CHGNet knows the elements up to plutonium only"
    assert found.faults[1] == ""
    assert found.faults[2] == "an atom of it has no other within 6 Å, or one at its own place"
    assert found.faults[3] == "its volume is not between 2 and 300 Å³ for an atom"
    assert np.isfinite(found.energy).tolist() == [False, True, False, False]
    assert np.isfinite(found.forces).all(axis=1).tolist() == [False, True, True, False, False, False]


@pytest.mark.usefixtures("chgnet")
def test_batches_end_where_chgnet_does_alone() -> None:
    crystals = shaken(batch(NACL, CSCL, supercell(NACL)), 0.02)
    together = list(relax(crystals, "chgnet", n_jobs=1, fmax=0.02))
    alone = list(relax(crystals, "chgnet", n_jobs=1, fmax=0.02, batched=False))
    for one, other in zip(together, alone, strict=True):
        assert (one.failure, other.failure) == ("", "")
        assert one.converged
        assert other.converged
        n = len(one.crystal.species)
        assert one.energy / n == pytest.approx(other.energy / n, abs=1e-3)
        np.testing.assert_allclose(one.change.lengths, other.change.lengths, atol=0.02)


def test_a_model_of_torchsim() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch_sim", reason="the models that are asked; pip install 'druse[torchsim]'")
    cubic = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    crystals = batch(
        crystal(5.0 * np.diag([1.03, 1, 0.98]), [18] * 4, cubic),
        crystal(3.6 * np.diag([1.05, 1, 1.1]), [18, 18], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    )
    name = "torchsim:torch_sim.models.lennard_jones:LennardJonesModel"
    found = list(relax(crystals, name, n_jobs=1, fmax=1e-3, arguments={**ARGON, "cutoff": 8.0}))
    for one in found:
        assert (one.failure, one.converged) == ("", True)
        (atoms,) = to_ase([one.crystal])
        atoms.calc = LennardJones(**ARGON, rc=8.0)
        np.testing.assert_allclose(atoms.get_forces(), one.forces, atol=1e-8)
        # TorchSim 0.3 has twice the stress, and other energies in skew cells; where there is none, both agree
        np.testing.assert_allclose(atoms.get_stress(), 0.0, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchsim:nonsense", "a model of TorchSim is torchsim:module:Class"),
        ("torchsim:a:b", "there is no model 'a:b'"),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch_sim", reason="the models that are asked; pip install 'druse[torchsim]'")
    with pytest.raises(ValueError, match=message):
        list(relax(NACL, name, n_jobs=1))
