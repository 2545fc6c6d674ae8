"""The resident loop on a CUDA device beside the host: the same bytes, of everything but the network.

The same tests run everywhere with another host in the device's stead, whose arrays begin as other bytes and whose work
is done three times before it counts as captured, so that a test which asks too much is found without a device.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from druse import Crystals, _native
from druse._cuda import CudaDevice, _Graph
from druse._device import Array, Device, HostDevice, Work
from druse._resident import CAPTURED, TOGETHER, Bucket
from druse._rooms import Shape
from druse.backends._ort import OrtCPU
from druse.bundle import Bundle, Network, Precision
from druse.errors import DeviceError, MissingDependencyError
from druse.noise import Purpose

MANIFEST = Bundle.embedded().con_cdvae
SHAPE = Shape(64, 512, 8192, 32)


class OtherHost(HostDevice):
    """The host as a device of another kind."""

    warm_ups = CudaDevice.warm_ups

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        array = super().empty(shape, dtype)
        self.fill(array, 0x5A)
        return array


@pytest.fixture(scope="module")
def cuda() -> CudaDevice:
    try:
        return CudaDevice()
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(f"no CUDA device: {error}")


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    return OtherHost() if request.param == "host" else request.getfixturevalue("cuda")  # type: ignore[no-any-return]


def is_captured(work: Work, device: Device) -> bool:
    return isinstance(work, _Graph) or not isinstance(device, CudaDevice)


class Constant(OrtCPU):
    """A backend whose network always gives the same: random numbers, which it copies to where its answer goes."""

    name = "constant"

    name, precision, typed, workers, fused, memory = "constant", "fp32", False, 1, False, 2**34

    def __init__(self, device: Device) -> None:
        super().__init__("fp32", 1)
        self.device: Device = device

    def prepare(
        self,
        content: bytes,
        network: Network,
        precision: Precision,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> Work:
        rng, pairs = np.random.default_rng(2), []
        for tensor in network.outputs:
            shape = shapes[tensor.name]
            kept = self.device.empty(shape, np.float32)
            self.device.upload(kept, rng.standard_normal(shape).astype(np.float32))
            pairs.append((Array(self.device, addresses[tensor.name], shape, np.float32), kept))

        def run() -> None:
            for answer, kept in pairs:
                self.device.copy(answer, kept.address)

        return run

    def load(self, content: bytes, network: Any, precision: Any) -> Any:
        raise NotImplementedError

    def describe(self) -> str:
        return "nothing"


def crystals(seed: int = 0, n: int = 40) -> Crystals:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 12, n)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    cells = np.cbrt(15.0 * counts)[:, None, None] * np.eye(3) + rng.uniform(-0.5, 0.5, (n, 3, 3))
    return Crystals(rng.random((offsets[-1], 3)), cells, offsets, rng.integers(1, 90, offsets[-1]).astype(np.int32))


def filled(device: Device, batch: Crystals, shape: Shape = SHAPE) -> Bucket:
    bucket = Bucket(Constant(device), b"", MANIFEST.decoder, "fp32", MANIFEST, shape)
    rng = np.random.default_rng(1)
    bucket.fill(batch, rng.standard_normal((len(batch), 128)).astype(np.float32), np.arange(7, 7 + len(batch)))
    return bucket


def arrays(bucket: Bucket) -> dict[str, np.ndarray]:
    """What an evaluation writes; edges that are not there have no image and no direction."""
    read = bucket.device.download
    found = {name: read(array) for name, array in bucket.network_arrays.items()}
    found |= {name: read(getattr(bucket, name)) for name in ("frac", "scaled", "met", "_degree", "_edge_offsets")}
    n_edges = int(found["_edge_offsets"][-1])
    return found | {"unit": read(bucket._unit)[:n_edges]}


def check(first: Bucket, second: Bucket) -> None:
    mine, wanted = arrays(first), arrays(second)
    for name, array in wanted.items():
        assert mine[name].tobytes() == array.tobytes(), name


def test_one_evaluation(device: Device) -> None:
    batch = crystals()
    bad = batch.cells.copy()
    bad[3] = 0.0
    for some in (batch, batch.replace(cells=bad)):
        buckets = [filled(one, some) for one in (device, HostDevice())]
        for bucket in buckets:
            bucket.at_level(11)
            bucket.evaluate()
        check(*buckets)
        assert is_captured(buckets[0]._ready["evaluate",], device)


@pytest.mark.parametrize("shape", [Shape(64, 512, 1024, 32), Shape(64, 512, 8192, 8)])
def test_a_graph_without_room(device: Device, shape: Shape) -> None:
    buckets = [filled(one, crystals(), shape) for one in (device, HostDevice())]
    for bucket in buckets:
        bucket.evaluate()
    check(*buckets)
    assert arrays(buckets[0])["met"].any()


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("name", [False, True])
def test_steps_in_place(device: Device, draw: bool, name: bool) -> None:
    buckets = [filled(one, crystals()) for one in (device, HostDevice())]
    for bucket in buckets:
        bucket.at_level(2)
        for first in (100, 300):
            bucket.step(
                2 * TOGETHER + 3, first=first, left=900, drift=0.01, diffusion=0.05, seed=2**63 + 5,
                purpose=Purpose.LANGEVIN, draw=draw, name=name,
            )  # fmt: skip
    check(*buckets)
    assert all(is_captured(work, device) for work in buckets[0]._ready.values())


def test_what_is_captured_for_many_seeds_does_not_add_up(device: Device) -> None:
    buckets = [filled(one, crystals(n=4), Shape(8, 64, 768, 32)) for one in (device, HostDevice())]
    for bucket in buckets:
        for seed in range(2 * CAPTURED):
            bucket.step(
                1, first=1, left=9, drift=0.01, diffusion=0.05, seed=seed, purpose=Purpose.LANGEVIN, draw=True,
                name=True,
            )  # fmt: skip
            bucket.evaluate()
        assert len(bucket._ready) == CAPTURED
        assert ("evaluate",) in bucket._ready, "it is used all the time"
    check(*buckets)


def test_a_move_and_sums_of_vectors(device: Device) -> None:
    found = []
    for one in (device, HostDevice()):
        bucket = filled(one, crystals())
        bucket.evaluate()
        vector = (bucket.scaled + 0.3 * bucket.scaled - bucket.copy(bucket.scaled) / 7.0) / 2
        states = [
            bucket.moved(bucket.frac, bucket.species, vector, drift=0.3, diffusion=diffusion, seed=3, step=5,
                         purpose=Purpose.CORRECTOR, name=True)
            for diffusion in (0.0, 0.2)
        ]  # fmt: skip
        bucket.draw_types(3, 17)
        n = len(crystals().frac)
        found.append([one.download(a)[:n].tobytes() for a in (vector, *states[0], *states[1], bucket.logits)])
    assert found[0] == found[1]


@pytest.mark.gpu
def test_what_waits_or_allocates_cannot_be_captured(cuda: CudaDevice) -> None:
    array = cuda.empty((1000,), np.float32)
    for forbidden in (
        cuda.wait,
        lambda: cuda.download(array),
        lambda: cuda.empty((12_345_678,), np.float32),
        lambda: cuda.upload(array, np.zeros(1000, np.float32)),
    ):
        with pytest.raises(DeviceError):
            cuda.capture(forbidden)
    work = cuda.capture(lambda: cuda.fill(array, 0))
    cuda.fill(array, 1)
    work()
    assert not cuda.download(array).any()


@pytest.mark.gpu
def test_a_capture_that_is_interrupted_leaves_the_device_usable(cuda: CudaDevice) -> None:
    array = cuda.empty((1000,), np.float32)

    def interrupted() -> None:
        cuda.fill(array, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda.capture(interrupted)
    cuda.fill(array, 0)
    assert not cuda.download(array).any()


@pytest.mark.gpu
def test_memory_comes_back(cuda: CudaDevice) -> None:
    cuda.trim()
    before = cuda.memory
    array = cuda.empty((2**28,), np.uint8)
    assert cuda.memory <= before - 2**27
    address = array.address
    del array
    again = cuda.empty((2**28,), np.uint8)
    assert again.address == address
    del again
    cuda.trim()
    assert cuda.memory > before - 2**24
    with pytest.raises(MemoryError):
        cuda.empty((2**50,), np.uint8)
    assert cuda.memory > before - 2**24


@pytest.mark.gpu
def test_the_library_knows_its_device(cuda: CudaDevice) -> None:
    assert _native.library().druse_cuda_devices() > 0
    assert cuda.name.startswith("cuda:0")
