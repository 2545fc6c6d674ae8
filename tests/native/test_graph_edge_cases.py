"""Crystals at the edge of what a crystal is: a status word, never an exception, and the others unaffected."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import structures
from reference.compare import assert_same_edges, check_exact, crystal_bytes, edges_of, ends_of_lists, graph_of, lengths
from reference.graph import upstream_edges
from reference.structures import FCC, FCC_CONVENTIONAL, PEROVSKITE, ROCK_SALT, Structure

from druse import radius_graph
from druse.graphs import (
    COINCIDENT,
    EMPTY,
    ISOLATED,
    NON_FINITE,
    SHELL_TOLERANCE,
    SINGULAR,
    STOPPED,
    TOO_MANY_IMAGES,
    describe_status,
)

both_modes = pytest.mark.parametrize("mode", ["exact", "upstream"])
GOOD = (ROCK_SALT, PEROVSKITE, FCC)


def atoms_at(*frac: tuple[float, float, float], cell: Any = 4.0) -> Structure:
    """Atoms in a cubic cell of a given edge, or in a given cell."""
    return Structure("made here", np.array(frac), cell * np.eye(3) if np.isscalar(cell) else np.array(cell))


# ---- few atoms, thin cells ------------------------------------------------------------------------------------------


@both_modes
def test_one_atom_sees_its_own_images(mode: str) -> None:
    graph = graph_of(FCC, cutoff=3.0, max_neighbors=None, mode=mode)
    assert graph.status.tolist() == [0]
    assert graph.degree.tolist() == [12]
    assert not graph.src.any()
    assert not graph.dst.any()
    np.testing.assert_allclose(graph.distance, 3.61496 / np.sqrt(2), rtol=1e-6)
    half = graph_of(FCC, cutoff=3.0, max_neighbors=None, mode=mode, symmetrise="upstream")
    assert half.n_edges == 6
    assert all(image < [0, 0, 0] for image in half.image.tolist())


@pytest.mark.parametrize("height", [0.5, 0.9, 2.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cells_thinner_than_the_cutoff(height: float, axis: int) -> None:
    heights = np.full(3, 7.0)
    heights[axis] = height
    rng = np.random.default_rng(axis)
    thin = Structure("thin", rng.random((3, 3)), structures.cell_of_heights(heights.tolist(), (100, 75, 120)))
    graph = graph_of(thin, cutoff=6.0, max_neighbors=20)
    assert np.abs(graph.image[:, axis]).max() > 1
    check_exact(thin, graph, 0, 6.0, 20, SHELL_TOLERANCE)


def test_an_atom_beyond_every_other_is_isolated() -> None:
    graph = graph_of(atoms_at((0, 0, 0), cell=10.0), cutoff=6.0, max_neighbors=20)
    assert graph.status.tolist() == [ISOLATED]
    assert graph.counts.tolist() == [0]
    assert graph.ok.tolist() == [True]


@both_modes
def test_atoms_at_the_cutoff_count(mode: str) -> None:
    cube = atoms_at((0, 0, 0), cell=3.0)
    assert graph_of(cube, cutoff=3.0, max_neighbors=None, mode=mode).n_edges == 6
    assert graph_of(cube, cutoff=2.99999, max_neighbors=None, mode=mode).n_edges == 0


# ---- atoms in one place ---------------------------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("second", [(0.1, 0.2, 0.3), (1.1, 0.2, 0.3), (0.1, 0.2, 0.3 + 0.009 / 4)])
def test_coincident_atoms_have_no_edge_with_each_other(mode: str, second: tuple[float, float, float]) -> None:
    graph = graph_of(atoms_at((0.1, 0.2, 0.3), second), cutoff=4.5, max_neighbors=None, mode=mode)
    assert graph.status.tolist() == [COINCIDENT]
    assert graph.ok.all()
    assert graph.distance.min() > 3.9
    if mode == "exact" or second[0] < 1:  # upstream's 27 images begin at the coordinates as they are
        assert np.bincount(graph.src * 2 + graph.dst).tolist() == [6, 6, 6, 6]


@both_modes
def test_atoms_just_apart_have_an_edge(mode: str) -> None:
    graph = graph_of(atoms_at((0.5, 0.5, 0.5), (0.5, 0.5, 0.5 + 0.011 / 4)), cutoff=3.0, max_neighbors=None, mode=mode)
    assert graph.status.tolist() == [0]
    np.testing.assert_allclose(graph.distance, [0.011, 0.011], atol=1e-6)


# ---- whole shells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_neighbors", "expected"), [(1, 12), (12, 12), (13, 18), (18, 18), (19, 42), (20, 42), (42, 42), (43, 54)]
)
@pytest.mark.parametrize("fcc", [FCC, FCC_CONVENTIONAL], ids=lambda s: s.name)
def test_a_shell_is_never_split(fcc: Structure, max_neighbors: int, expected: int) -> None:
    graph = graph_of(fcc, cutoff=7.0, max_neighbors=max_neighbors)  # shells of fcc: 12, 6, 24, 12, ...
    assert set(graph.degree.tolist()) == {expected}


@pytest.mark.parametrize("fcc", [FCC, FCC_CONVENTIONAL], ids=lambda s: s.name)
def test_exactly_k_where_that_is_asked_for(fcc: Structure) -> None:
    for options in ({"mode": "upstream"}, {"mode": "exact", "shell_tolerance": None}):
        graph = graph_of(fcc, cutoff=7.0, max_neighbors=20, **options)
        assert set(graph.degree.tolist()) == {20}


def test_equal_distances_are_chosen_in_order_of_source() -> None:
    graph = graph_of(FCC_CONVENTIONAL, cutoff=7.0, max_neighbors=6, shell_tolerance=None)
    for target in range(4):
        # four nearest neighbours of each of the three others: the first six are all of one and half of the next
        first, second = [atom for atom in range(4) if atom != target][:2]
        assert graph.src[graph.dst == target].tolist() == [first] * 4 + [second] * 2


def test_exactly_k_where_a_shell_lies_exactly_at_the_cutoff() -> None:
    tetragonal = atoms_at((0, 0, 0), cell=np.diag([3.0, 3.0, 3.0 + 1e-7]))
    cutoff = np.nextafter(3.0 - 1e-6, 4.0)
    while cutoff + 1e-6 > 3.0:
        cutoff = np.nextafter(cutoff, 0.0)
    assert cutoff + 1e-6 == 3.0
    assert graph_of(tetragonal, cutoff=float(cutoff), max_neighbors=None).n_edges == 4
    assert graph_of(tetragonal, cutoff=float(cutoff), max_neighbors=5, shell_tolerance=None).n_edges == 4


def test_a_wide_shell_takes_in_the_next() -> None:
    first, second = 3.61496 / np.sqrt(2), 3.61496
    graph = graph_of(FCC, cutoff=7.0, max_neighbors=12, shell_tolerance=0.99)
    assert graph.degree.tolist() == [12]
    stretched = FCC._replace(cell=FCC.cell * 0.9 / (second - first))
    assert graph_of(stretched, cutoff=7.0, max_neighbors=12, shell_tolerance=1.0).degree.tolist() == [18]


# ---- coordinates outside of the cell --------------------------------------------------------------------------------


def test_a_fraction_of_one_is_zero_one_cell_on() -> None:
    zero = graph_of(ROCK_SALT, cutoff=5.0, max_neighbors=20)
    shift = np.array([[1, 1, 1], [0, 0, 0]])
    moved = ROCK_SALT._replace(frac=ROCK_SALT.frac + shift)
    assert moved.frac[0].tolist() == [1.0, 1.0, 1.0]
    one = graph_of(moved, cutoff=5.0, max_neighbors=20)
    mapped = {(s, t, *(np.array(image) + shift[s] - shift[t])): d for (s, t, *image), d in lengths(one).items()}
    assert mapped == lengths(zero)


@pytest.mark.parametrize("crystal", structures.REAL, ids=lambda s: s.name)
def test_upstream_takes_coordinates_as_they_are(crystal: Structure) -> None:
    moved = crystal._replace(frac=np.where(crystal.frac == 0.0, 1.0, crystal.frac))
    graph = graph_of(moved, cutoff=6.0, max_neighbors=20, mode="upstream")
    assert edges_of(graph) == upstream_edges(moved.frac, moved.cell, 6.0, 20).edges()


@both_modes
def test_minus_zero_is_zero(mode: str) -> None:
    zeros = np.where(PEROVSKITE.frac == 0.0, -0.0, PEROVSKITE.frac)
    assert np.signbit(zeros).any()
    plus, minus = (
        graph_of(PEROVSKITE._replace(frac=frac), cutoff=5.0, max_neighbors=20, mode=mode)
        for frac in (PEROVSKITE.frac, zeros)
    )
    assert crystal_bytes(plus, 0) == crystal_bytes(minus, 0)


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_coordinates_ten_thousand_cells_away(far: float) -> None:
    for crystal in (*structures.REAL, *structures.random_structures(3, 10)):
        shift = np.random.default_rng(0).integers(0, 2, crystal.frac.shape) * int(far)
        here = graph_of(crystal, cutoff=5.0, max_neighbors=12)
        there = graph_of(crystal._replace(frac=crystal.frac + shift), cutoff=5.0, max_neighbors=12)
        mapped = {(s, t, *(np.array(image) + shift[s] - shift[t])): d for (s, t, *image), d in lengths(there).items()}
        assert_same_edges(lengths(here), mapped, ends_of_lists(here, 5.0, 12, SHELL_TOLERANCE))


@both_modes
def test_coordinates_beyond_what_float64_resolves(mode: str) -> None:
    graph = graph_of(atoms_at((0, 0, 0), (2e8, 0.5, 0.5)), cutoff=5.0, max_neighbors=12, mode=mode)
    assert graph.status.tolist() == [NON_FINITE]
    assert "1e8" in graph.describe()[0][0]


# ---- cells ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crystal", structures.REAL, ids=lambda s: s.name)
def test_left_handed_cells(crystal: Structure) -> None:
    left = crystal._replace(frac=crystal.frac[:, [1, 0, 2]], cell=crystal.cell[[1, 0, 2]])
    assert np.linalg.det(left.cell) * np.linalg.det(crystal.cell) < 0
    graph = graph_of(left, cutoff=6.0, max_neighbors=20)
    check_exact(left, graph, 0, 6.0, 20, SHELL_TOLERANCE)
    np.testing.assert_array_equal(graph.degree, graph_of(crystal, cutoff=6.0, max_neighbors=20).degree)


FLAT = {
    "zero": np.zeros((3, 3)),
    "a zero row": np.diag([4.0, 4.0, 0.0]),
    "two equal rows": np.array([[4.0, 1, 0], [4.0, 1, 0], [0, 0, 5.0]]),
    "opposite rows": np.array([[4.0, 1, 0], [0, 0, 5.0], [-4.0, -1, 0]]),
    "a row in the plane of the others": np.array([[3.0, 0.1, 0.7], [0.3, 4.0, 0.2], [3.3, 4.1, 0.9]]),
}


@both_modes
@pytest.mark.parametrize("name", FLAT)
def test_flat_and_zero_cells(name: str, mode: str) -> None:
    flat = atoms_at((0.1, 0.2, 0.3), (0.6, 0.7, 0.4), cell=FLAT[name])
    graph = radius_graph(
        *structures.batch([ROCK_SALT, flat, PEROVSKITE]), cutoff=5.0, max_neighbors=12, mode=mode, symmetrise="union"
    )
    assert graph.status.tolist() == [0, SINGULAR, 0]
    assert graph.counts[1] == 0
    assert not graph.ok[1]
    alone = radius_graph(
        *structures.batch([ROCK_SALT, PEROVSKITE]), cutoff=5.0, max_neighbors=12, mode=mode, symmetrise="union"
    )
    assert [crystal_bytes(graph, 0), crystal_bytes(graph, 2)] == [crystal_bytes(alone, b) for b in (0, 1)]


def test_planes_closer_than_a_hundredth_of_an_angstrom() -> None:
    for spacing, status in ((0.009, SINGULAR), (0.011, 0)):
        graph = graph_of(atoms_at((0, 0, 0), cell=np.diag([5.0, 5.0, spacing])), cutoff=1.0, max_neighbors=4)
        assert graph.status.tolist() == [status]


def test_more_than_a_million_images() -> None:
    needle = atoms_at((0, 0, 0), cell=np.diag([0.02, 0.02, 1.0]))
    graph = radius_graph(*structures.batch([needle, FCC]), cutoff=6.0, max_neighbors=20)
    assert graph.status.tolist() == [TOO_MANY_IMAGES, 0]
    assert graph.counts.tolist() == [0, 42]


@pytest.mark.parametrize(("cutoff", "status"), [(15.0, 0), (60.0, TOO_MANY_IMAGES)])
def test_images_that_are_farther_than_int32_in_a_skewed_cell(cutoff: float, status: int) -> None:
    skewed = atoms_at((0.1, 0.2, 0.3), cell=np.array([[10.0, 0, 0], [9e6, 0.02, 0], [0, 0, 10.0]]))
    graph = graph_of(skewed, cutoff=cutoff, max_neighbors=None)
    assert graph.status.tolist() == [status]
    found = np.linalg.norm(graph.image @ skewed.cell, axis=1)
    np.testing.assert_allclose(found, graph.distance, atol=1e-3)


# ---- one bad crystal, no crystal, no atoms --------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["frac", "cell"])
def test_a_value_that_is_not_finite_stays_in_its_crystal(mode: str, place: int, value: float, where: str) -> None:
    broken = atoms_at((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    getattr(broken, where)[1, 2] = value
    crystals = [*GOOD[:place], broken, *GOOD[place:]]
    for symmetrise in ("none", "union"):
        options = {"cutoff": 5.0, "max_neighbors": 12, "mode": mode, "symmetrise": symmetrise}
        graph = radius_graph(*structures.batch(crystals), **options)
        alone = radius_graph(*structures.batch(GOOD), **options)
        assert graph.status[place] == NON_FINITE
        assert graph.counts[place] == 0
        assert not graph.degree[graph.offsets[place] : graph.offsets[place + 1]].any()
        others = [b for b in range(4) if b != place]
        assert [crystal_bytes(graph, b) for b in others] == [crystal_bytes(alone, b) for b in range(3)]


@both_modes
@pytest.mark.parametrize("symmetrise", ["none", "upstream", "union"])
def test_empty_crystals(mode: str, symmetrise: str) -> None:
    empty = Structure("empty", np.zeros((0, 3)), np.eye(3))
    options = {"cutoff": 5.0, "max_neighbors": 12, "mode": mode, "symmetrise": symmetrise}
    graph = radius_graph(*structures.batch([empty, FCC, empty, ROCK_SALT, empty]), **options)
    alone = radius_graph(*structures.batch([FCC, ROCK_SALT]), **options)
    assert graph.status.tolist() == [EMPTY, 0, EMPTY, 0, EMPTY]
    assert [crystal_bytes(graph, b) for b in (1, 3)] == [crystal_bytes(alone, b) for b in (0, 1)]
    none = radius_graph(*structures.batch([empty, empty]), **options)
    assert (none.n_atoms, none.n_edges, none.status.tolist()) == (0, 0, [EMPTY, EMPTY])


@both_modes
def test_an_empty_batch(mode: str) -> None:
    graph = radius_graph(*structures.batch([]), cutoff=5.0, max_neighbors=12, mode=mode, symmetrise="union")
    assert (graph.n_crystals, graph.n_atoms, graph.n_edges) == (0, 0, 0)
    assert graph.describe() == {}
    assert graph.triplets().id3_ba.shape == (0,)
    assert graph.directed().src.shape == (0,)


def test_fifteen_hundred_neighbours() -> None:
    graph = radius_graph(*structures.batch([ROCK_SALT, FCC_CONVENTIONAL]), cutoff=16.3, max_neighbors=None)
    assert graph.degree[2:].min() >= 1500
    for b, crystal in enumerate((ROCK_SALT, FCC_CONVENTIONAL)):
        check_exact(crystal, graph, b, 16.3, None, SHELL_TOLERANCE)


# ---- anything -------------------------------------------------------------------------------------------------------


@both_modes
@given(
    frac=hnp.arrays(np.float64, (3, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
    cell=hnp.arrays(np.float64, (3, 3), elements=st.floats(allow_nan=True, allow_infinity=True) | st.floats(-20, 20)),
    wild=st.booleans(),
)
def test_no_number_breaks_it(mode: str, frac: np.ndarray, cell: np.ndarray, wild: bool) -> None:
    crystal = Structure("anything", frac if wild else np.random.default_rng(0).random((3, 3)), cell)
    for symmetrise in ("none", "union"):
        options = {"cutoff": 3.0, "max_neighbors": 8, "mode": mode, "symmetrise": symmetrise}
        graph = radius_graph(*structures.batch([FCC, crystal, ROCK_SALT]), **options)
        alone = radius_graph(*structures.batch([FCC, ROCK_SALT]), **options)
        assert [crystal_bytes(graph, b) for b in (0, 2)] == [crystal_bytes(alone, b) for b in (0, 1)]
        own = slice(graph.edge_offsets[1], graph.edge_offsets[2])
        if graph.status[1] & STOPPED:
            assert graph.counts[1] == 0
        distance = graph.distance[own]
        assert np.all((distance > 0.0099) & (distance < 3.0001))
        np.testing.assert_allclose(np.linalg.norm(graph.unit[own], axis=1), 1.0, atol=1e-5)
        described = describe_status(int(graph.status[1]))
        assert len(described) == int(graph.status[1]).bit_count()


@pytest.mark.parametrize("fraction", [2000.0, 2001.0])
def test_padding_images_never_meet_an_atom(fraction: float) -> None:
    frac = np.array([[fraction] * 3, [0.0] * 3])
    graph = radius_graph(frac, np.eye(3)[None] * 5e14, [0, 2], cutoff=6.0, max_neighbors=20, mode="upstream")
    assert graph.status.tolist() == [ISOLATED]


def test_a_half_graph_without_edges_is_still_one() -> None:
    graph = radius_graph(
        np.zeros((1, 3)), np.eye(3)[None] * 50, [0, 1], cutoff=6.0, max_neighbors=9, symmetrise="union"
    )
    assert graph.is_half
    assert graph.n_edges == 0


def test_a_graph_does_not_follow_changes_of_its_inputs() -> None:
    offsets = np.array([0, 1])
    graph = radius_graph(np.zeros((1, 3)), np.eye(3)[None] * 3, offsets, cutoff=4.0, max_neighbors=9)
    offsets[1] = 77
    assert graph.n_atoms == 1
