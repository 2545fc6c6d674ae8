"""Every strategy and every control on the authors' run directory (random weights), imported."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the import needs PyTorch")

from druse import Control, Generated, Generator, SamplingSchedule
from druse.bravais import constrain
from druse.elements import SYMBOLS, formula_of
from druse_export.bundles.imported import import_bundle

ENERGY = {"formation_energy_per_atom": -2.0}
FULL = {**ENERGY, "crystal_system": "cubic", "spacegroup": 225, "band_gap": 1.0, "e_above_hull": 0.0, "n_atom": 6}
QUICK = SamplingSchedule(method="ancestral", n_levels=5)


@pytest.fixture(scope="module")
def generator(shared: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Generator:
    def make(out: Path) -> None:
        rows = out.with_suffix(".csv")  # some of MP-20, for the strategy less to draw from
        with gzip.open(shared / "data" / "mp20" / "val.csv.gz", "rt") as source, rows.open("w", newline="") as file:
            csv.writer(file).writerows(list(csv.reader(source))[:61])
        run = shared / "fixtures" / "upstream_run"
        import_bundle(run, out, name="upstream", licence="MIT, the authors'", data=rows)

    return Generator(made_once("upstream_generator", make), n_threads=2)


def generate(generator: Generator, targets: dict[str, Any], **options: Any) -> Generated:
    (made,) = generator.generate(targets, count=6, oversample=4, schedule=QUICK, **options)
    assert made.ok.sum() >= 3
    return made.take(np.flatnonzero(made.ok))


@pytest.mark.parametrize(("strategy", "targets"), [("default", ENERGY), ("full", FULL), ("less", ENERGY), ("less", {})])
def test_strategies(generator: Generator, strategy: str, targets: dict[str, Any]) -> None:
    made = generate(generator, targets, strategy=strategy)
    assert np.all(made.n_atoms <= 20)
    assert {name for name in made.columns if name.startswith("condition_")} == {
        f"condition_{name}" for name in (ENERGY if strategy == "default" else FULL)
    }


@pytest.mark.parametrize(
    "control",
    [
        Control(formula="LiFePO4", z=2),
        Control(elements=("Li", "Fe", "O")),
        Control(exclude=("O", "F")),
        Control(n_atoms=(4, 12)),
        Control(crystal_system="hexagonal"),
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["default", "less"])
def test_controls(generator: Generator, control: Control, strategy: str) -> None:
    made = generate(generator, ENERGY, strategy=strategy, control=control)
    for crystal in made:
        symbols = {SYMBOLS[z - 1] for z in crystal.species}
        assert not control.formula or formula_of(crystal.species) == "Li2O8P2Fe2"
        assert not control.elements or symbols <= set(control.elements)
        assert not symbols & set(control.exclude)
        assert control.n_atoms is None or control.n_atoms[0] <= len(crystal.species) <= control.n_atoms[1]
    if control.crystal_system:
        assert constrain(made.cells, control.crystal_system)[1].max() < 1e-6
        if strategy == "less":
            assert np.all(made.columns["condition_crystal_system"] == 5)


def test_the_same_at_another_batch(generator: Generator) -> None:
    whole = list(generator.generate(ENERGY, count=6, oversample=4, schedule=QUICK))
    pieces = list(generator.generate(ENERGY, count=6, oversample=4, schedule=QUICK, batch=2))
    assert np.array_equal(np.concatenate([part.frac for part in pieces]), whole[0].frac)
    assert np.array_equal(np.concatenate([part.species for part in pieces]), whole[0].species)
