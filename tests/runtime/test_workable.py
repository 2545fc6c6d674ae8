"""Crystals made so that symmetry or comparison take minutes: told at once; those that exist: never."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import COPPER, NACL, batch, crystal

pytest.importorskip("pymatgen", reason="finds space groups")
pytest.importorskip("loky", reason="works in several processes")

from druse._matching import primitives_of
from druse._processes import Processes
from druse._workable import unworkable
from druse.duplicates import duplicates
from druse.io import write_crystals
from druse.lattice import cells_from_parameters
from druse.symmetry import space_groups
from druse.tables import load_table


def cell(lengths: tuple[float, float, float], *angles: float) -> np.ndarray:
    return cells_from_parameters(np.array([lengths]), np.array([angles or (90.0, 90.0, 90.0)]))[0]


LINE = np.arange(500)[:, None] / 500 * np.array([1, 0, 0])
DRAW = np.random.default_rng(0)
BAD = {
    "needle": (crystal(np.diag([1000.0, 0.5, 0.5]), [29], [[0, 0, 0]]), "2000 times as long as wide"),
    "skewed needle": (crystal(cell((1000, 1000, 3), 90, 90, 0.1), [29], [[0, 0, 0]]), "573 times"),
    "skewed plate": (crystal(cell((1000, 1000, 3), 90, 90, 1), [29], [[0, 0, 0]]), "333 times"),
    "rod": (crystal(cell((1000, 1000, 1000), 3, 3, 3), [29], [[0, 0, 0]]), "19 times"),
    "plate": (crystal(np.diag([1000.0, 1000, 0.5]), [29], [[0, 0, 0]]), "2000 times"),
    "plate of some": (crystal(np.diag([1000.0, 1000, 3]), [29] * 5, DRAW.random((5, 3))), "333 times"),
    "wire": (crystal(np.diag([250, 0.5, 0.5]), [29] * 500, LINE), "less than 1 Å³ each"),
    "crowd": (crystal(5 * np.eye(3), [29] * 500, DRAW.random((500, 3))), "less than 1 Å³ each"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_takes_minutes_is_told_at_once(name: str) -> None:
    bad, reason = BAD[name]
    assert reason in unworkable(bad)
    for method in ("pymatgen", "moyo"):
        found = space_groups(batch(NACL, bad, COPPER), method=method)
        assert found.numbers.tolist() == [225, 0, 225]
        assert reason in found.failures[1]
    with Processes(1, purpose="testing") as here:
        assert primitives_of(batch(NACL, bad), here).crystals.n_atoms.tolist() == [2, 0]
        assert duplicates(batch(NACL, bad, NACL, bad), processes=here).tolist() == [0, -1, 0, -1]


@pytest.mark.usefixtures("as_users_call")
def test_a_file_of_them_through_the_command(tmp_path: Path, druse: Callable[..., tuple[int, str, str]]) -> None:
    rules = [f'[[rules]]\nkind = "{kind}"\n' for kind in ("symmetry", "unique")]
    write_crystals(tmp_path / "bad.extxyz", batch(NACL, *(bad for bad, _ in BAD.values()), COPPER))
    for name, text in (("all", "".join(rules)), ("unique", rules[1])):
        (tmp_path / f"{name}.toml").write_text(text)
        files = (tmp_path / "bad.extxyz", "--rules", tmp_path / f"{name}.toml", "--out", tmp_path / name)
        code, said, complaint = druse("screen", *files, "--jobs", 2, "--json")
        assert code == 0, complaint
        steps = {step["name"]: step for step in json.loads(said)["rules"]}
        assert steps["unique"]["passed"] == 2
        assert steps["unique"]["refused"] == (0 if name == "all" else len(BAD))


def test_crystals_that_exist_are_workable(shared: Path) -> None:
    lines = (shared / "data" / "cells" / "stress.jsonl").read_text().splitlines()
    hard = [crystal(one["lattice"], one["atomic_numbers"], one["frac_coords"]) for one in map(json.loads, lines)]
    table = load_table(shared / "data" / "mp20" / "val.csv.gz", niggli=False).crystals
    assert {unworkable(one) for one in [*hard, *table]} == {""}


@pytest.mark.parametrize("times", [2, 30, 200])
def test_a_long_supercell_is_workable(times: int) -> None:
    frac = np.arange(times)[:, None] / times * np.array([0, 0, 1])
    assert unworkable(crystal(COPPER.cells[0] * [[1], [1], [times]], [29] * times, frac)) == ""
