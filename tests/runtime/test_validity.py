"""Validity in CDVAE's sense: by hand, by pymatgen's distances, and by SMACT itself."""

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import BRASS, COPPER, NACL, batch, crystal

from druse import Crystals
from druse.elements import SYMBOLS, parse_formula
from druse.validity import TOO_CLOSE, compositional_faults, structural_faults

CUBE = 5.0 * np.eye(3)


@pytest.mark.parametrize(
    ("one", "fault"),
    [
        (NACL, ""),
        (crystal(CUBE, [11, 17], [[0, 0, 0], [0.3 / 5, 0, 0]]), TOO_CLOSE),
        (crystal(CUBE, [11, 17], [[0.02, 0.5, 0.5], [0.98, 0.5, 0.5]]), TOO_CLOSE),  # 0.2 Å, through a face
        (crystal(CUBE, [11, 17], [[3.01, 0.01, 0.01], [0.99, 0.99, -4.01]]), TOO_CLOSE),  # a corner, not wrapped
        (crystal(CUBE, [11, 17], [[0, 0, 0], [0.51 / 5, 0, 0]]), ""),
        (crystal(CUBE, [11, 17], [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]), TOO_CLOSE),
        (crystal(np.diag([0.45, 9, 9]), [11], [[0, 0, 0]]), TOO_CLOSE),  # from its own image
        (crystal([[3, 0, 0], [2.9, 0.3, 0], [0, 0, 3]], [11], [[0, 0, 0]]), TOO_CLOSE),  # likewise, b - a
        (crystal(np.diag([0.4, 0.4, 0.4]), [11], [[0, 0, 0]]), "a cell below 0.1 Å³"),
        (crystal(CUBE, [0], [[0, 0, 0]]), "an atom is of no element"),
        (crystal(CUBE, [], []), "it has no atoms"),
        (crystal(np.diag([5, 5, np.nan]), [11], [[0, 0, 0]]), "coordinates or cell are not finite"),
        (crystal(CUBE, [11], [[np.inf, 0, 0]]), "coordinates or cell are not finite"),
        (crystal([[5, 0, 0], [5, 0, 0], [0, 0, 5]], [11], [[0, 0, 0]]), "a cell below 0.1 Å³"),
    ],
)
def test_structures_by_hand(one: Crystals, fault: str) -> None:
    for place, found in enumerate((structural_faults(one), structural_faults(batch(NACL, one, NACL)))):
        assert found[place].startswith(fault) if fault else not found[place]
    assert structural_faults(batch(NACL, one, NACL))[::2] == ("", "")


def test_structures_as_pymatgen_measures_them() -> None:
    core = pytest.importorskip("pymatgen.core", reason="the oracle")
    rng = np.random.default_rng(0)
    cells = 2.5 * np.eye(3) + rng.normal(scale=1.2, size=(150, 3, 3))
    crystals = batch(*(crystal(cell, [8] * 4, rng.random((4, 3))) for cell in cells))
    found = structural_faults(crystals)
    decided = 0
    for one, fault in zip(crystals, found, strict=True):
        structure = core.Structure(core.Lattice(one.cells[0]), ["O"] * 4, one.frac)
        if min(structure.lattice.get_lll_reduced_lattice().abc) > 0.6:  # CDVAE knows nothing of an atom's own images
            closest = (structure.distance_matrix + 10 * np.eye(4)).min()
            assert (fault == "") == (closest >= 0.5 and structure.volume >= 0.1)
            decided += fault != ""
    assert 20 < decided < 130


def compositions(*formulas: str) -> Crystals:
    """Crystals of which nothing but the composition matters."""
    amounts = [{z: int(n) for z, n in parse_formula(formula).items()} for formula in formulas]
    species = [np.repeat(list(parts), list(parts.values())) for parts in amounts]
    return batch(*(crystal(CUBE, z, np.zeros((len(z), 3))) for z in species))


@pytest.mark.parametrize(
    ("formula", "fault"),
    [
        ("NaCl", ""),
        ("Na4Cl4", ""),
        ("BaTiO3", ""),
        ("Cu", ""),  # elements are valid
        ("He", ""),
        ("CuZn", ""),  # so are alloys
        ("Fe3Al2Pm", "SMACT knows no electronegativity of Pm"),  # of which SMACT does not count promethium
        ("NaClO7", ""),
        ("MgCl3", "no oxidation states make it neutral"),
        ("Na2Cl", "neutral only with cations that are not less electronegative than anions"),
        ("HeO", "SMACT knows no oxidation states of He"),
        ("RfO2", "SMACT knows no oxidation states of Rf"),
    ],
)
def test_compositions_by_hand(formula: str, fault: str) -> None:
    pytest.importorskip("smact", reason="knows the oxidation states")
    assert compositional_faults(compositions(formula)) == (fault,)


def test_compositions_of_nothing() -> None:
    pytest.importorskip("smact", reason="knows the oxidation states")
    nothing = batch(crystal(CUBE, [], []), crystal(CUBE, [0, 8], np.zeros((2, 3))), BRASS, COPPER)
    assert compositional_faults(nothing) == ("it has no atoms", "an atom is of no element", "", "")


def test_compositions_as_smact_judges_them() -> None:
    """SMACT's own function, which tries all states, with the oxidation states that it had when CDVAE used it."""
    screening = pytest.importorskip("smact.screening", reason="the oracle")
    from pymatgen.core import Composition

    rng = np.random.default_rng(1)
    formulas = []
    for _ in range(400):
        n = rng.integers(2, 5)
        chosen = rng.choice(np.arange(1, 104), n, replace=False)
        formulas.append("".join(f"{SYMBOLS[z - 1]}{rng.integers(1, 7)}" for z in chosen))
    found = [not fault for fault in compositional_faults(compositions(*formulas))]
    expected = [screening.smact_validity(Composition(f), oxidation_states_set="smact14") for f in formulas]
    assert found == expected
    assert 100 < sum(found) < 350


def test_many_elements_take_no_time() -> None:
    """Where trying all states would take 10 to the 8th attempts; every sum is odd."""
    pytest.importorskip("smact", reason="knows the oxidation states")
    assert compositional_faults(compositions("NaF", "K2Mn2Cr2Fe2C2N2S2P2V2Si2F"))[1] != ""


def test_of_real_crystals_ninety_percent_are_valid(shared: Path) -> None:
    """The share of MP-20 by which all generators are measured: about 91 % in the test set of CDVAE."""
    pytest.importorskip("smact", reason="knows the oxidation states")
    with gzip.open(shared / "data" / "mp20" / "val.csv.gz", "rt", newline="") as file:
        formulas = [row["pretty_formula"] for row in csv.DictReader(file)]
    faults = compositional_faults(compositions(*formulas))
    assert math.isclose(faults.count("") / len(faults), 0.911, abs_tol=0.001)
