"""Lattices against pymatgen's, and against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pymatgen.core import Lattice
from reference import structures
from reference.structures import Structure

from druse import lattice

CRYSTALS = structures.structures(max_atoms=1)


def parameters(crystal: Structure) -> tuple[np.ndarray, np.ndarray]:
    ours = Lattice(crystal.cell)
    return np.array(ours.abc), np.array(ours.angles)


@given(CRYSTALS)
def test_cells_are_pymatgens(crystal: Structure) -> None:
    lengths, angles = parameters(crystal)
    ours = lattice.cells_from_parameters(lengths[None], angles[None])[0]
    theirs = Lattice.from_parameters(*lengths, *angles).matrix
    # where a cell is nearly flat, its volume is the root of a small difference of cosines
    flatness = np.abs(np.linalg.det(ours)) / lengths.prod()
    assert np.abs(ours - theirs).max() <= 1e-12 * lengths.max() / flatness**2
    assert np.linalg.det(ours) > 0


@given(CRYSTALS)
def test_parameters_are_pymatgens(crystal: Structure) -> None:
    lengths, angles = lattice.parameters_from_cells(crystal.cell[None])
    expected = parameters(crystal)
    np.testing.assert_allclose(lengths[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(angles[0], expected[1], rtol=1e-9)


@given(CRYSTALS)
def test_there_and_back(crystal: Structure) -> None:
    lengths, angles = lattice.parameters_from_cells(crystal.cell[None])
    again = lattice.parameters_from_cells(lattice.cells_from_parameters(lengths, angles))
    np.testing.assert_allclose(again[0], lengths, rtol=1e-10)
    np.testing.assert_allclose(again[1], angles, atol=1e-8)


@given(CRYSTALS)
def test_volumes_and_spacings_are_pymatgens(crystal: Structure) -> None:
    cell, theirs = crystal.cell, Lattice(crystal.cell)
    np.testing.assert_allclose(lattice.volumes(cell[None]), [theirs.volume], rtol=1e-9)
    np.testing.assert_allclose(lattice.volumes(cell[None, [1, 0, 2]]), [theirs.volume], rtol=1e-9)
    spacings = [theirs.d_hkl(hkl) for hkl in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    np.testing.assert_allclose(lattice.plane_spacings(cell[None])[0], spacings, rtol=1e-9)


def test_a_batch_is_its_crystals() -> None:
    cells = np.array([crystal.cell for crystal in structures.random_structures(3, 20)])
    lengths, angles = lattice.parameters_from_cells(cells)
    together = lattice.cells_from_parameters(lengths, angles)
    for b in range(20):
        one = slice(b, b + 1)
        np.testing.assert_array_equal(together[one], lattice.cells_from_parameters(lengths[one], angles[one]))
        np.testing.assert_array_equal(lattice.volumes(cells)[one], lattice.volumes(cells[one]))
        np.testing.assert_array_equal(lattice.plane_spacings(cells)[one], lattice.plane_spacings(cells[one]))


def test_conventions() -> None:
    (cell,) = lattice.cells_from_parameters([[3.0, 4.0, 5.0]], [[80.0, 100.0, 110.0]])
    np.testing.assert_array_equal(cell[2], [0, 0, 5])  # c along z
    assert cell[0, 1] == 0  # a in the x-z plane
    (lengths,), (angles,) = lattice.parameters_from_cells(cell[None])
    np.testing.assert_allclose(lengths, [3, 4, 5])
    np.testing.assert_allclose(angles, [80, 100, 110])


def test_angles_near_0_and_180_keep_their_digits() -> None:
    for angle in (1e-4, 180 - 1e-4):
        cell = np.eye(3)
        cell[1] = [np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0]
        np.testing.assert_allclose(lattice.parameters_from_cells(cell[None])[1][0, 2], angle, atol=1e-11)


def test_flat_and_zero_cells_have_no_height() -> None:
    flat = np.array([np.diag([1.0, 2.0, 0.0]), np.zeros((3, 3))])
    assert lattice.volumes(flat).tolist() == [0, 0]
    spacings = lattice.plane_spacings(flat)
    assert spacings[0, 2] == 0
    assert not np.any(spacings > 0)


# where x - floor(x) rounds to 1 or to -0.0, or has no digits left
EDGES = st.sampled_from([1.0, -1.0, 0.0, -0.0, -1e-17, -1e-300, 1 - 2**-53, 1 + 2**-52, 1e16, -(2**-54)])


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6) | EDGES))
def test_wrapped_coordinates_are_in_the_cell(frac: np.ndarray) -> None:
    before = frac.copy()
    wrapped = lattice.wrap(frac)
    assert np.all((wrapped >= 0) & (wrapped < 1))
    assert not np.any(np.signbit(wrapped))
    moved = frac - wrapped
    assert np.abs(moved - np.round(moved)).max() <= 2e-10
    np.testing.assert_array_equal(frac, before)
    np.testing.assert_array_equal(lattice.wrap(wrapped), wrapped)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(lattice.wrap(np.full((1, 3), value))).any()


def test_no_crystals() -> None:
    assert lattice.cells_from_parameters(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3, 3)
    assert lattice.volumes(np.zeros((0, 3, 3))).shape == (0,)
    assert lattice.wrap(np.zeros((0, 3))).shape == (0, 3)
