"""Strict control: masks, and what cannot be met."""

import math

import numpy as np
import pytest

from druse._trajectory import draw_types, possible_cells
from druse.bravais import constrain
from druse.control import Control
from druse.elements import SYMBOLS, formula_of
from druse.errors import InputError
from druse.lattice import cells_from_parameters
from druse.model import HeadOutputs


def counts_of(control: Control, max_atoms: int = 20) -> list[int]:
    return np.flatnonzero(control.masks(max_atoms, 100).n_atoms).tolist()


def test_nothing_asked_for_forbids_only_no_atoms() -> None:
    masks = Control().masks(20, 100)
    assert not Control()
    assert counts_of(Control()) == list(range(1, 21))
    assert masks.elements.all()
    assert masks.allowed is None
    assert masks.unit is None


@pytest.mark.parametrize(
    ("control", "counts"),
    [
        (Control(formula="LiFePO4"), [7, 14]),
        (Control(formula="LiFePO4", z=2), [14]),
        (Control(formula="Li2O4"), [3, 6, 9, 12, 15, 18]),  # units of LiO2
        (Control(formula="Li2O4", z=1), [6]),  # as it is written
        (Control(formula="Ca(OH)2", n_atoms=(6, 12)), [10]),
        (Control(n_atoms=(4, 6)), [4, 5, 6]),
        (Control(n_atoms=(18, 30)), [18, 19, 20]),
    ],
)
def test_atom_counts(control: Control, counts: list[int]) -> None:
    assert counts_of(control) == counts


def test_elements() -> None:
    masks = Control(elements=("Li", "Fe", "O"), exclude=("Fe",)).masks(20, 100)
    assert [SYMBOLS[k] for k in np.flatnonzero(masks.elements)] == ["Li", "O"]
    assert masks.allowed is not None
    assert masks.allowed.sum() == 2


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (Control(formula="LiFePO4", z=3), "has 21 atoms with z = 3; no whole number of formula units fits"),
        (Control(formula="Xx2"), "no element"),
        (Control(formula="Li0.5O"), "whole numbers of atoms"),
        (Control(formula="Og2"), "Og, which the model does not know"),
        (Control(formula="LiO", exclude=("O",)), "has O, which `elements` or `exclude` forbid"),
        (Control(formula="LiO", n_atoms=(3, 3)), "fits the model's 20 atoms and `n_atoms` 3-3"),
        (Control(z=2), "give `formula` too"),
        (Control(elements=("Q",)), "symbols of elements such as Li, Fe and O, got 'Q'"),
        (Control(elements=("Li",), exclude=("Li",)), "leave no element"),
        (Control(n_atoms=(21, 30)), "at most 20"),
        (Control(n_atoms=(0, 4)), "from 1 up"),
        (Control(n_atoms=(5, 4)), "from 1 up"),
        (Control(crystal_system="round"), "must be one of triclinic"),
    ],
)
def test_what_cannot_be_met_is_told(control: Control, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        control.masks(20, 100)


def test_types_match_the_composition() -> None:
    """Shares that are whole numbers of atoms come exactly; the rest is drawn from what rounding left."""
    logits = np.full(100, -30.0, np.float32)
    logits[[2, 7]] = np.log([0.25, 0.75])  # Li O3
    rng = np.random.default_rng(0)
    masks = Control().masks(20, 100)
    for n in (4, 8, 12):
        assert formula_of(draw_types(logits, masks, rng.random((n, 3)))) == f"Li{n // 4 if n > 4 else ''}O{3 * n // 4}"
    found = [(draw_types(logits, masks, rng.random((5, 3))) == 3).sum() for _ in range(400)]
    # 1.25 and 3.75 round to 1 and 4: the one atom of lithium is never lost, and no other element comes
    assert set(found) == {1}
    found = [(draw_types(logits, masks, rng.random((3, 3))) == 3).sum() for _ in range(4000)]
    # 0.75 and 2.25 round to 1 and 2
    assert set(found) == {1}
    logits[[2, 7]] = np.log([0.4, 0.6])
    logits[8] = np.log(0.4)
    found = [(draw_types(logits, masks, rng.random((1, 3)))[0]) for _ in range(4000)]
    # 0.29, 0.43 and 0.29 of one atom round to nothing, and it is drawn
    share = np.bincount(found, minlength=10)[[3, 8, 9]] / 4000
    assert np.allclose(share, [2 / 7, 3 / 7, 2 / 7], atol=0.03)


def test_types_under_control() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=100).astype(np.float32)
    for _ in range(50):
        types = draw_types(logits, Control(elements=("Li", "O")).masks(20, 100), rng.random((7, 3)))
        assert set(types.tolist()) <= {3, 8}
        types = draw_types(logits, Control(formula="LiFePO4").masks(20, 100), rng.random((14, 3)))
        assert formula_of(types) == "Li2O8P2Fe2"
        assert len(draw_types(logits, Control().masks(20, 100), rng.random((13, 3)))) == 13


def heads_of(lengths: list[list[float]], angles: list[list[float]]) -> HeadOutputs:
    n = len(lengths)
    sizes = np.full(n, 4, np.int32)
    nothing = np.zeros((n, 21), np.float32), np.zeros((n, 100), np.float32)
    shape = np.array(lengths, np.float32), np.array(angles, np.float32)
    return HeadOutputs(nothing[0], sizes, *shape, nothing[1])


def test_cells_that_cannot_be_are_marked_and_the_others_stay() -> None:
    lengths = [[4.0, 5.0, 6.0]] * 9
    lengths[1], lengths[2], lengths[3] = [0.2, 5.0, 6.0], [-4.0, 5.0, 6.0], [4.0, math.nan, 6.0]
    angles = [[80.0, 90.0, 100.0]] * 9
    angles[4], angles[5] = [120.0, 120.0, 121.0], [30.0, 40.0, 90.0]
    angles[6], angles[7] = [math.inf, 90.0, 90.0], [90.0, 90.0, 179.9]
    for system in ("", "cubic"):
        cells, change, status = possible_cells(heads_of(lengths, angles), system)
        assert np.flatnonzero(status == 0).tolist() == [0, 8]
        assert np.isinf(change[1:8]).all()
        assert np.isfinite(cells).all()
        wanted = cells_from_parameters(lengths[:1], angles[:1])
        assert np.allclose(cells[[0, 8]], constrain(wanted, system)[0] if system else wanted)


def test_when_rounding_makes_too_many_each_element_may_be_dropped() -> None:
    logits = np.full(100, -30.0, np.float32)
    logits[[2, 7, 25]] = np.log([0.3, 0.3, 0.4])  # 0.6, 0.6 and 0.8 of two atoms
    rng, masks = np.random.default_rng(0), Control().masks(20, 100)
    found = [frozenset(draw_types(logits, masks, rng.random((2, 3))).tolist()) for _ in range(3000)]
    shares = [sum(z not in kept for kept in found) / 3000 for z in (3, 8, 26)]
    assert np.allclose(shares, 1 / 3, atol=0.04)


def test_a_forbidden_element_of_any_weight_does_no_harm() -> None:
    logits = np.zeros(100, np.float32)
    logits[0] = 2000.0
    masks = Control(elements=("Li", "O")).masks(20, 100)
    types = draw_types(logits, masks, np.random.default_rng(0).random((6, 3)))
    assert set(types.tolist()) == {3, 8}
