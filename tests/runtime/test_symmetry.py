"""Space groups, by pymatgen and by moyo."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from crystal_examples import BRASS, COPPER, CSCL, MGO, NACL, ZINC_BLENDE, batch, crystal, supercell

pytest.importorskip("pymatgen", reason="finds space groups")
pytest.importorskip("moyopy", reason="finds space groups")

from druse import Crystals
from druse.symmetry import Method, space_groups
from druse.tables import load_table

METHODS: tuple[Method, ...] = ("pymatgen", "moyo")
HCP = crystal(
    [[3.21, 0, 0], [-1.605, 1.605 * 3**0.5, 0], [0, 0, 5.21]], [12, 12], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
)


@pytest.mark.parametrize("method", METHODS)
def test_textbook_crystals(method: Method) -> None:
    found = space_groups(batch(NACL, MGO, COPPER, BRASS, CSCL, ZINC_BLENDE, supercell(NACL), HCP), method=method)
    np.testing.assert_array_equal(found.numbers, [225, 225, 225, 221, 221, 216, 225, 194])
    assert set(found.failures) == {""}


@pytest.mark.parametrize("method", METHODS)
def test_the_tolerance_decides(method: Method) -> None:
    rng = np.random.default_rng(0)
    noisy = supercell(supercell(NACL))
    noisy = noisy.replace(frac=noisy.frac + rng.normal(size=noisy.frac.shape) * 0.003)
    assert space_groups(noisy, method=method).numbers.tolist() == [225]
    assert space_groups(noisy, method=method, symprec=1e-4).numbers[0] < 3


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_crystal_has_none_and_harms_nobody(method: Method) -> None:
    empty = crystal(np.eye(3), [], [])
    odd = crystal(4 * np.eye(3), [0], [[0, 0, 0]])
    broken = crystal(np.full((3, 3), np.nan), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    clash = crystal(4 * np.eye(3), [11, 11, 17], [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]])
    found = space_groups(batch(empty, NACL, odd, broken, clash, NACL), method=method)
    assert found.numbers[[1, 5]].tolist() == [225, 225]
    assert found.numbers[[0, 2, 3]].tolist() == [0, 0, 0]
    assert [bool(found.failures[b]) for b in (0, 1, 2, 3, 5)] == [True, False, True, True, False]


def test_another_method_is_refused() -> None:
    script = "from druse import Crystals; from druse.symmetry import space_groups; "
    script += "space_groups(Crystals.concatenate([]), method='spglib')"  # without the types that tests check
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "`method` must be pymatgen or moyo, got 'spglib'" in child.stderr


def test_moyo_keeps_quiet_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("moyo").setLevel(logging.INFO)
    space_groups(batch(*(supercell(one) for one in (NACL, COPPER, ZINC_BLENDE))), method="moyo")
    assert caplog.records == []
    assert logging.getLogger("moyo").level == logging.INFO
    logging.getLogger("moyo").setLevel(logging.NOTSET)


@pytest.mark.slow
def test_both_agree_on_real_crystals(shared: object) -> None:
    crystals: Crystals = load_table(shared / "data" / "mp20" / "val.csv.gz", niggli=False).crystals  # type: ignore[operator]
    a, b = (space_groups(crystals, method=method) for method in METHODS)
    assert np.mean(a.numbers == b.numbers) >= 0.99
