"""Properties as a user names them, and classes made of columns."""

import numpy as np
import pytest

from druse.conditions import ClassProperty, ScalarProperty
from druse.crystals import Crystals
from druse.errors import InputError
from druse.tables import CrystalTable
from druse_export.training.properties import resolve, with_classes


@pytest.fixture(scope="module")
def table() -> CrystalTable:
    n = 4
    species = np.full(n, 14, np.int32)
    crystals = Crystals(np.zeros((n, 3)), np.tile(np.eye(3) * 4, (n, 1, 1)), np.arange(n + 1), species)
    gap = np.array([0.0, 1e-6, 3.0, np.nan])
    return CrystalTable(crystals, tuple("abcd"), {"band_gap": gap, "hardness": np.array([1.0, 2, 3, 5])})


def test_names_numbers_of_classes_labels_and_ranges(table: CrystalTable) -> None:
    found = resolve(["band_gap", "hardness", "kind=3", "polar=no, yes", "tc=0:90:2:K"], table)
    assert [spec.name for spec in found] == ["band_gap", "hardness", "kind", "polar", "tc"]
    assert found[2:4] == (ClassProperty("kind", 3), ClassProperty("polar", 2, ("no", "yes")))
    assert found[4] == ScalarProperty("tc", 0.0, 90.0, 2.0, "K")


def test_classes_of_a_column(table: CrystalTable) -> None:
    made = with_classes(table, {"metal": "band_gap>0", "hard": "hardness > 2"})
    np.testing.assert_array_equal(made.properties["metal"], [0, 1, 1, np.nan])
    np.testing.assert_array_equal(made.properties["hard"], [0, 0, 1, 1])
    assert set(table.properties) == {"band_gap", "hardness"}


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"a": "band_gap"}, "write COLUMN>THRESHOLD"),
        ({"a": "band_gap>high"}, "write COLUMN>THRESHOLD"),
        ({"a": "density>1"}, "band_gap, hardness"),
        ({"hardness": "band_gap>1"}, "a new name"),
    ],
)
def test_rules_that_make_no_class(table: CrystalTable, rules: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        with_classes(table, rules)
