"""What is installed, what really works, and what to do about the rest: the library behind ``druse doctor``.

Backends are not believed but tried: each runs a small model in a process of its own.
"""

import dataclasses
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from druse import _native
from druse._probes import DEVICES, NO_DEVICE
from druse.errors import NativeLibraryError
from druse.graphs import radius_graph

__all__ = ["Backend", "Problem", "Report", "examine", "onnxruntime_clash", "tensorrt_clash"]

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "torch", "pymatgen", "ase", "ray",
)  # fmt: skip

_EXTRAS = {
    "ort-cpu": "cpu",
    "ort-openvino": "openvino",
    "ort-cuda": "cuda",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
_TENSORRT, _TENSORRT_RTX = (tuple(f"{name}-cu{cuda}" for cuda in (11, 12, 13)) for name in ("tensorrt", "tensorrt-rtx"))
_NEEDS = {
    "ort-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "ort-openvino": ("onnxruntime-ep-openvino",),
    "ort-cuda": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt", *_TENSORRT),
    "tensorrt-rtx": _TENSORRT_RTX,
    "cuda-kernels": (),
}
_ORT_WHEEL = re.compile(
    r"onnxruntime(-(gpu|openvino|directml|training|training-cpu|qnn|rocm|migraphx|azure|cann|vitisai))?"
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is wrong, and the command or step that mends it."""

    text: str
    cure: str


@dataclasses.dataclass(frozen=True)
class Backend:
    """A way to run models. ``state``: ``works``, ``not installed``, ``unavailable`` (no device) or ``broken``."""

    name: str
    state: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that ``druse doctor`` shows."""

    druse: str
    python: str
    platform: str
    native_library: str
    isa: str
    threads: int
    packages: dict[str, str]
    devices: str
    backends: tuple[Backend, ...]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)


def installed_packages() -> dict[str, str]:
    """Names (normalised) and versions of the distributions in this environment."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return found


def onnxruntime_clash(names: Iterable[str]) -> Problem | None:
    """Two ONNX Runtime wheels in one environment overwrite each other's files; which one runs is chance."""
    wheels = sorted(name for name in names if _ORT_WHEEL.fullmatch(name))
    if len(wheels) < 2:
        return None
    keep = next((name for name in wheels if name != "onnxruntime"), wheels[0])
    extra = "cuda" if keep == "onnxruntime-gpu" else "cpu"
    return Problem(
        f"{' and '.join(wheels)} are both installed and overwrite each other's files",
        f"pip uninstall --yes {' '.join(wheels)} && pip install 'druse[{extra}]'",
    )


def tensorrt_clash(names: Iterable[str]) -> Problem | None:
    """TensorRT for two CUDA versions in one environment: the same files, and which one runs is chance."""
    found = set(names)
    for extra, packages in (("tensorrt", _TENSORRT), ("tensorrt-rtx", _TENSORRT_RTX)):
        wheels = [name for name in packages if name in found]
        if len(wheels) > 1:
            parts = [f"{wheel}{part}" for wheel in wheels for part in ("", "-bindings", "-libs")]
            return Problem(
                f"{' and '.join(wheels)} are both installed and overwrite each other's files",
                f"pip uninstall --yes {' '.join(parts)} && pip install 'druse[{extra}]'",
            )
    return None


def _native_state() -> tuple[str, str, int, Problem | None]:
    """Where the native library lies, its instruction set and threads, and what is wrong with it."""
    try:
        native = _native.library()
    except NativeLibraryError as error:
        return "not found", "", 0, Problem(str(error), "pip install --force-reinstall --no-deps druse")
    isa = {number: name for name, number in _native.ISAS.items()}[native.druse_best_isa()]
    fcc = np.array([[[0.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 0.0]]])
    graph = radius_graph(np.zeros((1, 3)), fcc, [0, 1], cutoff=6.0, max_neighbors=20)
    problem = None
    if graph.n_edges != 42:  # the shells of a face-centred cubic crystal: 12, 6 and 24
        problem = Problem(
            f"the native library counts {graph.n_edges} neighbours in a face-centred cubic crystal, not 42",
            "pip install --force-reinstall --no-binary druse druse; if that fails, report `druse doctor --json`",
        )
    return str(_native.library_path()), isa, int(native.druse_hardware_threads()), problem


def _try_backend(name: str, packages: dict[str, str], timeout: float) -> Backend:
    needs = _NEEDS.get(name, ())
    if needs and not any(package in packages for package in needs):
        return Backend(name, "not installed", f"pip install 'druse[{_EXTRAS[name]}]'")
    command = [sys.executable, "-P", "-m", "druse._probes", name]  # no module of the folder that this is called in
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Backend(name, "broken", f"no answer within {timeout:.0f} s")
    if child.returncode == 0:
        try:
            return Backend(name, "works", json.loads(child.stdout.splitlines()[-1])["detail"])
        except (IndexError, KeyError, ValueError):
            return Backend(name, "broken", "its test gave no answer")
    if child.returncode < 0:
        return Backend(name, "broken", f"its test was killed by signal {-child.returncode}")
    last = [line for line in child.stderr.splitlines() if line.strip()][-1:] or ["its test failed without a word"]
    state = "unavailable" if child.returncode == NO_DEVICE else "broken"
    return Backend(name, state, re.sub(r"^[\w.]*(Error|Exception|Warning): ", "", last[0].strip()))


def examine(*, timeout: float = 60.0) -> Report:
    """Look at this environment and try every backend.

    Args:
        timeout: seconds that a backend gets to answer.

    Returns:
        The report. It never raises for what it finds.
    """
    packages = installed_packages()
    path, isa, threads, native_problem = _native_state()
    with ThreadPoolExecutor(max_workers=2) as pool:
        *backends, devices = pool.map(lambda name: _try_backend(name, packages, timeout), (*_NEEDS, DEVICES))
    clashes = (native_problem, onnxruntime_clash(packages), tensorrt_clash(packages))
    problems = [problem for problem in clashes if problem is not None]
    problems += [
        Problem(
            f"{b.name} is installed but does not run: {b.detail}",
            f"pip install -U 'druse[{_EXTRAS.get(b.name, 'cpu')}]'",
        )
        for b in backends
        if b.state == "broken"
    ]
    if not any(b.state == "works" and b.name in _EXTRAS for b in backends):
        problems.append(Problem("no backend can run a model", "pip install 'druse[cpu]'"))
    return Report(
        druse=packages.get("druse", "unknown"),
        python=platform.python_version(),
        platform=platform.platform(),
        native_library=path,
        isa=isa,
        threads=threads,
        packages={name: packages[name] for name in PACKAGES if name in packages},
        devices=devices.detail,
        backends=tuple(backends),
        problems=tuple(problems),
    )
