"""Checkpoints are data: what would run code is refused by name, and runs nothing."""

import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints are PyTorch's")

from druse.errors import InputError  # noqa: E402
from druse_export.importing.checkpoints import Inert, plain, read_checkpoint  # noqa: E402
from druse_export.importing.upstream import read_run  # noqa: E402


class Malicious:
    """Unpickles to a call that leaves a trace."""

    def __init__(self, function: str, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        module, _, name = self.function.rpartition(".")
        return getattr(__import__(module, fromlist=[name]), name), self.arguments


@pytest.mark.parametrize("function", ["os.mkdir", "builtins.open", "pathlib.Path", "subprocess.check_output"])
@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, function: str, container: str) -> None:
    trace = tmp_path / "trace"
    arguments = {"builtins.open": (str(trace), "w"), "subprocess.check_output": (["touch", str(trace)],)}
    content = {"state_dict": {"w": torch.zeros(2)}, "x": Malicious(function, *arguments.get(function, (str(trace),)))}
    file = tmp_path / "last.ckpt"
    if container == "bare pickle":
        file.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(InputError, match=r"last\.ckpt is refused, and nothing in it was run") as caught:
        read_checkpoint(file)
    assert f".{function.rpartition('.')[2]}, which is not allowed" in str(caught.value)
    assert not trace.exists()
    # the same file, trusted, would have run it: the test can fail
    if function == "os.mkdir" and container == "zip":
        torch.load(file, weights_only=False)
        assert trace.exists()


def test_a_missing_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.ckpt is not in"):
        read_checkpoint(tmp_path / "none.ckpt")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK\x03\x04 and then nothing of use")
    with pytest.raises(InputError, match=r"broken\.ckpt"):
        read_checkpoint(broken)


def test_a_damaged_stream_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    torch.save(
        {"a": np.float64(1.5), "b": np.float32(2.5), "w": torch.zeros(2), "c": [1, (2, "x")]}, tmp_path / "a.ckpt"
    )
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    rng, name = random.Random(0), next(name for name in parts if name.endswith("data.pkl"))
    refused = 0
    for _ in range(400):
        stream = bytearray(parts[name])
        for _ in range(rng.choice([1, 2, 5])):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, bytes(stream) if part == name else content)
        try:
            read_checkpoint(tmp_path / "b.ckpt")
        except InputError:
            refused += 1
    assert refused > 200


def test_configuration_becomes_plain(shared: Path) -> None:
    content = read_checkpoint(next((shared / "fixtures" / "upstream_run").glob("epoch=*.ckpt")))
    settings = plain(content["hyper_parameters"])
    assert settings["latent_dim"] == 256
    assert settings["conditionmodel"]["condition_embeddings"][0]["condition_min"] == -6.0
    assert not any(isinstance(value, Inert) for value in settings.values())


def test_every_gap_is_reported_at_once(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(shared / "fixtures" / "upstream_run", folder)
    file = next(folder.glob("epoch=*.ckpt"))
    weights = dict(read_checkpoint(file)["state_dict"].items())
    settings = plain(read_checkpoint(file)["hyper_parameters"])
    del weights["fc_mu.weight"], weights["encoder.emb.lin.bias"]
    weights["decoder.surprise"] = torch.zeros(3)
    weights["fc_var.weight"] = torch.zeros(2, 2)
    torch.save({"state_dict": weights, "hyper_parameters": settings}, file)
    with pytest.raises(InputError) as caught:
        read_run(folder)
    message = str(caught.value)
    for part in (
        "missing fc_mu.weight",
        "missing encoder.emb.lin.bias",
        "unused decoder.surprise",
        "fc_var.weight has shape",
    ):
        assert part in message


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no checkpoint"):
        read_run(tmp_path)
