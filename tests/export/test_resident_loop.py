"""The resident loop with the host as its device: the crystals of the ordinary way, to the byte."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="bundles are made with PyTorch")

from druse import Control, Crystals, Generated, Generator, SamplingSchedule, _rooms
from druse._device import Array, HostDevice
from druse._graph import EDGE_OVERFLOW, NON_FINITE
from druse._rooms import Room, Shape
from druse.backends import ResidentBackend, open_backend
from druse.bundle import Bundle
from druse.errors import InputError
from druse.model import Model
from druse.schedules import SCHEDULES
from druse_export.bundles.reference import random_crystals

QUICK = SamplingSchedule(method="ancestral", n_levels=4, n_steps=1)
GAP = {"band_gap": 2.0}

WAYS: dict[str, SamplingSchedule] = {
    **{name: schedule for name, schedule in SCHEDULES.items() if name != "faithful"},
    "faithful, shorter": SamplingSchedule(method="langevin", n_steps=11, n_levels=3, draw_types=False, denoise=False),
    "types drawn to the end": SamplingSchedule(method="langevin", n_steps=11, n_levels=2, denoise=False),
    "one step a level": SamplingSchedule(method="langevin", n_steps=1, denoise=False),
    "correctors": SamplingSchedule(method="ancestral", n_levels=3, n_steps=9),
}


def on(bundle: Path, backend: str) -> Generator:
    """All networks in ONNX Runtime: the native score network has another order of sums."""
    opened = open_backend(backend, n_threads=2)
    opened.fused = False
    return Generator(bundle, backend=opened)


@pytest.fixture(scope="module")
def ordinary(bundle_path: Path) -> Generator:
    return on(bundle_path, "ort-cpu")


@pytest.fixture(scope="module")
def resident(bundle_path: Path) -> Generator:
    return on(bundle_path, "ort-host")


def all_of(batches: Any) -> Generated:
    parts = list(batches)
    whole = Crystals.concatenate(parts)
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    ids, status = (np.concatenate([getattr(part, key) for part in parts]) for key in ("ids", "status"))
    return Generated(whole.frac, whole.cells, whole.offsets, whole.species, ids, status, columns)


def same(a: Generated, b: Generated) -> None:
    for name in ("frac", "cells", "offsets", "species", "ids", "status"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    for name, column in a.columns.items():
        np.testing.assert_array_equal(column, b.columns[name], name)


def test_what_it_is(resident: Generator, ordinary: Generator) -> None:
    assert isinstance(resident.model.backend, ResidentBackend)
    assert not isinstance(ordinary.model.backend, ResidentBackend)
    assert ordinary.model.devices is None


@pytest.mark.parametrize("name", WAYS)
def test_every_schedule(ordinary: Generator, resident: Generator, name: str) -> None:
    options: dict[str, Any] = {"count": 8, "oversample": 3, "seed": 5, "schedule": WAYS[name]}
    first, second = (all_of(one.generate(GAP, **options)) for one in (ordinary, resident))
    same(first, second)
    assert first.ok.any()


@pytest.mark.parametrize(
    "control",
    [
        Control(formula="LiO2"),
        Control(elements=("Li", "Fe", "O")),
        Control(n_atoms=(3, 4)),
        Control(elements=("Si", "C"), n_atoms=(2, 6), crystal_system="cubic"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["predictor-corrector", "correctors", "heun"])
def test_every_control(ordinary: Generator, resident: Generator, control: Control, name: str) -> None:
    options: dict[str, Any] = {"count": 8, "oversample": 3, "seed": 1, "schedule": WAYS[name], "control": control}
    first, second = (all_of(one.generate(GAP, **options)) for one in (ordinary, resident))
    same(first, second)


@pytest.mark.parametrize("largest", [300, 2**19])
def test_at_any_batch_and_bucket(resident: Generator, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"count": 24, "oversample": 2, "seed": 5, "schedule": QUICK}
    whole = all_of(resident.generate(GAP, **options))
    monkeypatch.setattr(_rooms, "LARGEST", largest)
    batches = list(resident.generate(GAP, **options, batch=5))
    assert [len(part) for part in batches] == [5, 5, 5, 5, 4]
    same(all_of(batches), whole)


def test_a_graph_without_room_goes_again_with_more(
    resident: Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"count": 24, "oversample": 2, "seed": 5, "schedule": QUICK}
    whole = all_of(resident.generate(GAP, **options))
    monkeypatch.setattr(_rooms, "_PER_ATOM", 0.15)
    monkeypatch.setattr(_rooms, "_DEGREE", 0.6)
    with caplog.at_level("INFO"):
        same(all_of(resident.generate(GAP, **options)), whole)
    assert "had graphs too large for their bucket; again, Room(edges=2, crowded=1)" in caplog.text


def test_a_graph_that_never_finds_room_is_told(resident: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "is_last", True)
    monkeypatch.setattr(_rooms, "_PER_ATOM", 0.15)
    made = all_of(resident.generate(GAP, count=60, oversample=1, seed=5, schedule=QUICK))
    assert np.any(made.status & EDGE_OVERFLOW)
    assert not made.ok[(made.status & EDGE_OVERFLOW) != 0].any()


def test_one_bad_crystal_harms_no_other(resident: Generator) -> None:
    model, rng = resident.model, np.random.default_rng(3)
    crystals = random_crystals(rng, 12)
    latent = rng.standard_normal((12, 128)).astype(np.float32)
    good = model.score(crystals, None, 3, latent=latent)
    cells, bad = crystals.cells.copy(), latent.copy()
    cells[2], bad[5] = 0.0, np.nan
    found = model.score(crystals.replace(cells=cells), None, 3, latent=bad)
    atoms = [slice(crystals.offsets[b], crystals.offsets[b + 1]) for b in range(12)]
    assert found.status[2] != 0
    assert not found.scaled[atoms[2]].any()
    assert np.isnan(found.logits[atoms[5]]).all()
    for b in set(range(12)) - {2, 5}:
        assert found.scaled[atoms[b]].tobytes() == good.scaled[atoms[b]].tobytes()
        assert found.logits[atoms[b]].tobytes() == good.logits[atoms[b]].tobytes()


def test_the_score_is_that_of_the_ordinary_way(resident: Generator, ordinary: Generator) -> None:
    rng = np.random.default_rng(4)
    crystals, levels = random_crystals(rng, 20), np.arange(20) % 8
    latent = rng.standard_normal((20, 128)).astype(np.float32)
    mine, wanted = (one.model.score(crystals, None, levels, latent=latent) for one in (resident, ordinary))
    assert [a.tobytes() for a in mine] == [a.tobytes() for a in wanted]
    none = resident.model.score(Crystals.concatenate([]), None, 0, latent=latent[:0])
    assert none.scaled.shape == (0, 3)


def test_numbers_that_are_not_finite_stop_a_crystal(bundle_path: Path) -> None:
    """As on the ordinary way: its state stays, its status says so."""
    one, other = on(bundle_path, "ort-cpu"), on(bundle_path, "ort-host")
    for generator in (one, other):
        project = generator.model.project

        def sick(z_con: Any, project: Any = project) -> np.ndarray:
            latent = project(z_con)
            latent[::3] = np.nan
            return latent

        generator.model.project = sick  # type: ignore[method-assign]
    first, second = (all_of(g.generate(GAP, count=9, oversample=2, schedule=QUICK)) for g in (one, other))
    same(first, second)
    assert np.any(first.status & NON_FINITE)


class Cramped(HostDevice):
    """A device that holds arrays of so many bytes at most."""

    largest = 2**62

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize > self.largest:
            raise MemoryError("for a test")
        return super().empty(shape, dtype)


def test_memory_that_runs_out_halves_the_bins(
    bundle_path: Path, resident: Generator, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"count": 24, "oversample": 2, "seed": 5, "schedule": QUICK}
    cramped = on(bundle_path, "ort-host")
    device = Cramped()
    device.largest = 2_000_000
    cramped.model.backend.device = device  # type: ignore[misc]
    with caplog.at_level("INFO"):
        made = all_of(cramped.generate(GAP, **options))
    same(made, all_of(resident.generate(GAP, **options)))
    assert "need more memory than there is; in two halves" in caplog.text


def test_progress_and_stopping(resident: Generator) -> None:
    told: list[float] = []
    all_of(
        resident.generate(
            GAP, count=8, oversample=1, schedule=WAYS["correctors"], progress=lambda p: told.append(p.done)
        )
    )
    assert told[-1] == pytest.approx(8)
    assert len(told) > 20
    batches = resident.generate(GAP, count=64, oversample=1, schedule=QUICK, batch=2)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("druse-sample")]


@pytest.mark.usefixtures("as_users_call")
def test_what_cannot_be_asked(resident: Generator, ordinary: Generator) -> None:
    crystals = random_crystals(np.random.default_rng(0), 2)
    graph = _resident_graph(ordinary, crystals)
    with pytest.raises(InputError, match="`graph` cannot be given on the backend ort-host"):
        resident.model.score(crystals, None, 0, latent=np.zeros((2, 128), np.float32), graph=graph)


def _resident_graph(generator: Generator, crystals: Crystals) -> Any:
    from druse._score import spec_graph

    return spec_graph(crystals, generator.model.manifest.graph)


def test_room() -> None:
    manifest = Bundle.embedded().con_cdvae
    assert Shape.of(100, 1000, manifest, Room()) == (128, 1024, 11328, 32)
    assert Shape.of(127, 1023, manifest, Room(2, 1)) == (128, 1024, 22656, 40)
    assert Shape.of(127, 1023, manifest, Room(1, 20))[3] == 2776
    assert Shape.of(128, 1024, manifest, Room())[:2] == (256, 1152)
    assert Shape.of(1000, 10_000, manifest, Room()) == (1024, 10_240, 112_704, 32)
    assert Shape.of(1, 1, manifest, Room()) == (8, 64, 768, 32)
    assert Room().more(np.array([0, EDGE_OVERFLOW], np.uint32)) == (2, 0)


@given(st.integers(1, 200_000))
def test_an_eighth_stays_empty_at_most(n_atoms: int) -> None:
    manifest = Bundle.embedded().con_cdvae
    shape = Shape.of(n_atoms // 10, n_atoms, manifest, Room())
    assert 0 < shape.atoms - n_atoms <= max(64, n_atoms / 8 + 1)
    assert shape.atoms % 64 == shape.edges % 64 == 0
    assert shape.edges <= 11 * shape.atoms + 104


def test_few_sizes() -> None:
    manifest = Bundle.embedded().con_cdvae
    sizes = {Shape.of(1, n, manifest, Room())[1:] for n in range(1, 2**14)}
    assert len(sizes) == 8 + 5 * 8  # multiples of 64 up to 512, then eight to each power of two


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=3000),
    st.sampled_from([2**17, 4000, 300]),
    st.sampled_from([2**24, 2**28, 2**36]),
)
@settings(max_examples=30)
def test_bins_fill_buckets(counts: list[int], largest: int, memory: int) -> None:
    manifest, n_atoms = Bundle.embedded().con_cdvae, np.array(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rooms, "LARGEST", largest)
        bins, most = _rooms.bins(n_atoms, manifest, memory), _rooms.most_atoms(manifest, memory)
    assert [b for piece in bins for b in piece] == list(range(len(counts)))
    filled = [(int(n_atoms[piece.start : piece.stop].sum()), len(piece)) for piece in bins]
    shapes = [Shape.of(some, n, manifest, Room()) for n, some in filled]
    assert max(shape.atoms for shape in shapes) <= max(most, 64)
    assert all(shape.edges <= max(largest, 768) for shape in shapes)
    assert len({shape.atoms for shape in shapes[:-1]}) <= 1
    assert all(shape.atoms - n <= n_atoms.max() for (n, _), shape in zip(filled[:-1], shapes[:-1], strict=True))
    assert len(bins) <= -(-sum(counts) // max(1, most - 1 - n_atoms.max()))


def test_bins_of_large_runs() -> None:
    manifest, counts = Bundle.embedded().con_cdvae, np.full(50_000, 12)
    assert 800 < len(_rooms.bins(counts, manifest, 80 * 2**30)[0]) < 1000
    assert len(_rooms.bins(counts, manifest, 2**30)[0]) < 200


def test_a_model_on_the_host_as_a_device_verifies(bundle_path: Path) -> None:
    model = Model.open(bundle_path, backend="ort-host")
    assert model.walkers == 1
    whole, skipping = (model.together(SCHEDULES[name]) for name in ("faithful", "ancestral"))
    assert 1000 < whole < skipping
