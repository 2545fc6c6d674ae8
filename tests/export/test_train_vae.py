"""Step one and step two of training: they learn, resume after a kill to the bit, and run on several devices."""

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

from training_data import PRIOR, SMALL, VAE, rock_salts  # noqa: E402

from druse import InputError  # noqa: E402
from druse.lattice import cells_from_parameters, volumes  # noqa: E402
from druse_export.models.con_cdvae import ConCDVAE  # noqa: E402
from druse_export.models.weights import read_vae_weights, save_weights, start_from  # noqa: E402
from druse_export.training.batches import CrystalBatches, property_values  # noqa: E402
from druse_export.training.prior import encode_table, train_prior  # noqa: E402
from druse_export.training.settings import LossWeights, Machine, Settings, VAESettings  # noqa: E402
from druse_export.training.step_one import train_vae  # noqa: E402
from druse_export.training.vae import Draws, VAEModule, joint_loss  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers, workers and deprecated PyTorch calls


CPU = Machine(accelerator="cpu", threads=1)


def metrics(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def train(folder: Path, die_at: int | None = None, settings: VAESettings = VAE, n: int = 40) -> ConCDVAE:
    class Die(lightning.Callback):
        def on_train_batch_end(self, trainer: object, *_: object) -> None:
            if trainer.global_step == die_at:  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)

    tables = rock_salts(n, 0), rock_salts(12, 1)
    return train_vae(settings, *tables, folder, callbacks=[Die()], progress=False, machine=CPU)


def test_it_learns(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(VAE, epochs=5, steps_per_epoch=40, learning_rate=3e-3)
    model = train(tmp_path, settings=settings, n=300)
    for name, share in (("n_atoms", 0.5), ("lattice", 0.7), ("types", 0.9), ("property", 0.95)):
        losses = metrics(tmp_path, f"val_{name}")
        assert min(losses) < share * losses[0], (name, losses)
    assert metrics(tmp_path, "val_n_atoms_accuracy")[-1] == 1.0  # two atoms each
    assert not model.training


class Crash(lightning.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == self.at:
            raise KeyError("crash")


def test_a_resumed_plateau_falls_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    changes = {"epochs": 7, "steps_per_epoch": 2, "learning_rate": 0.2, "ema": 0.0, "plateau_patience": 0}
    settings = msgspec.structs.replace(VAE, **changes)
    undisturbed = train(tmp_path / "whole", settings=settings)
    rates = metrics(tmp_path / "whole", "lr")
    assert rates[-1] < rates[0]
    tables = rock_salts(40, 0), rock_salts(12, 1)
    for step in (3, 5, 7, 9, 11):  # so that each epoch's rate is decided in a run that is stopped
        with pytest.raises(KeyError, match="crash"):
            train_vae(settings, *tables, tmp_path / "cut", callbacks=[Crash(step)], progress=False, machine=CPU)
    resumed = train(tmp_path / "cut", settings=settings)
    assert metrics(tmp_path / "cut", "lr") == rates
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_run_that_lost_its_patience_stays_where_it_ended(tmp_path: Path) -> None:
    stuck = msgspec.structs.replace(VAE, epochs=9, steps_per_epoch=1, learning_rate=0.2, patience=1, ema=0.0)
    ended = train(tmp_path, settings=stuck)
    n_epochs, last = len(metrics(tmp_path, "val_loss")), (tmp_path / "last.ckpt").read_bytes()
    assert n_epochs < 9
    again = train(tmp_path, settings=stuck)
    assert len(metrics(tmp_path, "val_loss")) == n_epochs
    assert (tmp_path / "last.ckpt").read_bytes() == last
    assert torch.equal(ended.mu.weight, again.mu.weight)


def test_checkpoints_are_written_beside_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On their way through the temporary folder they could be cut, where that is on another file system."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    settings = msgspec.structs.replace(VAE, epochs=1)
    train(tmp_path / "run", settings=settings)
    assert {path.suffix for path in (tmp_path / "run").iterdir() if path.is_file()} == {".ckpt", ".csv", ".json"}
    for name in ("last.ckpt", "best.ckpt"):
        content = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"last\.ckpt cannot be read as a checkpoint"):
        train(tmp_path / "run", settings=settings)


@pytest.mark.parametrize("die_at", [3, 10])  # before the first checkpoint, and within the second epoch
def test_killed_and_resumed_ends_like_an_undisturbed_run(tmp_path: Path, die_at: int) -> None:
    undisturbed = train(tmp_path / "whole")
    command = "import sys; from pathlib import Path; sys.path[:0] = sys.argv[3:]; "
    command += "from test_train_vae import train; train(Path(sys.argv[1]), int(sys.argv[2]))"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    arguments = [str(tmp_path / "killed"), str(die_at), *folders]
    killed = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    resumed = train(tmp_path / "killed")
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name in ("train_loss", "val_loss", "val_coordinates"):
        assert metrics(tmp_path / "killed", name) == metrics(tmp_path / "whole", name)


def test_the_last_state_is_kept_when_validation_gets_no_better(tmp_path: Path) -> None:
    train(tmp_path, settings=msgspec.structs.replace(VAE, epochs=4, steps_per_epoch=1, learning_rate=0.05, ema=0.0))
    losses, steps = metrics(tmp_path, "val_loss"), metrics(tmp_path, "step")
    best = losses.index(min(losses))
    assert best < 3
    states = [torch.load(tmp_path / f"{name}.ckpt", weights_only=False) for name in ("best", "last")]
    assert [state["global_step"] for state in states] == [steps[best], steps[3]]
    assert len({path.name for path in tmp_path.glob("*.ckpt")}) == 2


def test_a_run_of_other_settings_and_a_loss_that_explodes(tmp_path: Path) -> None:
    train(tmp_path, settings=msgspec.structs.replace(VAE, epochs=1))
    with pytest.raises(InputError, match="holds a run with other settings"):
        train(tmp_path, settings=msgspec.structs.replace(VAE, epochs=1, seed=1))
    with pytest.raises(InputError, match="the loss is not finite at step"):
        train(tmp_path / "wild", settings=msgspec.structs.replace(VAE, learning_rate=1e12, clip=0.0))


def test_the_ablation_leaves_the_predictor_as_it_was(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(VAE, epochs=1, loss=LossWeights(property=0.0), ema=0.0)
    trained = train(tmp_path, settings=settings)
    again = train(tmp_path / "again", settings=msgspec.structs.replace(settings, steps_per_epoch=1))
    for name, value in trained.predictor.named_parameters():
        assert torch.equal(value, again.predictor.state_dict()[name]), name
    assert not torch.equal(trained.mu.weight, again.mu.weight)


def test_data_that_nothing_can_be_learnt_from(tmp_path: Path) -> None:
    one, both = rock_salts(1, 0), rock_salts(12, 1)
    encoder = msgspec.structs.replace(SMALL.encoder, latent=8)
    with pytest.raises(InputError, match="`latent` of model and encoder must be the same, got 16 and 8"):
        train(
            tmp_path / "latent",
            settings=msgspec.structs.replace(VAE, model=msgspec.structs.replace(SMALL, encoder=encoder)),
        )
    with pytest.raises(InputError, match=r"a batch must have 2 crystals or more, .* got 1 crystals"):
        train_vae(VAE, one, both, tmp_path / "one", progress=False, machine=CPU)
    cubic = rock_salts(40, 0)
    lengths = cubic.properties["energy"][:, None, None]
    cubic = dataclasses.replace(cubic, crystals=cubic.crystals.replace(cells=np.eye(3) * lengths))
    settings = msgspec.structs.replace(VAE, epochs=1, steps_per_epoch=1)
    model = train_vae(settings, cubic, both, tmp_path / "cubic", progress=False, machine=CPU)
    assert model.heads.lattice_std[3:].tolist() == pytest.approx([1e-3] * 3)  # every angle of perovskites is 90 degrees
    assert np.isfinite(metrics(tmp_path / "cubic", "train_lattice")).all()


def test_early_stopping_and_schedules(tmp_path: Path) -> None:
    stuck = msgspec.structs.replace(VAE, epochs=9, steps_per_epoch=1, learning_rate=1.0, patience=1, ema=0.0)
    train(tmp_path / "stuck", settings=stuck)
    assert len(metrics(tmp_path / "stuck", "val_loss")) < 9
    for schedule in ("cosine", "constant"):
        settings = msgspec.structs.replace(VAE, schedule=schedule, warmup_steps=4, epochs=1)
        train(tmp_path / schedule, settings=settings)


def test_the_rate_rises_and_falls_along_a_cosine(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        VAE, schedule="cosine", epochs=4, steps_per_epoch=4, warmup_steps=8, learning_rate=1e-3, learning_rate_last=1e-4
    )
    train(tmp_path, settings=settings)
    assert metrics(tmp_path, "lr") == pytest.approx([5 / 8 * 1e-3, 1e-3, 5.5e-4, 1e-4])


def test_true_lattices_are_seen_for_so_many_passes(tmp_path: Path) -> None:
    steps: list[bool] = []

    class Seen(lightning.Callback):
        def on_train_batch_start(self, _trainer: object, module: VAEModule, *_: object) -> None:
            steps.append(module.teacher_forcing)

    settings = msgspec.structs.replace(VAE, epochs=1, steps_per_epoch=12, teacher_forcing=2.0)
    tables = rock_salts(40, 0), rock_salts(12, 1)
    train_vae(settings, *tables, tmp_path, callbacks=[Seen()], progress=False, machine=CPU)
    assert steps == [True] * 10 + [False] * 2  # 80 crystals, 8 a step


def test_figures_are_of_the_averaged_model(tmp_path: Path) -> None:
    settings, held = msgspec.structs.replace(VAE, epochs=1), rock_salts(12, 1)
    averaged = train(tmp_path, settings=settings)
    batches = CrystalBatches(held, SMALL.conditions, SMALL)
    found: dict[str, float] = {"loss": 0.0, "lengths_error": 0.0, "volume_error": 0.0}
    for index, chosen in enumerate((list(range(8)), list(range(8, 12)))):
        draws, batch = Draws((settings.seed, 1, index, 0), torch.device("cpu")), batches[chosen]
        with torch.no_grad():
            outputs = joint_loss(averaged, batch, draws, teacher_forcing=False)
            lattice = averaged.heads.lengths_and_angles(outputs.heads.lattice, batch.n_atoms)
        lengths, angles = (x.numpy().astype(np.float64) for x in lattice)
        volume = volumes(cells_from_parameters(lengths, angles))
        true_lengths, true_volume = batch.lengths.numpy(), volumes(batch.cells)
        share = len(chosen) / 12
        found["loss"] += share * float(10 * outputs.losses["coordinates"] + outputs.losses["types"])
        found["lengths_error"] += share * np.mean(np.abs(lengths - true_lengths) / true_lengths)
        found["volume_error"] += share * np.mean(np.abs(volume - true_volume) / true_volume)
    for name, value in found.items():
        assert metrics(tmp_path, f"val_{name}") == pytest.approx([value], rel=1e-4), name


class LargestGradient(lightning.Callback):
    """Before and after it is clipped."""

    def on_before_optimizer_step(self, _trainer: object, module: lightning.LightningModule, *_: object) -> None:
        self.before = largest_gradient(module)

    def on_train_batch_end(self, _trainer: object, module: lightning.LightningModule, *_: object) -> None:
        self.after = largest_gradient(module)


def largest_gradient(module: lightning.LightningModule) -> float:
    return max((float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None), default=0.0)


def test_gradients_are_clipped_by_value(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(VAE, epochs=1, steps_per_epoch=1, clip=0.03)
    seen = LargestGradient()
    train_vae(settings, rock_salts(40, 0), rock_salts(12, 1), tmp_path, callbacks=[seen], progress=False, machine=CPU)
    assert seen.before > 0.03
    assert seen.after == pytest.approx(0.03)


def test_bf16_runs(tmp_path: Path) -> None:
    tables = rock_salts(40, 0), rock_salts(12, 1)
    machine = Machine(accelerator="cpu", threads=1, precision="bf16")
    train_vae(VAE, *tables, tmp_path / "bf16", progress=False, machine=machine)
    train(tmp_path / "fp32")
    for name in ("val_coordinates", "val_lattice"):
        low, high = metrics(tmp_path / "bf16", name), metrics(tmp_path / "fp32", name)
        assert all(abs(a - b) < 0.1 * b for a, b in zip(low, high, strict=True)), (name, low, high)


def test_workers_prepare_the_same_batches(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(VAE, epochs=1)
    tables = rock_salts(40, 0), rock_salts(12, 1)
    with_worker = train_vae(
        settings, *tables, tmp_path / "a", progress=False, machine=Machine(accelerator="cpu", threads=1, workers=1)
    )
    alone = train(tmp_path / "b", settings=settings)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, with_worker.state_dict()[name]), name


def test_a_model_begins_where_another_ended(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = ConCDVAE(SMALL)
    save_weights(old, tmp_path / "old.safetensors", facts={})
    other = msgspec.structs.replace(SMALL, conditions=SMALL.conditions[:1], predicted=SMALL.predicted[:1])
    new = ConCDVAE(other)
    fresh = start_from(new, tmp_path / "old.safetensors")
    assert fresh == ("condition.mix.0.weight",)  # fewer inputs; all the rest fits by name and shape
    assert torch.equal(new.decoder.species.weight, old.decoder.species.weight.half().float())
    settings = msgspec.structs.replace(VAE, model=other, start=str(tmp_path / "old.safetensors"), epochs=1)
    train(tmp_path / "run", settings=settings)
    with pytest.raises(InputError, match="does not exist"):
        train(tmp_path / "no", settings=msgspec.structs.replace(settings, start="nowhere.safetensors"))


def test_weights_keep_tables_exactly_and_parameters_nearly(tmp_path: Path) -> None:
    model = train(tmp_path / "run")
    save_weights(model, tmp_path / "m.safetensors", facts={"val_loss": "1"})
    read, facts = read_vae_weights(tmp_path / "m.safetensors")
    assert facts == {"val_loss": "1"}
    for name, value in model.named_buffers():
        assert torch.equal(value, read.get_buffer(name)), name
    for name, value in model.named_parameters():
        torch.testing.assert_close(read.get_parameter(name), value, rtol=2**-10, atol=1e-7)


def test_the_prior_learns_the_latents_of_a_model(tmp_path: Path) -> None:
    model = train(tmp_path / "vae")
    tables = rock_salts(200, 0), rock_salts(40, 1)
    settings = msgspec.structs.replace(PRIOR, epochs=25, learning_rate=3e-3)
    prior = train_prior(settings, model, *tables, tmp_path / "prior", progress=False, machine=CPU)
    losses = metrics(tmp_path / "prior", "val_loss")
    assert losses[-1] < 0.7 * losses[0]
    assert not prior.training
    mu = torch.from_numpy(encode_table(model, tables[1]).mu)
    values, found = property_values(tables[1], settings.prior.conditions), 0.0
    for index, chosen in enumerate((slice(0, 32), slice(32, 40))):  # of the averaged prior
        draws, n = Draws((settings.seed, 4, index, 0), torch.device("cpu")), len(mu[chosen])
        step, noise = draws.levels(n, settings.prior.n_steps), draws.normal(n, 16)
        condition = prior.condition({name: value[chosen] for name, value in values.items()})
        found += n / 40 * float(prior.loss(mu[chosen], condition, step, noise))
    assert losses[-1] == pytest.approx(found, rel=1e-4)
    wrong = msgspec.structs.replace(settings, prior=msgspec.structs.replace(settings.prior, latent=8))
    with pytest.raises(InputError, match="`latent` of the prior must be the model's, 16, got 8"):
        train_prior(wrong, model, *tables, tmp_path / "x", progress=False)


def test_latents_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, table = ConCDVAE(SMALL).eval(), rock_salts(11, 0)
    whole, parts = encode_table(model, table, batch_size=11), encode_table(model, table, batch_size=3)
    assert whole.mu.shape == (11, 16)
    torch.testing.assert_close(torch.from_numpy(whole.mu), torch.from_numpy(parts.mu), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Settings, {"epochs": 0}),
        (Settings, {"ema": 1.0}),
        (Settings, {"learning_rate": 0.0}),
        (Settings, {"seed": -1}),
        (Settings, {"plateau_factor": 1.0}),
        (Machine, {"devices": 0}),
        (Machine, {"workers": -1}),
    ],
)
def test_settings_out_of_range(kind: type, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
        kind(**wrong)
