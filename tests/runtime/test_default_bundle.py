"""The bundle that comes with Druse: it is whole, gives what it gave when it was built, and generates."""

from importlib import resources

import numpy as np
import pytest

from druse import Bundle, Control, Crystals, Generated, Generator, SamplingSchedule
from druse.backends import open_backend
from druse.elements import formula_of
from druse.validity import structural_faults
from druse.verify import verify

ENERGY = "formation_energy_per_atom"
QUICK = SamplingSchedule(method="ancestral", n_levels=15, skip=0.5)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.embedded()


@pytest.fixture(scope="module")
def generator(bundle: Bundle) -> Generator:
    return Generator(bundle, n_threads=2)


def test_it_is_small_and_says_where_it_comes_from(bundle: Bundle) -> None:
    assert len((resources.files("druse") / "data" / "default.zip").read_bytes()) < 25e6
    assert bundle.path == ""
    manifest = bundle.con_cdvae
    assert set(manifest.priors) == {"default", "full"}
    assert manifest.provenance.source == "trained"
    assert manifest.provenance.steps
    assert "CC BY 4.0" in manifest.licence
    # the marks that it was shipped at
    figures = manifest.provenance.figures
    assert figures["coordinates"] <= 0.80
    assert figures["n_atoms_accuracy"] >= 0.70
    assert figures["type_accuracy"] >= 0.80
    assert figures["property"] <= 0.005


def test_it_gives_what_it_gave(bundle: Bundle) -> None:
    deviations = list(verify(bundle, open_backend("ort-cpu", n_threads=2)))
    assert deviations
    assert all(deviation.ok for deviation in deviations)


def good(generator: Generator, **options: object) -> Generated:
    parts = list(generator.generate(count=6, oversample=10, schedule=QUICK, **options))  # type: ignore[arg-type]
    (made,) = (part.take(np.flatnonzero(part.ok)) for part in parts)
    assert len(made) == 6
    assert structural_faults(Crystals.concatenate([made])).count("") >= 5
    return made


def test_targets(generator: Generator) -> None:
    means = []
    for target in (0.0, -1.0, -2.0, -3.0):
        made = good(generator, targets={ENERGY: target})
        means.append(made.columns[f"predicted_{ENERGY}"].mean())
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    "targets",
    [
        {},
        {ENERGY: -1.0, "crystal_system": "cubic"},
        {ENERGY: -2.0, "crystal_system": "cubic", "spacegroup": 225, "band_gap": 3.0, "e_above_hull": 0.0, "n_atom": 4},
    ],
    ids=["nothing", "less", "full"],
)
def test_strategies(generator: Generator, targets: dict[str, float | int | str]) -> None:
    made = good(generator, targets=targets)
    for name, value in targets.items():
        if not isinstance(value, str):
            assert np.allclose(made.columns[f"condition_{name}"], value)


@pytest.mark.parametrize(
    "control",
    [
        Control(formula="LiFePO4", z=2),
        Control(elements=("Na", "Cl")),
        Control(crystal_system="hexagonal", n_atoms=(2, 6)),
    ],
    ids=str,
)
def test_controls(generator: Generator, control: Control) -> None:
    for crystal in good(generator, targets={ENERGY: -1.5}, control=control):
        if control.formula:
            assert formula_of(crystal.species) == "Li2O8P2Fe2"
        if control.elements:
            assert set(crystal.species.tolist()) <= {11, 17}
