"""What is asked of NVIDIA's driver, and how: by a library that answers as one with two devices does."""

import shutil
import subprocess
from pathlib import Path

import pytest

from druse._driver import cuda_version, gpus
from druse.errors import DeviceError

DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
int cuGetErrorString(int error, const char **text) { *text = error == 999 ? "unknown error" : NULL; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 40 ? "GPU A" : "GPU B", (size_t)size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? device - 40 : -1;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 39) << 36; return 0; }
"""


def driver(folder: Path, *, initialised: int = 0) -> str:
    """The path of such a library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, for a library that answers as the driver does")
    source, made = folder / "driver.c", folder / f"driver{initialised}.so"
    source.write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", f"-DINIT={initialised}", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return str(made)


def test_devices(tmp_path: Path) -> None:
    library = driver(tmp_path)
    first, second = gpus(library)
    assert first == (0, "GPU A", (9, 0), 2**36)
    assert second == (1, "GPU B", (9, 1), 2**37)
    assert str(second) == "GPU B, compute capability 9.1, 128 GiB"
    assert cuda_version(library) == (12, 8)


def test_no_device(tmp_path: Path) -> None:
    assert gpus(driver(tmp_path, initialised=100)) == ()


def test_a_driver_that_does_not_work(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"does not work \(cuInit: unknown error\); check nvidia-smi"):
        gpus(driver(tmp_path, initialised=999))
    with pytest.raises(DeviceError, match=r"does not work \(cuInit: error 34\)"):
        gpus(driver(tmp_path, initialised=34))


def test_no_driver() -> None:
    with pytest.raises(DeviceError, match=r"this machine has no NVIDIA driver \(libnone.so cannot be loaded\)"):
        gpus("libnone.so")
    with pytest.raises(DeviceError, match="this machine has no NVIDIA driver"):
        cuda_version("libnone.so")
