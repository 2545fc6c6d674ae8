"""`druse doctor`: it tries what it reports, finds two ONNX Runtime wheels, and prints the cure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from druse._probes import doubling_model
from druse.doctor import Problem, examine, onnxruntime_clash, tensorrt_clash


def run_doctor(*arguments: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``druse doctor`` in a process that also sees the packages in a folder, before all others."""
    environment = dict(os.environ, COLUMNS="200")
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-m", "druse", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def install(folder: Path, name: str, module: str | None = None) -> None:
    """A distribution as pip leaves it: metadata, and a module with the given text where there is one."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if module is not None:
        (folder / f"{name.replace('-', '_')}.py").write_text(module)


def test_this_environment_is_healthy() -> None:
    report = examine()
    assert report.problems == ()
    states = {backend.name: backend.state for backend in report.backends}
    assert states["ort-cpu"] == "works"
    assert report.isa in ("baseline", "avx2", "avx512")
    assert report.threads >= 1
    assert Path(report.native_library).is_file()


def test_json_is_what_the_library_reports() -> None:
    result = run_doctor("--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["problems"] == []
    assert {backend["name"] for backend in report["backends"]} == {
        "ort-cpu",
        "ort-openvino",
        "ort-cuda",
        "tensorrt",
        "tensorrt-rtx",
        "cuda-kernels",
    }


def test_nothing_of_the_folder_that_it_is_called_in_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "json"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was run', 'w')")
    monkeypatch.chdir(tmp_path)
    states = {backend.name: backend.state for backend in examine().backends}
    assert states["ort-cpu"] == "works"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["json.py", "onnxruntime.py"]


def test_two_onnxruntime_wheels_are_a_problem_with_a_cure(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-gpu")
    result = run_doctor(packages=tmp_path)
    assert result.returncode == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in result.stdout
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install 'druse[cuda]'" in result.stdout


@pytest.mark.parametrize(
    ("names", "clashes"),
    [
        ([], False),
        (["onnxruntime"], False),
        (["onnxruntime", "onnxruntime-ep-openvino"], False),  # a plug-in, not a second runtime
        (["onnxruntime", "onnxruntime-extensions"], False),
        (["onnxruntime", "onnxruntime-openvino"], True),
        (["onnxruntime-gpu", "onnxruntime-directml"], True),
    ],
)
def test_which_wheels_clash(names: list[str], clashes: bool) -> None:
    assert isinstance(onnxruntime_clash(names), Problem) == clashes


@pytest.mark.parametrize(
    ("names", "cure"),
    [
        ([], None),
        (["tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-cu13-bindings"], None),
        (["tensorrt-cu13", "tensorrt-rtx-cu13"], None),  # two modules, which get on
        (["tensorrt-cu12", "tensorrt-cu13"], "druse[tensorrt]"),
        (["tensorrt-rtx-cu12", "tensorrt-rtx-cu13"], "druse[tensorrt-rtx]"),
    ],
)
def test_which_packages_of_tensorrt_clash(names: list[str], cure: str | None) -> None:
    problem = tensorrt_clash(names)
    assert (problem is None) == (cure is None)
    if problem is not None:
        assert f"{names[0]}-libs" in problem.cure
        assert problem.cure.endswith(f"&& pip install '{cure}'")


def test_it_says_which_devices_answer() -> None:
    report = json.loads(run_doctor("--json").stdout)
    if Path("/dev/nvidiactl").exists():
        assert report["devices"].startswith("cuda:0 ")
    else:
        assert "NVIDIA driver" in report["devices"]
    assert "CUDA devices" in run_doctor().stdout


def test_a_backend_that_fails_is_broken_and_says_why(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-ep-openvino", "raise RuntimeError('libopenvino is missing')\n")
    result = run_doctor("--json", packages=tmp_path)
    assert result.returncode == 1
    report = json.loads(result.stdout)
    (openvino,) = [backend for backend in report["backends"] if backend["name"] == "ort-openvino"]
    assert openvino["state"] == "broken"
    assert "libopenvino is missing" in openvino["detail"]
    assert any("ort-openvino" in problem["text"] for problem in report["problems"])


def test_a_backend_that_kills_its_process_does_not_kill_the_doctor(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-ep-openvino", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    result = run_doctor("--json", packages=tmp_path)
    (openvino,) = [backend for backend in json.loads(result.stdout)["backends"] if backend["name"] == "ort-openvino"]
    assert openvino == {"name": "ort-openvino", "state": "broken", "detail": "its test was killed by signal 11"}


def test_a_backend_that_hangs_is_given_up(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-ep-openvino", "import time\ntime.sleep(600)\n")
    result = run_doctor("--json", "--timeout", "8", packages=tmp_path)
    (openvino,) = [backend for backend in json.loads(result.stdout)["backends"] if backend["name"] == "ort-openvino"]
    assert openvino["detail"] == "no answer within 8 s"


def test_the_hand_encoded_model_is_a_model() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs an ONNX Runtime to read the model")
    session = onnxruntime.InferenceSession(doubling_model(), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("x", "tensor(float)", [2])]


def test_version_and_help() -> None:
    version = subprocess.run([sys.executable, "-m", "druse", "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("druse 0.")
    text = subprocess.run([sys.executable, "-m", "druse", "--help"], capture_output=True, text=True).stdout
    assert "doctor" in text


def test_a_backend_without_a_device_is_unavailable_not_broken(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    install(tmp_path, "tensorrt", "raise RuntimeError('imported')\n")
    result = run_doctor("--json", packages=tmp_path)
    assert result.returncode == 0
    (tensorrt,) = [backend for backend in json.loads(result.stdout)["backends"] if backend["name"] == "tensorrt"]
    assert tensorrt == {"name": "tensorrt", "state": "unavailable", "detail": "this machine has no NVIDIA GPU"}


def test_errors_keep_their_brackets() -> None:
    command = "import druse.cli._app as a; from druse.errors import InputError\n"
    command += (
        "def fail():\n    raise InputError('must have shape [3]; pip install druse[cpu]')\na.app = fail\na.main()"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: must have shape [3]; pip install druse[cpu]\n"
