"""The generator: the same crystals whatever the batch and the threads, controls that hold, and crystals that fail."""

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="bundles are made with PyTorch")

from druse import Control, Crystals, Generated, Generator, SamplingSchedule
from druse._graph import NON_FINITE, OUT_OF_MEMORY, SINGULAR
from druse.backends import OutOfMemoryError
from druse.bravais import constrain
from druse.elements import SYMBOLS, formula_of
from druse.errors import InputError
from druse.generate import Progress, Request
from druse.graphs import describe_status
from druse.model import Model, Score
from druse.schedules import SCHEDULES, sampling_schedule

QUICK = SamplingSchedule(method="ancestral", n_levels=4, n_steps=1)
GAP = {"band_gap": 2.0}


def all_of(batches: Any) -> Generated:
    """Batches of a run as one."""
    parts = list(batches)
    whole = Crystals.concatenate(parts)
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    ids, status = (np.concatenate([getattr(part, key) for part in parts]) for key in ("ids", "status"))
    return Generated(whole.frac, whole.cells, whole.offsets, whole.species, ids, status, columns)


def same(a: Generated, b: Generated) -> bool:
    arrays = ((a.frac, b.frac), (a.cells, b.cells), (a.species, b.species), (a.ids, b.ids), (a.status, b.status))
    return all(np.array_equal(x, y) for x, y in arrays) and all(
        np.array_equal(column, b.columns[name]) for name, column in a.columns.items()
    )


@pytest.fixture(scope="module")
def crystals(generator: Generator) -> Generated:
    return all_of(generator.generate(GAP, count=24, oversample=4, seed=5, schedule=QUICK))


def test_what_comes(crystals: Generated) -> None:
    assert len(crystals) == 24
    assert crystals.ids.tolist() == list(range(24))
    assert crystals.ok.sum() >= 20  # random weights make some cells that cannot be
    good = crystals.take(np.flatnonzero(crystals.ok))
    assert np.isfinite(good.frac).all()
    assert np.all((good.frac >= 0) & (good.frac < 1))
    assert good.species.min() >= 1
    assert all(np.all(np.diff(crystal.species) >= 0) for crystal in good)
    assert np.all((good.n_atoms >= 1) & (good.n_atoms <= 8))
    assert np.all(np.diff(crystals.columns["cost"]) >= 0)
    assert len(set(crystals.columns["latent"].tolist())) == 24
    assert crystals.columns["latent"].max() < 96
    assert crystals.columns["predicted_crystal_system"].shape == (24, 3)
    assert np.all(crystals.columns["condition_band_gap"] == 2.0)
    assert not crystals.columns["changed_composition"].any()


@pytest.mark.parametrize("batch", [1, 7, 24])
def test_the_same_at_any_batch(generator: Generator, crystals: Generated, batch: int) -> None:
    batches = list(generator.generate(GAP, count=24, oversample=4, seed=5, schedule=QUICK, batch=batch))
    assert [len(part) for part in batches] == [batch] * (24 // batch) + ([24 % batch] if 24 % batch else [])
    assert same(all_of(batches), crystals)


@pytest.mark.parametrize("control", [Control(crystal_system="cubic"), Control(elements=("Li", "Fe", "O"))], ids=str)
def test_the_same_under_control_at_any_batch(generator: Generator, control: Control) -> None:
    whole, pieces = (
        all_of(generator.generate(GAP, count=9, oversample=4, schedule=QUICK, control=control, batch=batch))
        for batch in (9, 1)
    )
    assert same(whole, pieces)


def test_the_same_on_any_number_of_threads(bundle_path: Path, crystals: Generated) -> None:
    for n_threads in (1, 3):
        other = Generator(bundle_path, n_threads=n_threads)
        assert same(all_of(other.generate(GAP, count=24, oversample=4, seed=5, schedule=QUICK)), crystals)


def test_another_seed_gives_others(generator: Generator, crystals: Generated) -> None:
    other = all_of(generator.generate(GAP, count=24, oversample=4, seed=6, schedule=QUICK))
    assert not np.array_equal(other.columns["predicted_band_gap"], crystals.columns["predicted_band_gap"])


def test_ranking_keeps_the_best(generator: Generator) -> None:
    """Against all latents, drawn and ranked by hand."""
    targets = {**GAP, "crystal_system": 1}
    request = Request(targets=targets, strategy="less", count=6, oversample=10, seed=2, schedule=QUICK)
    conditions = generator.check(request)
    every = generator.rank(msgspec.structs.replace(request, count=60, oversample=1), conditions)
    best = generator.rank(request, conditions)
    cost = np.abs(every.predicted["band_gap"].astype(np.float64) - 2.0) / 8.0
    cost += 1 - every.predicted["crystal_system"][:, 1]
    finite = np.isfinite(every.cost)
    assert np.allclose(every.cost[finite], cost[finite])
    order = np.lexsort((every.latent_ids, every.cost))[:6]
    assert np.array_equal(best.latent_ids, every.latent_ids[order])
    assert np.array_equal(best.z, every.z[order])
    assert set(every.values["n_atom"]) <= set(range(1, 9))


@pytest.mark.parametrize(
    "control",
    [
        Control(formula="LiO2"),
        Control(formula="LiO2", z=2),
        Control(elements=("Li", "Fe", "O")),
        Control(exclude=tuple(SYMBOLS[:60])),
        Control(n_atoms=(3, 4)),
        Control(crystal_system="tetragonal"),
        Control(elements=("Si", "C"), n_atoms=(2, 6), crystal_system="cubic"),
    ],
    ids=str,
)
def test_controls_hold(generator: Generator, control: Control) -> None:
    made = all_of(generator.generate(GAP, count=12, oversample=3, seed=1, schedule=QUICK, control=control))
    good = made.take(np.flatnonzero(made.ok))
    assert len(good) >= 8
    for crystal in good:
        if control.formula:
            assert formula_of(crystal.species) in (["Li2O4"] if control.z else ["LiO2", "Li2O4"])
        symbols = {SYMBOLS[z - 1] for z in crystal.species}
        assert not control.elements or symbols <= set(control.elements)
        assert not symbols & set(control.exclude)
        if control.n_atoms:
            assert control.n_atoms[0] <= len(crystal.species) <= control.n_atoms[1]
    if control.crystal_system:
        assert constrain(good.cells, control.crystal_system)[1].max() < 1e-6
        assert good.columns["changed_lattice"].any()
    else:
        assert not good.columns["changed_lattice"].any()
    if control.formula or control.elements or control.exclude:
        assert made.columns["changed_composition"].any()
    if control.n_atoms == (3, 4) or control.formula:
        assert made.columns["changed_n_atoms"].any()


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "faithful"])
def test_every_named_schedule_runs(generator: Generator, schedule: str) -> None:
    made = all_of(generator.generate(GAP, count=4, oversample=2, schedule=schedule))
    assert made.ok.any()


def test_every_strategy_runs(generator: Generator) -> None:
    full = {**GAP, "crystal_system": "cubic", "n_atom": 4}
    for targets, strategy in ((GAP, "default"), (full, "full"), (GAP, "less"), ({}, "auto")):
        made = all_of(generator.generate(targets, count=4, oversample=2, strategy=strategy, schedule=QUICK))
        assert len(made) == 4
        assert ("condition_n_atom" in made.columns) == (strategy != "default")


def test_progress(generator: Generator) -> None:
    told: list[Progress] = []
    all_of(generator.generate(GAP, count=20, oversample=2, schedule=QUICK, progress=told.append, batch=5))
    stages = [entry.stage for entry in told]
    assert stages == sorted(stages, reverse=True)  # latents before crystals
    for stage, total in (("latents", 40), ("crystals", 20)):
        done = [entry.done for entry in told if entry.stage == stage]
        assert done == sorted(done)
        assert done[-1] == pytest.approx(total)
        assert {entry.total for entry in told if entry.stage == stage} == {total}


class Failing(Model):
    """A score network of which some crystals' numbers are not finite, and which has no memory for many at once."""

    def score(self, crystals: Any, *args: Any, **options: Any) -> Any:
        if len(crystals) > 3:
            raise OutOfMemoryError("for a test")
        scaled, logits, status = super().score(crystals, *args, **options)
        sick = np.repeat(crystals.n_atoms % 2 == 1, crystals.n_atoms)
        scaled = np.where(sick[:, None], np.float32(np.nan), scaled)
        return Score(scaled, logits, status)


def test_a_failing_crystal_is_marked_and_the_others_are_as_they_were(bundle_path: Path, crystals: Generated) -> None:
    """And a bin without memory is cut in half."""
    generator = Generator(bundle_path, n_threads=2)
    generator.model.__class__ = Failing
    made = all_of(generator.generate(GAP, count=24, oversample=4, seed=5, schedule=QUICK))
    sick = (made.n_atoms % 2 == 1) & crystals.ok
    assert sick.any()
    assert np.all(made.status[sick] & NON_FINITE)
    assert not made.ok[sick].any()
    well = np.flatnonzero(~sick & crystals.ok)
    assert same(made.take(well), crystals.take(well))


class Hungry(Model):
    """A score network that has no memory for more than three crystals at once, and none for one of six atoms."""

    def score(self, crystals: Any, *args: Any, **options: Any) -> Any:
        if len(crystals) > 3 or 6 in crystals.n_atoms:
            raise MemoryError("for a test")
        return super().score(crystals, *args, **options)


def test_a_crystal_that_does_not_fit_in_memory_is_marked_and_the_others_are_as_they_were(
    bundle_path: Path, crystals: Generated
) -> None:
    generator = Generator(bundle_path, n_threads=2)
    generator.model.__class__ = Hungry
    told: list[Progress] = []
    made = all_of(generator.generate(GAP, count=24, oversample=4, seed=5, schedule=QUICK, progress=told.append))
    large = (made.n_atoms == 6) & crystals.ok
    assert large.any()
    assert np.all(made.status[large] == OUT_OF_MEMORY)
    assert describe_status(int(made.status[large][0])) == ["there is too little memory for it alone"]
    assert not made.ok[large].any()
    assert not made.columns["changed_composition"][large].any()
    assert told[-1].done == 24
    well = np.flatnonzero(~large)
    assert same(made.take(well), crystals.take(well))


def test_ranking_goes_on_from_any_block(generator: Generator) -> None:
    request = Request(targets=GAP, count=50, oversample=300, seed=2, schedule=QUICK)
    conditions = generator.check(request)
    whole = list(generator.ranking(request, conditions))
    assert [part.drawn for part in whole] == [4096, 8192, 12288, 15000]
    for k in (0, 2, 3):
        told: list[Progress] = []
        rest = list(generator.ranking(request, conditions, after=whole[k], progress=told.append))
        assert [part.drawn for part in rest] == [part.drawn for part in whole[k + 1 :]]
        assert [entry.done for entry in told] == [part.drawn for part in whole[k:]]
        for mine, theirs in zip(rest, whole[k + 1 :], strict=True):
            assert np.array_equal(mine.best.latent_ids, theirs.best.latent_ids)
            assert np.array_equal(mine.best.z, theirs.best.z)
    assert np.array_equal(generator.rank(request, conditions).latent_ids, whole[-1].best.latent_ids)


def test_an_impossible_cell_is_marked(generator: Generator) -> None:
    made = all_of(generator.generate({}, count=200, oversample=1, schedule=QUICK, control=Control(n_atoms=(1, 1))))
    assert np.all(made.status[~made.ok] == SINGULAR)
    assert not made.columns["changed_lattice"].any()


def test_stopping_half_way_ends_the_threads(generator: Generator) -> None:
    batches = generator.generate(GAP, count=64, oversample=1, schedule=QUICK, batch=2)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("druse-sample")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "`count` must be a whole number from 1 up, got 0"),
        ({"count": 4, "oversample": 0}, "`oversample`"),
        ({"count": 4, "seed": -1}, "`seed`"),
        ({"count": 4, "schedule": "quick"}, "`schedule` must be one of faithful"),
        ({"count": 4, "control": Control(n_atoms=(9, 9))}, "at most 8"),
        ({"count": 4, "strategy": "full"}, "it needs crystal_system, n_atom too"),
    ],
)
def test_bad_requests_are_told_before_anything_runs(
    generator: Generator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generator.generate(GAP, **options)


@pytest.mark.parametrize(
    "control",
    [
        {"n_atoms": 5},
        {"n_atoms": (5,)},
        {"n_atoms": (4.0, 6.0)},
        {"n_atoms": "46"},
        {"elements": None},
        {"elements": "LiO"},
        {"formula": None},
        {"z": "2", "formula": "LiO"},
    ],
)
def test_controls_of_other_types_are_refused(control: dict[str, Any]) -> None:
    """msgspec looks at what is read, not at what is made: such a run could begin and not be opened again."""
    with pytest.raises(InputError, match=r"`control` of a request cannot be used: Expected"):
        Request(targets={}, count=1, control=Control(**control))


def test_what_is_meant_is_taken_as_a_file_would_give_it_back() -> None:
    lists = Control(elements=["Li", "O"], n_atoms=[np.int64(4), 6])  # type: ignore[arg-type]
    request = Request(targets={"band_gap": np.array(2.0)}, count=1, control=lists)  # type: ignore[dict-item]
    assert request == msgspec.json.decode(msgspec.json.encode(request), type=Request)
    assert request.control == Control(elements=("Li", "O"), n_atoms=(4, 6))
    for value, message in ((None, "got `null`"), (np.ones(2), "got a ndarray"), (True, "got `bool`")):
        with pytest.raises(InputError, match=rf"`targets` of a request cannot be used: .*{message}"):
            Request(targets={"band_gap": value}, count=1)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="`schedule` must be one of faithful"):
        sampling_schedule(["faithful"])
    for schedule in (SamplingSchedule(method="quick"), SamplingSchedule(method="ancestral", n_steps=1.5)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="`schedule` of a request cannot be used"):
            Request(targets={}, count=1, schedule=schedule)
