"""Training of CGCNN: it learns, and a run that was killed ends where an undisturbed one does."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")
lightning = pytest.importorskip("lightning", reason="training needs Lightning")

from druse import Crystals, InputError  # noqa: E402
from druse_export.data import CrystalTable  # noqa: E402
from druse_export.models.cgcnn import CGCNN, CGCNNConfig  # noqa: E402
from druse_export.training.cgcnn import Batches, train_cgcnn  # noqa: E402
from druse_export.training.settings import CGCNNSettings, Machine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers, workers and deprecated PyTorch calls


def rock_salts(n: int, seed: int) -> CrystalTable:
    """Binary rock-salt cells with random elements and lengths; the "energy" is their length, so distances tell it."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(4.0, 7.0, n)
    cells = lengths[:, None, None] / 2 * (np.ones((3, 3)) - np.eye(3))
    crystals = Crystals(
        np.tile([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], (n, 1)),
        cells,
        np.arange(n + 1) * 2,
        rng.integers(1, 90, 2 * n).astype(np.int32),
    )
    return CrystalTable(crystals, tuple(map(str, range(n))), {"energy": lengths})


CPU = Machine(accelerator="cpu", threads=1)
SETTINGS = CGCNNSettings(property="energy", epochs=4, batch_size=16, ema=0.5, warmup_steps=2)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def train(folder: Path, die_in_epoch: int | None = None) -> CGCNN:
    class Die(lightning.Callback):
        def on_train_batch_end(self, trainer: object, *_: object) -> None:
            if trainer.current_epoch == die_in_epoch and trainer.global_step % 5 == 2:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)

    return train_cgcnn(
        SETTINGS, rock_salts(80, 0), rock_salts(20, 1), folder, callbacks=[Die()], progress=False, machine=CPU
    )


def test_it_learns(tmp_path: Path) -> None:
    settings = CGCNNSettings(property="energy", epochs=12, batch_size=16, learning_rate=1e-2, ema=0.5, warmup_steps=8)
    train_cgcnn(settings, rock_salts(120, 0), rock_salts(40, 1), tmp_path, progress=False, machine=CPU)
    errors = [float(row["val_mae"]) for row in metrics(tmp_path) if row["val_mae"]]
    spread = float(np.abs(rock_salts(40, 1).properties["energy"] - 5.5).mean())
    assert errors[-1] < 0.5 * spread  # guessing the mean gives the spread


def test_killed_and_resumed_ends_like_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed = train(tmp_path / "whole")
    command = "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]; "
    command += "from test_train_cgcnn import train; train(Path(sys.argv[1]), 2)"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    killed = subprocess.run([sys.executable, "-c", command, str(tmp_path / "killed"), *folders], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    resumed = train(tmp_path / "killed")
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = CGCNNSettings(property="energy", epochs=1, batch_size=16)
    train_cgcnn(settings, rock_salts(20, 0), rock_salts(5, 1), tmp_path, progress=False, machine=CPU)
    with pytest.raises(InputError, match="holds a run with other settings"):
        train_cgcnn(
            CGCNNSettings(property="energy", epochs=2),
            rock_salts(20, 0),
            rock_salts(5, 1),
            tmp_path,
            progress=False,
            machine=CPU,
        )


def test_data_that_nothing_can_be_learnt_from(tmp_path: Path) -> None:
    def refused(train: CrystalTable, held: CrystalTable, message: str) -> None:
        with pytest.raises(InputError, match=message):
            train_cgcnn(SETTINGS, train, held, tmp_path / "x", progress=False, machine=CPU)

    table, held = rock_salts(20, 0), rock_salts(5, 1)
    none, same = (dataclasses.replace(table, properties={"energy": np.full(20, value)}) for value in (np.nan, 2.5))
    refused(none, held, "no crystal of the data has a value of 'energy'")
    refused(same, held, r"'energy' has the one value 2\.5 in the training data")
    refused(table, held.select(np.zeros(5, bool)), "no crystal of the data has a value of 'energy'")
    wild = msgspec.structs.replace(SETTINGS, learning_rate=1e30)
    with pytest.raises(InputError, match=r"the loss is not finite at step [1-9]"):
        train_cgcnn(wild, table, held, tmp_path / "wild", progress=False, machine=CPU)
    species = held.crystals.species.copy()
    species[[0, 3]] = 100, 101  # the last element with features, and one without
    heavy = dataclasses.replace(held, crystals=held.crystals.replace(species=species))
    assert len(Batches(heavy, SETTINGS, CGCNNConfig())) == 4


def test_a_class_begins_above_the_threshold() -> None:
    table = rock_salts(4, 0)
    table.properties["energy"][:] = 0.0, 0.0, 0.1, np.nan  # most crystals have a gap of exactly 0
    settings = CGCNNSettings(property="energy", task="classification", threshold=0.0)
    assert Batches(table, settings, CGCNNConfig()).targets.tolist() == [0, 0, 1]


def test_classes_and_bad_settings(tmp_path: Path) -> None:
    settings = CGCNNSettings(property="energy", task="classification", threshold=5.5, epochs=1, batch_size=16)
    model = train_cgcnn(settings, rock_salts(40, 0), rock_salts(10, 1), tmp_path, progress=False, machine=CPU)
    assert model.config.n_out == 2
    assert 0 <= float(metrics(tmp_path)[0]["val_accuracy"]) <= 1
    with pytest.raises(InputError, match="`threshold`"):
        CGCNNSettings(property="energy", task="classification")
    with pytest.raises(InputError, match="no property 'gap'; it has energy"):
        train_cgcnn(
            CGCNNSettings(property="gap"),
            rock_salts(4, 0),
            rock_salts(4, 1),
            tmp_path / "x",
            progress=False,
            machine=CPU,
        )
