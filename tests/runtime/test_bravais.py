"""Lattices made to obey a crystal system, against spglib."""

import numpy as np
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st

from druse.bravais import _families, _tensor, constrain
from druse.conditions import CRYSTAL_SYSTEMS, crystal_system
from druse.errors import InputError
from druse.lattice import cells_from_parameters, volumes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:spglib")

SYMMETRIC = [system for system in CRYSTAL_SYSTEMS if system != "triclinic"]


MORE = {
    "monoclinic": ("orthorhombic", "trigonal", "tetragonal", "hexagonal", "cubic"),
    "orthorhombic": ("tetragonal", "hexagonal", "cubic"),
    "trigonal": ("hexagonal", "cubic"),
    "tetragonal": ("cubic",),
    "hexagonal": (),
    "cubic": (),
}
"""Systems whose lattices are special cases of those of another, and good too where a cell happens to be one."""


def system_of(cell: np.ndarray) -> str:
    """Of the lattice: of a crystal with one atom in the cell."""
    number = spglib.get_symmetry_dataset((cell, [[0.0, 0.0, 0.0]], [1]), symprec=1e-5).number
    return crystal_system(number)


def test_each_family_is_of_its_system() -> None:
    rng = np.random.default_rng(0)
    families = _families()
    assert sum(map(len, families.values())) == 42
    for system, matrices in families.items():
        for matrix in matrices:
            found = 0
            while found < 3:
                about = np.concatenate(
                    [np.array([1, 1.1, 1.25]) + rng.uniform(-0.05, 0.3, 3), rng.uniform(-0.3, 0.3, 3)]
                )
                free = np.linalg.lstsq(matrix, about, rcond=None)[0] + rng.normal(0, 0.05, matrix.shape[1])
                metric = _tensor((matrix @ free)[None])[0]
                if np.linalg.eigvalsh(metric)[0] < 0.05:
                    continue
                assert system_of(4 * np.linalg.cholesky(metric)) == system
                found += 1


@given(
    st.sampled_from(SYMMETRIC),
    st.lists(st.floats(3, 9), min_size=3, max_size=3),
    st.lists(st.floats(62, 118), min_size=3, max_size=3),
)
def test_any_cell_becomes_one_of_the_system(system: str, lengths: list[float], angles: list[float]) -> None:
    try:
        cell = cells_from_parameters([lengths], [angles])
    except InputError:
        return
    made, change = constrain(cell, system)
    assert system_of(made[0]) in {system, *MORE[system]}
    assert volumes(made)[0] == pytest.approx(volumes(cell)[0], rel=1e-9)
    again, rest = constrain(made, system)
    assert rest[0] < 1e-6
    assert np.allclose(again, made, atol=1e-6)
    assert change[0] >= 0


@pytest.mark.parametrize(
    ("angles", "system"),
    [((60, 60, 60), "cubic"), ((109.471221, 109.471221, 109.471221), "cubic"), ((90, 90, 120), "hexagonal")],
)
def test_a_lattice_of_the_system_stays(angles: tuple[float, ...], system: str) -> None:
    """Primitive cells of face- and body-centred cubic lattices are cubic."""
    cell = cells_from_parameters([[4.0, 4.0, 4.0]], [angles])
    made, change = constrain(cell, system)
    assert np.allclose(made, cell, atol=1e-6)
    assert change[0] < 1e-7


def test_triclinic_is_free_and_other_names_are_refused() -> None:
    cell = cells_from_parameters([[3.0, 4.0, 5.0]], [[70.0, 80.0, 95.0]])
    made, change = constrain(cell, "triclinic")
    assert np.allclose(made, cell)
    assert change[0] == 0
    with pytest.raises(InputError, match="must be one of triclinic"):
        constrain(cell, "cube")


def test_a_cell_alone_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    cells = cells_from_parameters(rng.uniform(3, 9, (64, 3)), rng.uniform(70, 110, (64, 3)))
    for system in SYMMETRIC:
        whole = constrain(cells, system)[0]
        alone = np.concatenate([constrain(cells[b : b + 1], system)[0] for b in range(64)])
        assert np.array_equal(whole, alone)
