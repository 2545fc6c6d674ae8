"""NVIDIA's driver through ctypes: which devices answer. No CUDA toolkit is needed to ask it."""

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t
from typing import Any, NamedTuple

from druse.errors import DeviceError

LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE; this and the numbers below are those of cuda.h
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class Gpu(NamedTuple):
    """A device as the driver knows it.

    Attributes:
        number: as in ``cuda:NUMBER``, counted as CUDA_VISIBLE_DEVICES leaves them.
        name: of the model, or of a part of one (MIG).
        capability: compute capability, such as (9, 0).
        memory: bytes, free or not.
    """

    number: int
    name: str
    capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}, {self.memory / 2**30:.0f} GiB"


def gpus(library: str = LIBRARY) -> tuple[Gpu, ...]:
    """Every device that answers.

    Args:
        library: of the driver.

    Raises:
        DeviceError: there is no driver, or it does not work.
    """
    driver = _opened(library)
    result = driver.cuInit(0)
    if result == _NO_DEVICE:
        return ()
    _check(driver, "cuInit", result)
    count = c_int()
    _ask(driver, "cuDeviceGetCount", byref(count))
    return tuple(_device(driver, number) for number in range(count.value))


def cuda_version(library: str = LIBRARY) -> tuple[int, int]:
    """The newest CUDA that the driver knows, such as (12, 8); what was built for a later major version does not run.

    Args:
        library: of the driver.

    Raises:
        DeviceError: there is no driver, or it does not work.
    """
    version = c_int()
    _ask(_opened(library), "cuDriverGetVersion", byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _opened(library: str) -> Any:
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise DeviceError(f"this machine has no NVIDIA driver ({library} cannot be loaded)") from error


def _ask(driver: Any, function: str, *arguments: Any) -> None:
    _check(driver, function, getattr(driver, function)(*arguments))


def _check(driver: Any, function: str, result: int) -> None:
    if result == 0:
        return
    text = c_char_p()
    driver.cuGetErrorString(result, byref(text))
    said = text.value.decode(errors="replace") if text.value else f"error {result}"
    raise DeviceError(f"the NVIDIA driver does not work ({function}: {said}); check nvidia-smi")


def _device(driver: Any, number: int) -> Gpu:
    handle, major, minor, memory = c_int(), c_int(), c_int(), c_size_t()
    name = ctypes.create_string_buffer(256)
    _ask(driver, "cuDeviceGet", byref(handle), number)
    _ask(driver, "cuDeviceGetName", name, len(name), handle)
    _ask(driver, "cuDeviceGetAttribute", byref(major), _CAPABILITY_MAJOR, handle)
    _ask(driver, "cuDeviceGetAttribute", byref(minor), _CAPABILITY_MINOR, handle)
    _ask(driver, "cuDeviceTotalMem_v2", byref(memory), handle)
    return Gpu(number, name.value.decode(errors="replace"), (major.value, minor.value), memory.value)
