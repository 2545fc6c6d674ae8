"""Several devices, some of which fail: the crystals of one, or an error that says how to go on."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="bundles are made with PyTorch")

from druse import Generated, Generator, SamplingSchedule, _rooms
from druse._device import HostDevice
from druse._request import Request
from druse.backends import BACKENDS, open_backends
from druse.bundle import Bundle
from druse.errors import DeviceError, InputError
from druse.model import Model
from druse.runs import Run
from druse_export.bundles.reference import random_crystals

SCHEDULES = {
    "ancestral": SamplingSchedule(method="ancestral", n_levels=12, n_steps=1),
    "langevin": SamplingSchedule(method="langevin", n_steps=11, n_levels=2),
}
OPTIONS: dict[str, Any] = {"count": 64, "oversample": 2, "seed": 5, "schedule": SCHEDULES["ancestral"], "batch": 5}
GAP = {"band_gap": 2.0}


class Failing(HostDevice):
    """A device that answers nothing any more after so many waits."""

    def __init__(self, index: int, waits: int) -> None:
        super().__init__(index)
        self.waits, self.asked_after = waits, 0

    def mark(self) -> "Failing":
        return self

    def wait(self) -> None:
        self.waits -= 1
        if self.waits < 0:
            self.asked_after += 1
            raise DeviceError("it has fallen off the bus")


@pytest.fixture(autouse=True)
def small_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rooms, "LARGEST", 500)


def on(bundle: Path, n_devices: int, failing: dict[int, int] | None = None) -> Generator:
    """The host as so many devices; some fail after so many waits."""
    backends: Any = open_backends("ort-host", [f"host:{n}" for n in range(n_devices)], n_threads=2)
    for index, waits in (failing or {}).items():
        backends[index].device = Failing(index, waits)
    generator = Generator(bundle, backend=backends[0])
    generator.model = Model(generator.bundle, *backends)
    return generator


def bytes_of(parts: list[Generated]) -> list[bytes]:
    return [getattr(p, name).tobytes() for p in parts for name in ("ids", "frac", "species", "cells", "status")]


@pytest.fixture(scope="module")
def one(bundle_path: Path) -> dict[str, list[bytes]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rooms, "LARGEST", 500)
        made = {
            name: list(on(bundle_path, 1).generate(GAP, **(OPTIONS | {"schedule": schedule})))
            for name, schedule in SCHEDULES.items()
        }
    assert all(any(part.ok.any() for part in parts) for parts in made.values())
    return {name: bytes_of(parts) for name, parts in made.items()}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_devices", [2, 3])
def test_the_same_crystals_on_any_number(
    bundle_path: Path, one: dict[str, list[bytes]], n_devices: int, schedule: str
) -> None:
    generator = on(bundle_path, n_devices)
    made = list(generator.generate(GAP, **(OPTIONS | {"schedule": SCHEDULES[schedule]})))
    assert bytes_of(made) == one[schedule]
    assert generator.model.devices is not None
    assert all(resident._buckets for resident in generator.model.devices.residents), "each had a bin"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("failing", [{0: 0}, {1: 3}, {0: 3, 2: 1}], ids=str)
def test_others_take_the_bin_of_one_that_fails(
    bundle_path: Path, one: dict[str, list[bytes]], failing: dict[int, int], schedule: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    generator = on(bundle_path, 3, failing)
    made = list(generator.generate(GAP, **(OPTIONS | {"schedule": SCHEDULES[schedule]})))
    assert bytes_of(made) == one[schedule]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == len(failing), said
    assert all("failed; its crystals go to the" in text and "fallen off the bus" in text for text in said)
    devices = generator.model.devices
    assert devices is not None
    for index in failing:
        device = devices.residents[index].device
        assert isinstance(device, Failing)
        assert device.asked_after == 1, "it is left alone"


@pytest.mark.parametrize("n_devices", [1, 3])
def test_the_last_one_fails_and_the_run_goes_on_later(
    bundle_path: Path, one: dict[str, list[bytes]], n_devices: int, tmp_path: Path
) -> None:
    enough = 10_000
    whole = on(bundle_path, 1, {0: enough})
    list(whole.generate(GAP, **OPTIONS))
    assert whole.model.resident is not None
    assert isinstance(whole.model.resident.device, Failing)
    waits = (enough - whole.model.resident.device.waits) * 3 // 4 // n_devices
    generator = on(bundle_path, n_devices, dict.fromkeys(range(n_devices), waits))
    request = Request(targets=GAP, **OPTIONS)
    run = Run.create(tmp_path / "run", generator, request)
    with pytest.raises(DeviceError, match=r"no device is left to sample on: host:.*fallen off the bus.*druse resume"):
        run.finish(generator)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("druse-sample")]
    finished = run.finished
    assert 0 < finished < request.count
    with pytest.raises(DeviceError, match="no device is left"):
        run.finish(generator)
    assert run.finished == finished
    again = Run.open(run.path)
    again.finish(again.generator(devices=("host:4", "host:1")))
    assert bytes_of(list(again.generated())) == one["ancestral"]


def test_scores_from_several(bundle_path: Path) -> None:
    rng = np.random.default_rng(4)
    crystals, levels = random_crystals(rng, 60), np.arange(60) % 8
    latent = rng.standard_normal((60, 128)).astype(np.float32)
    found = [
        on(bundle_path, *how).model.score(crystals, None, levels, latent=latent)  # type: ignore[arg-type]
        for how in ((1,), (2,), (3, {1: 0}))
    ]
    for mine in found[1:]:
        assert [a.tobytes() for a in mine] == [a.tobytes() for a in found[0]]


def test_stopping(bundle_path: Path) -> None:
    batches = on(bundle_path, 3).generate(GAP, **OPTIONS)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("druse-sample")]


def test_models_that_share_a_backend_take_turns(bundle_path: Path) -> None:
    (backend,) = open_backends("ort-host", ["host:0"], n_threads=1)
    first, second = (Model.open(bundle_path, backend=backend).resident for _ in range(2))
    assert first is not None
    assert second is not None
    entered = threading.Event()

    def other() -> None:
        with second.lock:
            entered.set()

    thread = threading.Thread(target=other)
    with first.lock:
        thread.start()
        assert not entered.wait(0.2), "one queue, one thread"
    thread.join()
    assert entered.is_set()


def test_devices_by_name(bundle_path: Path) -> None:
    model = Generator(bundle_path, backend="ort-host", devices=["host:2", "host:7"]).model
    assert model.devices is not None
    assert [resident.device.name for resident in model.devices.residents] == ["host:2", "host:7"]
    assert model.walkers == 2
    assert len(Model.open(bundle_path, backend="ort-host").devices or ()) == 1


@pytest.mark.parametrize(
    ("backend", "devices", "sentence"),
    [
        (
            "ort-cpu",
            ["host:0"],
            "`devices` are for ort-cuda, ort-host, ort-tensorrt, tensorrt, tensorrt-rtx; leave them out for ort-",
        ),
        ("ort-host", ["cuda:0"], "`devices` of ort-host must be different ones such as host:0 and host:1, got cuda:0"),
        ("ort-host", ["host:0", "host:00"], "must be different ones such as host:0 and host:1, got host:0, host:00"),
        ("ort-host", ["host"], "got host"),
        ("ort-host", ["host:-1"], "got host:-1"),
        ("auto", ["host:0"], "`devices` of ort-cuda must be different ones such as cuda:0 and cuda:1, got host:0"),
        ("ort", ["host:0"], "`backend` must be auto or one of"),
    ],
)
def test_devices_that_cannot_be(backend: str, devices: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        open_backends(backend, devices)
    assert sentence in str(caught.value)


def test_devices_of_an_open_backend() -> None:
    with pytest.raises(InputError, match="give its name"):
        Model.open(Bundle.embedded(), backend=BACKENDS["ort-host"]("fp32", 1), devices=["host:0"])
