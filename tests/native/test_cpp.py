"""The C++ tests under sanitizers, and the CUDA sources through nvcc, both with warnings as errors."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "cpp_ext"


def build(folder: Path, *definitions: str) -> None:
    """Configure and build the native library in ``folder``."""
    configure = ["cmake", "-G", "Ninja", "-S", str(SOURCES), "-B", str(folder), "-DDRUSE_WERROR=ON", *definitions]
    for command in (configure, ["cmake", "--build", str(folder)]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_cpp_tests_pass_under_sanitizers(tmp_path: Path, sanitizers: str) -> None:
    build(tmp_path, "-DDRUSE_CUDA=OFF", "-DDRUSE_TESTS=ON", f"-DDRUSE_SANITIZE={sanitizers}")
    result = subprocess.run(
        ["ctest", "--test-dir", str(tmp_path), "--output-on-failure"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-6000:]
    assert "1 tests passed" in result.stdout or "100% tests passed" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc is not installed, so the CUDA sources cannot be compiled"
)
def test_cuda_sources_compile_for_three_architectures(tmp_path: Path) -> None:
    build(tmp_path, "-DDRUSE_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=80;90;120")
    cache = (tmp_path / "CMakeCache.txt").read_text()
    assert "CMAKE_CUDA_COMPILER:" in cache
    if shutil.which("cuobjdump"):
        listing = subprocess.run(
            ["cuobjdump", "--list-elf", str(tmp_path / "libdruse.so")], capture_output=True, text=True, check=True
        ).stdout
        for architecture in ("sm_80", "sm_90", "sm_120"):
            assert architecture in listing


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc is not installed, so the CUDA sources cannot be compiled"
)
@pytest.mark.parametrize("architecture", ["80", "90", "120"])
@pytest.mark.parametrize("source", ["graph", "geometry", "resident", "sampler"])
def test_cuda_kernels_keep_everything_in_registers(tmp_path: Path, source: str, architecture: str) -> None:
    """What ptxas says of each kernel: no stack frame, nothing spilled to memory."""
    command = [
        "nvcc", "-std=c++17", "--fmad=false", "-O3", "-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings", "-Xptxas=-v",
        "-gencode", f"arch=compute_{architecture},code=sm_{architecture}", f"-I{SOURCES / 'include'}",
        "-c", str(SOURCES / "src" / "cuda" / f"{source}.cu"), "-o", str(tmp_path / "kernels.o"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout + result.stderr
    names = re.findall(r"Function properties for (\S+)", said)
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(found) == len(names) > 0
    wrong = {name: numbers for name, numbers in zip(names, found, strict=True) if numbers != ("0", "0", "0")}
    assert not wrong
