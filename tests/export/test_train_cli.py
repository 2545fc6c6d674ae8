"""``druse train`` as people run it: flags, TOML, two processes, a kill, weights, latents, errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs PyTorch")
pytest.importorskip("lightning", reason="training needs Lightning")
pytest.importorskip("tomli_w", reason="jobs are stored as TOML")

from training_data import SMALL, rock_salts, write_csv

from druse import InputError
from druse_export.models.weights import read_prior_weights, read_vae_weights
from druse_export.training.job import KINDS, as_toml, job, with_properties
from druse_export.training.runs import stored_job
from druse_export.training.toml import override, read_toml

SIZES = [
    f"--set=settings.model.{name}={getattr(SMALL, name)}"
    for name in ("max_atoms", "latent", "hidden", "condition_width", "n_levels")
]
SIZES += [
    f"--set=settings.model.{part}.{name}={value}"
    for part, config in (("encoder", SMALL.encoder), ("decoder", SMALL.decoder))
    for name, value in ((name, getattr(config, name)) for name in config.__struct_fields__)
]
SLIM = ["--batch-size=8", "--set=settings.steps_per_epoch=4", "--accelerator=cpu", "--set=machine.threads=1"]
QUICK = ["--epochs=2", *SLIM]


def druse(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "druse", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_csv(folder / "train.csv", rock_salts(40, 0))
    write_csv(folder / "val.csv", rock_salts(12, 1))
    gaps = rock_salts(12, 1)
    gaps.properties["energy"][3:7] = float("nan")
    write_csv(folder / "gaps.csv", gaps)
    return folder


@pytest.fixture(scope="module")
def vae_run(place: Path) -> Path:
    done = druse("train", "vae", "--out=vae", "--data=train.csv", "--validation=val.csv", "--condition=energy",
                 "--condition=parity=2", "--devices=2", *QUICK, *SIZES, cwd=place)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "40 crystals to train on (0 rows skipped), 12 to validate on" in done.stdout
    assert "[settings.model.decoder]" in done.stdout
    assert done.stdout.count("averaged weights of that epoch") == 1  # one of the two processes speaks
    return place / "vae"


def test_two_processes_train_one_model(vae_run: Path) -> None:
    model, facts = read_vae_weights(vae_run / "model.safetensors")
    assert model.config.conditions[0].name == "energy"
    assert {"epoch", "step", "val_loss", "val_coordinates", "job"} <= facts.keys()
    assert int(facts["step"]) in (4, 8)
    assert 'train = "train.csv"' in facts["job"]  # no path of the machine
    assert stored_job(vae_run).machine.devices == 2
    assert {"job.toml", "settings.json", "metrics.csv", "last.ckpt", "best.ckpt"} <= {p.name for p in vae_run.iterdir()}
    assert list((vae_run / "tensorboard").iterdir())


def test_a_finished_run_is_shown_again_by_its_folder_alone(vae_run: Path) -> None:
    done = druse("train", "vae", "--out=vae", "--set=machine.devices=1", "--json", cwd=vae_run.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["val_coordinates"] > 0


def test_a_refused_change_leaves_the_run_as_it_was(vae_run: Path) -> None:
    before = (vae_run / "job.toml").read_bytes()
    done = druse("train", "vae", "--out=vae", "--seed=7", "--set=machine.devices=1", cwd=vae_run.parent)
    assert done.returncode == 1
    assert "vae holds a run with other settings" in done.stderr
    assert (vae_run / "job.toml").read_bytes() == before
    content = (vae_run / "best.ckpt").read_bytes()
    (vae_run / "best.ckpt").write_bytes(content[:1000])
    done = druse("train", "weights", "vae", "--out=broken.safetensors", cwd=vae_run.parent)
    (vae_run / "best.ckpt").write_bytes(content)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "best.ckpt cannot be read as a checkpoint" in done.stderr


def test_prior_weights_and_latents(vae_run: Path) -> None:
    place = vae_run.parent
    done = druse("train", "prior", "--out=prior", "--model=vae", "--data=train.csv", "--validation=val.csv", *QUICK,
                 "--json", cwd=place)  # fmt: skip
    assert done.returncode == 0, done.stderr
    prior, facts = read_prior_weights(place / json.loads(done.stdout)["weights"])
    assert [spec.name for spec in prior.config.conditions] == ["energy", "parity"]
    assert 'weights = "' in facts["job"]
    some = druse("train", "prior", "--out=some", "--model=vae", "--data=train.csv", "--conditions=energy, n_atom",
                 "--show", cwd=place)  # fmt: skip
    assert 'name = "n_atom"' in some.stdout, some.stderr
    show = druse("train", "prior", "--out=gaps", "--model=vae", "--data=train.csv", "--validation=gaps.csv", "--show",
                 cwd=place)  # fmt: skip
    assert "12" not in show.stdout.splitlines()[-1]
    assert "8 to validate on (0 rows skipped; left out: 4 without energy)" in show.stdout, show.stderr
    other = druse("train", "weights", "vae", "--out=last.safetensors", "--last", cwd=place)
    assert other.returncode == 0, other.stderr
    latents = druse("train", "latents", "vae", "val.csv", "--out=z.parquet", "--json", cwd=place)
    assert json.loads(latents.stdout) == {"latents": "z.parquet", "crystals": 12}, latents.stderr
    from pyarrow import parquet

    table = parquet.read_table(place / "z.parquet")
    assert {"id", "energy", "mu", "log_var"} <= set(table.column_names)
    assert len(table["mu"][0]) == 16


def test_killed_from_outside_it_goes_on_by_its_folder_alone(place: Path) -> None:
    arguments = ["--data=train.csv", "--validation=val.csv", "--condition=energy", *SIZES, "--epochs=5", *SLIM]
    whole = druse("train", "vae", "--out=whole", *arguments, "--json", cwd=place)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "druse", "train", "vae", "--out=killed", *arguments]
    process = subprocess.Popen(
        command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(place / "cache")},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (place / "killed" / "last.ckpt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = druse("train", "vae", "--out=killed", "--json", cwd=place)
    assert again.returncode == 0, again.stderr
    first, second = json.loads(whole.stdout), json.loads(again.stdout)
    assert {k: v for k, v in first.items() if k.startswith("val_")} == {
        k: v for k, v in second.items() if k.startswith("val_")
    }


def test_weights_name_what_they_began_from_without_its_place(vae_run: Path) -> None:
    done = druse("train", "vae", "--out=again", "--start=vae/model.safetensors", "--data=train.csv",
                 "--validation=val.csv", "--condition=energy", "--condition=parity=2", *QUICK, *SIZES,
                 cwd=vae_run.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, facts = read_vae_weights(vae_run.parent / "again" / "model.safetensors")
    assert 'start = "model.safetensors"' in facts["job"]
    assert str(vae_run.parent) not in facts["job"]


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [child for parent in children for child in descendants(parent)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("n_devices", [1, 2])
def test_asked_to_end_it_ends(place: Path, n_devices: int) -> None:
    """As a batch system asks, and the command alone: its processes end with it, and the run goes on another day."""
    folder = f"ended_{n_devices}"
    arguments = ["--data=train.csv", "--validation=val.csv", "--condition=energy", *SIZES, "--epochs=10000", *SLIM]
    command = [sys.executable, "-m", "druse", "train", "vae", f"--out={folder}", *arguments]
    process = subprocess.Popen(
        [*command, f"--devices={n_devices}", "--set=machine.threads=1"], cwd=place, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "XDG_CACHE_HOME": str(place / "cache")},
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not (place / folder / "last.ckpt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    helpers = descendants(process.pid)
    assert len(helpers) >= n_devices - 1
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    deadline = time.monotonic() + 60
    while any(map(is_alive, helpers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, helpers))
    again = druse("train", "weights", folder, cwd=place)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae", "--out=new"], "new holds no run yet, so give --data FILE"),
        (["vae", "--out=new", "--data=nowhere.csv"], "does not exist"),
        (["vae", "--out=new", "--data=train.csv", "--condition=gap"], "there is no property 'gap'"),
        (["vae", "--out=new", "--data=train.csv", "--condition=energy", "--set=settings.epoch=3"], "epoch"),
        (["vae", "--out=new", "--data=train.csv", "--condition=energy", "--precision=fp8"], "precision"),
        (["vae", "--out=new", "--data=train.csv"], "conditions"),
        (["vae", "--out=new", "--data=train.csv", "--set=data.train=3"], "`data` must be a table with names of files"),
        (["vae", "--out=new", "--data=train.csv", "--set=settings=3"], "`settings` must be a table of settings"),
        (["vae", "--out=new", "--data=train.csv", '--set=settings.model.conditions=[{name="x"}]'], "missing required"),
        (["vae", "--out=new", "--data=train.csv", "--condition=energy=0:1:1e-9"], "give a coarser spacing"),
        (["vae", "--out=new", "--data=train.csv", "--condition=energy=3"], "'energy' must have whole numbers"),
        (["prior", "--out=new", "--model=nowhere", "--data=train.csv"], "nowhere does not exist"),
        (["cgcnn", "--out=new", "--data=train.csv", "--property=gap"], "no property 'gap'"),
        (["weights", "nowhere"], "nowhere holds no run"),
        (["vae", "--out=new", "--config=nowhere.toml"], "nowhere.toml does not exist"),
    ],
)
def test_errors_are_one_sentence(place: Path, arguments: list[str], message: str) -> None:
    done = druse("train", *arguments, cwd=place)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not (place / "new" / "job.toml").exists()  # another try can have other settings


def test_a_job_survives_toml(place: Path) -> None:
    content = {"data": {"train": "x"}, "settings": {"model": {"conditions": ["energy", "formula", "parity=2"]}}}
    full = job(with_properties(content, KINDS["vae"], rock_salts(9, 0)), KINDS["vae"])
    assert [spec.name for spec in full.settings.model.predicted] == ["energy", "parity"]
    (place / "job.toml").write_text(as_toml(full))
    assert job(read_toml(place / "job.toml"), KINDS["vae"]) == full


def test_overrides_are_toml_or_text() -> None:
    content = {"data": {"train": "a.csv"}}
    changed = override(content, ["settings.epochs=3", "settings.loss.kl=0.5", "data.train=b c.csv", 'x.y=["a"]'])
    assert changed == {
        "data": {"train": "b c.csv"},
        "settings": {"epochs": 3, "loss": {"kl": 0.5}},
        "x": {"y": ["a"]},
    }
    assert content == {"data": {"train": "a.csv"}}
    with pytest.raises(InputError, match="write NAME=VALUE"):
        override(content, ["epochs"])
    with pytest.raises(InputError, match="train is a value"):
        override(content, ["data.train.x=1"])
