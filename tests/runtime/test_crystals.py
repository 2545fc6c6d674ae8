"""`Crystals`, the value that everything passes around."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Structure as PymatgenStructure
from reference import structures

from druse import Crystals, InputError, radius_graph


def batch(seed: int, count: int) -> Crystals:
    frac, cells, offsets = structures.batch([*structures.random_structures(seed, count), *structures.REAL])
    return Crystals(frac, cells, offsets, np.random.default_rng(seed).integers(1, 119, len(frac)).astype(np.int32))


def assert_same(first: Crystals, second: Crystals) -> None:
    for field in dataclasses.fields(Crystals):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), strict=True)


def test_cartesian_coordinates_are_pymatgens() -> None:
    for crystal in batch(1, 5):
        theirs = PymatgenStructure(crystal.cells[0], crystal.species.tolist(), crystal.frac)
        np.testing.assert_allclose(crystal.cart, theirs.cart_coords, atol=1e-12)


@given(st.integers(0, 100), st.integers(0, 6))
def test_taken_apart_and_put_together(seed: int, count: int) -> None:
    whole = batch(seed, count)
    assert len(whole) == count + len(structures.REAL)
    assert_same(Crystals.concatenate(whole), whole)
    assert_same(Crystals.concatenate([whole]), whole)
    assert_same(Crystals.concatenate([whole[b] for b in range(len(whole))]), whole)
    np.testing.assert_array_equal(np.concatenate([crystal.cart for crystal in whole]), whole.cart)
    assert [int(crystal.n_atoms[0]) for crystal in whole] == whole.n_atoms.tolist()


def test_indices_count_from_either_end() -> None:
    whole = batch(2, 3)
    assert_same(whole[-1], whole[len(whole) - 1])
    assert_same(whole[-len(whole)], whole[0])
    for b in (len(whole), -len(whole) - 1):
        with pytest.raises(IndexError, match=f"crystal {b} of a batch of {len(whole)}"):
            whole[b]


def test_no_crystals() -> None:
    nothing = Crystals.concatenate([])
    assert len(nothing) == 0
    assert nothing.cart.shape == (0, 3)
    assert list(nothing) == []
    assert_same(Crystals.concatenate([nothing, batch(3, 1), nothing]), batch(3, 1))


@pytest.mark.usefixtures("as_users_call")
def test_values_do_not_change() -> None:
    whole = batch(4, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.frac = whole.frac + 1  # type: ignore[misc]
    moved = whole.replace(frac=whole.frac + 0.25)
    np.testing.assert_array_equal(moved.frac, whole.frac + 0.25)
    assert np.shares_memory(moved.cells, whole.cells)
    with pytest.raises(ValueError, match="read-only"):
        whole.cells[0, 0, 0] = 1.0
    with pytest.raises(InputError, match="`frac`"):
        whole.replace(frac=whole.frac[:, :2])
    with pytest.raises(InputError, match="`offsets` must end at the number of atoms"):
        whole.replace(frac=whole.frac[:-1])


@pytest.mark.usefixtures("as_users_call")
def test_lists_become_arrays() -> None:
    crystal = Crystals([[0, 0, 0]], [np.eye(3).tolist()], [0, 1], [6])  # type: ignore[arg-type]
    assert [getattr(crystal, f.name).dtype for f in dataclasses.fields(Crystals)] == [
        np.float64,
        np.float64,
        np.int64,
        np.int32,
    ]


def test_arrays_are_those_of_a_graph() -> None:
    whole = batch(5, 3)
    graph = radius_graph(whole.frac, whole.cells, whole.offsets, cutoff=4.0, max_neighbors=12)
    np.testing.assert_array_equal(graph.offsets, whole.offsets)
    cell = np.repeat(whole.cells, whole.n_atoms, axis=0)[graph.dst]
    vector = whole.cart[graph.dst] - whole.cart[graph.src] - np.einsum("ei,eij->ej", graph.image, cell)
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), graph.distance, rtol=1e-6)


def test_take_is_concatenation_in_any_order() -> None:
    rng = np.random.default_rng(5)
    sizes = [3, 0, 1, 4]
    parts = [
        Crystals(
            rng.random((n, 3)),
            rng.random((1, 3, 3)),
            np.array([0, n]),
            rng.integers(1, 90, n).astype(np.int32),
        )
        for n in sizes
    ]
    batch = Crystals.concatenate(parts)
    for order in ([], [2], [3, 1, 0], [0, 0, -1]):
        taken, expected = batch.take(order), Crystals.concatenate(parts[k] for k in order)
        for name in ("frac", "cells", "offsets", "species"):
            np.testing.assert_array_equal(getattr(taken, name), getattr(expected, name))
    with pytest.raises(IndexError, match="of a batch of 4"):
        batch.take([4])


def test_a_batch_says_what_it_holds_and_not_every_number() -> None:
    some = batch(0, 2).take([0, 0])
    n_atoms = len(some.frac)
    assert repr(some) == f"<Crystals: 2 crystals, {n_atoms} atoms>"
    graph = radius_graph(some.frac, some.cells, some.offsets, cutoff=4.0, max_neighbors=4)
    assert repr(graph) == f"<Graph: 2 crystals, {n_atoms} atoms, {graph.n_edges} edges>"
