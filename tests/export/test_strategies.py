"""What latents are conditioned on: given, implied by a control, or drawn from training rows near the given ones."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

pytest.importorskip("torch", reason="bundles are made with PyTorch")

import generator_bundle
import small_bundle

from druse._columns import Ragged, parquet_of
from druse.bundle import Bundle
from druse.control import Control
from druse.errors import InputError
from druse.strategies import NEAR, RangeWarning, _training_rows, conditions_for

IDS = np.arange(5000, dtype=np.uint64)
SPECS = {spec.name: spec for spec in (small_bundle.GAP, small_bundle.SYSTEM, generator_bundle.N_ATOM)}


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("targets", "strategy", "taken"),
    [
        ({"band_gap": 2.0}, "auto", "default"),
        ({"band_gap": 2.0, "crystal_system": 1, "n_atom": 4}, "auto", "full"),
        ({"band_gap": 2.0, "crystal_system": "cubic"}, "auto", "less"),
        ({}, "auto", "less"),
        ({"band_gap": 2.0}, "less", "less"),
        ({"band_gap": 2.0, "crystal_system": "1", "n_atom": "4"}, "full", "full"),
    ],
)
def test_which_strategy_is_taken(bundle: Bundle, targets: dict[str, Any], strategy: str, taken: str) -> None:
    assert conditions_for(bundle, targets, strategy=strategy).strategy == taken


@pytest.mark.parametrize(
    ("targets", "strategy", "message"),
    [
        ({"band_gap": 2.0}, "full", "full: it needs crystal_system, n_atom too"),
        ({"band_gap": 2.0, "n_atom": 3}, "default", "default: it does not take n_atom, only band_gap"),
        ({"colour": 2.0}, "auto", r"no target 'colour'; this model knows band_gap \(0 to 8 eV\), crystal_system"),
        ({"band_gap": "wide"}, "auto", "`band_gap` must be a number, got 'wide'; write band_gap=0"),
        ({"band_gap": "nan"}, "auto", "must be finite"),
        ({"band_gap": [1.0, 2.0]}, "auto", "must be one value"),
        ({"crystal_system": "blue"}, "auto", "must be one of cubic, hexagonal, triclinic, got 'blue'"),
        ({"crystal_system": 7}, "auto", "class numbers from 0 to 2"),
        ({}, "most", "must be one of auto, default, full, less"),
    ],
)
def test_what_does_not_fit_is_told(bundle: Bundle, targets: dict[str, Any], strategy: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conditions_for(bundle, targets, strategy=strategy)


def test_a_target_outside_of_the_range_warns(bundle: Bundle) -> None:
    with pytest.warns(RangeWarning, match="trained for band_gap from 0 to 8 eV; 9 is outside"):
        conditions_for(bundle, {"band_gap": 9.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conditions_for(bundle, {"band_gap": 8.0})


def test_missing_properties_come_from_near_rows(bundle: Bundle) -> None:
    found = conditions_for(bundle, {"band_gap": 2.0, "crystal_system": "hexagonal"})
    values = found.values(7, IDS)
    assert np.all(values["band_gap"] == 2.0)
    assert np.all(values["crystal_system"] == 1)
    assert len(found.rows["n_atom"]) < NEAR  # all rows of the class with a known count
    assert set(values["n_atom"]) == set(range(1, 9))
    assert np.isfinite(values["n_atom"]).all()


def test_rows_are_the_nearest(bundle: Bundle) -> None:
    found = conditions_for(bundle, {"n_atom": 5})
    far = np.abs(_training_rows(bundle, SPECS)["n_atom"] - 5)
    limit = np.sort(far)[NEAR - 1]  # those that tie with the 256th belong to them
    assert len(found.rows["band_gap"]) == np.sum(far <= limit) >= NEAR
    near = conditions_for(bundle, {"band_gap": 2.0}, strategy="less")
    assert near.rows.keys() == {"crystal_system", "n_atom"}


def test_one_row_or_independent(bundle: Bundle) -> None:
    """From one row what is drawn belongs together; independently drawn, every pair occurs."""

    def pairs(independent: bool) -> set[tuple[float, float]]:
        found = conditions_for(bundle, {"crystal_system": 0}, independent=independent)
        values = found.values(1, IDS)
        return set(zip(values["band_gap"].tolist(), values["n_atom"].tolist(), strict=True))

    assert len(pairs(False)) < NEAR
    assert len(pairs(True)) > 2 * NEAR


def test_draws_are_named_by_run_and_latent(bundle: Bundle) -> None:
    found = conditions_for(bundle, {})
    whole, part = found.values(3, IDS), found.values(3, IDS[100:120])
    for name, column in part.items():
        assert np.array_equal(column, whole[name][100:120])
    assert not np.array_equal(found.values(4, IDS)["n_atom"], whole["n_atom"])


def test_a_control_is_a_condition_where_the_model_has_it(bundle: Bundle) -> None:
    control = Control(n_atoms=(4, 4), crystal_system="cubic")
    found = conditions_for(bundle, {"band_gap": 2.0}, strategy="full", control=control)
    assert found.given == {"n_atom": 4.0, "crystal_system": 0, "band_gap": 2.0}
    # what the model does not take as a condition is held by masks alone
    assert conditions_for(bundle, {"band_gap": 2.0}, strategy="default", control=control).given == {"band_gap": 2.0}
    # and a target says more than a control
    found = conditions_for(bundle, {"band_gap": 2.0, "n_atom": 5}, strategy="less", control=control)
    assert found.given["n_atom"] == 5.0


def test_without_training_rows(made_once: Callable[[str, Callable[[Path], object]], Path]) -> None:
    bundle = Bundle.open(made_once("small_bundle_256", lambda out: small_bundle.make(out, 256)))
    with pytest.raises(InputError, match="less: the bundle has no prior 'full', only default, wide"):
        conditions_for(bundle, {}, strategy="less")


def with_rows(bundle: Bundle, rows: dict[str, Any]) -> Bundle:
    """The same with other training rows."""
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return Bundle("other", bundle._text, files | {"conditions.parquet": bytes(parquet_of(rows, {}))})


ROWS: dict[str, Any] = {"band_gap": np.ones(9), "crystal_system": np.zeros(9), "n_atom": np.full(9, 3.0)}


@pytest.mark.parametrize("given", [{"crystal_system": "hexagonal"}, {"band_gap": 1.0, "crystal_system": 2}])
def test_a_class_that_no_training_row_has(bundle: Bundle, given: dict[str, Any]) -> None:
    """230 space groups, of which most data sets have fewer."""
    with pytest.raises(InputError, match=r"no training row has .*crystal_system=[12]; give all properties"):
        conditions_for(with_rows(bundle, ROWS), given, strategy="less")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.array(["a"] * 9), "must have numbers in the column n_atom"),
        (Ragged(np.ones(9), np.arange(10)), "must have numbers in the column n_atom"),
        (np.full(9, np.nan), "no training row has"),
    ],
)
def test_training_rows_that_are_none(bundle: Bundle, column: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conditions_for(with_rows(bundle, {**ROWS, "n_atom": column}), {"band_gap": 1.0}, strategy="less")


def test_few_bytes_do_not_become_gigabytes_of_training_rows(bundle: Bundle) -> None:
    equal, content = pa.table({name: np.zeros(2_000_000) for name in ROWS}), io.BytesIO()
    parquet.write_table(equal, content, row_group_size=len(equal))
    assert len(content.getvalue()) < 50_000
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    bomb = Bundle("bomb", bundle._text, files | {"conditions.parquet": content.getvalue()})
    with pytest.raises(InputError, match=r"conditions.parquet asks for too much memory: .*build the bundle again"):
        conditions_for(bomb, {"band_gap": 1.0}, strategy="less")
