"""What StructureMatcher refuses: no pair that it fits may be among it, however near its limits."""

import itertools

import numpy as np
import pytest
from crystal_examples import crystal
from hypothesis import given
from hypothesis import strategies as st
from polymorphs import POLYMORPHS, any_crystal, changed

pytest.importorskip("pymatgen", reason="has the matcher")

from druse import Crystals
from druse._fingerprints import as_structure
from druse._mappings import Primitive, edges, mappings, may_lie, minima, partners, refused_by
from druse._matching import matcher, primitives_of
from druse._processes import Processes


def reduced(crystals: list[Crystals]) -> list[Crystals]:
    with Processes(1, purpose="testing") as here:
        return list(primitives_of(Crystals.concatenate(crystals), here).crystals)


def primitive(one: Crystals) -> Primitive:
    return Primitive.each(one)[0]


def hard_pair(rng: np.random.Generator) -> tuple[Crystals, Crystals]:
    a = POLYMORPHS[rng.integers(len(POLYMORPHS))] if rng.random() < 0.5 else any_crystal(rng)
    b = changed(a, rng)
    if rng.random() < 0.1:  # two lattices that nothing relates
        b = any_crystal(rng)
        b = crystal(b.cells, a.species, rng.random(a.frac.shape))
    if rng.random() < 0.4:  # else in cells that no matcher would choose, where the conditions hold as well
        a, b = reduced([a, b])
    return a, b


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_no_pair_that_fits_is_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("fit", "minima", "mappings", "partners", "asked in vain"), 0)
    while sum(counts.values()) < 400:
        a, b = hard_pair(rng)
        if sorted(a.species) != sorted(b.species):
            continue
        fits = matcher().fit(as_structure(a), as_structure(b), skip_structure_reduction=True)
        by_minima = not may_lie(minima(a), edges(b)[0])
        refused = refused_by(primitive(a), primitive(b))
        assert not (fits and (refused or by_minima)), (a, b)
        assert refused == "mappings" or not by_minima, (a, b)
        counts["fit" if fits else "minima" if by_minima else refused or "asked in vain"] += 1
    assert counts["fit"] > 80
    assert all(counts[name] > 5 for name in ("minima", "mappings", "partners"))
    assert counts["asked in vain"] < sum(counts[name] for name in ("minima", "mappings", "partners"))


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 1e-12])
def test_at_the_limit_of_lengths_and_angles(step: float) -> None:
    """Right-angled cells of one atom, one edge to a sixth beside 1.2, and skewed ones, an angle beside 5 degrees."""
    for factor in (1.2 * (1 - step), 1.2, 1.2 * (1 + step)):
        # the other edges keep the volume
        a, b = (crystal(np.diag(lengths), [1], [[0, 0, 0]]) for lengths in ([1, 3, 7], [factor, 3, 7 / factor]))
        agree(a, b)
        agree(b, a)
    for angle in (5 * (1 - step), 5, 5 * (1 + step)):
        sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
        a = crystal(np.diag([1, 2, 4]), [1], [[0, 0, 0]])
        b = crystal([[1, 0, 0], [2 * sine, 2 * cosine, 0], [0, 0, 4 / cosine]], [1], [[0, 0, 0]])
        agree(a, b)
        agree(b, a)


def agree(a: Crystals, b: Crystals) -> None:
    fits = matcher().fit(as_structure(a), as_structure(b), skip_structure_reduction=True)
    assert not (fits and refused_by(primitive(a), primitive(b)))


def test_at_the_limit_of_places() -> None:
    """An atom in the middle of eight others moves by 0.6 of (V / N)^(1/3), half of which both crystals move back."""
    cell, size = 4 * np.eye(3), 4 / 2 ** (1 / 3)
    a = crystal(cell, [1, 2], [[0, 0, 0], [0.5, 0.5, 0.5]])
    for move, fits in ((0.5999, True), (0.6001, False)):
        b = crystal(cell, [1, 2], [[0, 0, 0], [0.5 + move * size / 4, 0.5, 0.5]])
        assert matcher().fit(as_structure(a), as_structure(b), skip_structure_reduction=True) == fits
        assert refused_by(primitive(a), primitive(b)) == ("" if fits else "partners")


@given(seed=st.integers(0, 2**32 - 1))
def test_minima_are_of_the_lattice(seed: int) -> None:
    """By all vectors of small coefficients, in a basis that needs no larger ones; and the same in any basis."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * rng.uniform(1, 3, 3) + rng.uniform(-0.4, 0.4, (3, 3))
    size = np.cbrt(abs(np.linalg.det(cell)))
    steps = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    chosen: list[np.ndarray] = []
    for k in np.argsort(np.linalg.norm(steps @ cell, axis=1)):
        if np.linalg.matrix_rank([*chosen, steps[k]]) > len(chosen):
            chosen.append(steps[k])
    expected = np.linalg.norm(np.array(chosen) @ cell, axis=1) / size
    skew = np.array([[1, rng.integers(-2, 3), rng.integers(-2, 3)], [0, 1, rng.integers(-2, 3)], [0, 0, 1]])
    for basis in (cell, skew @ cell, skew.T @ cell):
        np.testing.assert_allclose(minima(crystal(basis, [1], [[0, 0, 0]])), expected, rtol=1e-9)


def test_mappings_of_a_cube_are_its_symmetries() -> None:
    cube = primitive(crystal(3 * np.eye(3), [1], [[0, 0, 0]]))
    found = mappings(cube, cube)
    assert found is not None
    signed = [
        np.diag(s)[list(p)] for p in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)
    ]
    assert sorted(map(str, found)) == sorted(map(str, np.array(signed)))
    assert partners(cube, cube, found)


def test_what_is_too_much_is_left_to_the_matcher() -> None:
    """A needle has too many short vectors to list, a crowd too many pairs, a sheet too many images."""
    needle = primitive(crystal(np.diag([0.02, 0.02, 9000]), [1], [[0, 0, 0]]))
    assert mappings(needle, needle) is None
    assert not minima(crystal(np.diag([0.02, 0.02, 9000]), [1], [[0, 0, 0]])).any()
    rng = np.random.default_rng(0)
    crowds = [primitive(crystal(9 * np.eye(3), [1] * 60, rng.random((60, 3)))) for _ in range(2)]
    sheets = [primitive(crystal(np.diag([9, 9, 0.9]), [1] * 4, rng.random((4, 3)))) for _ in range(2)]
    for a, b in (crowds, sheets, [needle, needle]):
        assert refused_by(a, b) == ""
