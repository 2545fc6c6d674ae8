"""``druse bundle`` as people run it: build, import, show, verify, and what each says when it cannot."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="bundles are exported from PyTorch")
pytest.importorskip("onnxscript", reason="bundles are exported from PyTorch")
pytest.importorskip("onnxruntime", reason="bundles are checked on ONNX Runtime")

from training_data import PRIOR, SMALL  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from druse.bundle import MANIFEST, REFERENCE, Bundle  # noqa: E402
from druse.cli import main  # noqa: E402
from druse.cli._bundle import app  # noqa: E402
from druse.errors import DruseError  # noqa: E402
from druse_export.models.cgcnn import CGCNN, CGCNNConfig  # noqa: E402
from druse_export.models.con_cdvae import ConCDVAE  # noqa: E402
from druse_export.models.prior import Prior  # noqa: E402
from druse_export.models.weights import digest, save_weights  # noqa: E402
from druse_export.training.job import Data, Job, as_toml  # noqa: E402
from druse_export.training.settings import CGCNNSettings, PriorSettings, VAESettings  # noqa: E402

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
FIGURES = {"epoch": "3", "step": "1200", "val_mae": "0.125", "val_loss": "nan"}  # a loss that JSON has no number for
FORMATION_ENERGY = "formation_energy_per_atom"


def druse(*arguments: object) -> Any:
    # the group alone: the run-time type checks do not bear the None that Typer hands to the root's eager --version
    return CliRunner().invoke(app, [*map(str, arguments)])


def done(*arguments: object) -> str:
    result = druse(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refused(*arguments: object) -> str:
    """The one sentence that a person gets; nothing is printed before it."""
    result = druse(*arguments)
    assert isinstance(result.exception, DruseError), result.output + repr(result.exception)
    assert result.stdout == ""
    sentence = str(result.exception)
    assert sentence.isprintable()
    return sentence


def save_cgcnn(path: Path, task: Any, facts: dict[str, str]) -> Path:
    """A tiny CGCNN of random weights."""
    torch.manual_seed(0)
    model = CGCNN(CGCNNConfig(task=task, n_out=1 if task == "regression" else 2, atom=8, hidden=8, n_convolutions=1))
    save_weights(model, path, facts=facts)
    return path


def save_prior(path: Path, model: str) -> Path:
    torch.manual_seed(2)
    job = Job(data=Data(train="crystals.csv"), settings=PriorSettings(prior=PRIOR.prior, model=model))
    save_weights(Prior(PRIOR.prior), path, facts={"job": as_toml(job)})
    return path


@pytest.fixture(scope="module")
def weights(made_once: MadeOnce) -> Path:
    """A folder with ``vae``, its prior ``prior``, one of another model ``stranger``, and ``cgcnn``."""

    def make(out: Path) -> None:  # once for all processes: two would not write the same bytes
        folder = out.with_suffix(".part")
        folder.mkdir()
        torch.manual_seed(1)
        config = msgspec.structs.replace(SMALL, predicted=())  # a network less to export, 4 s
        vae = Job(data=Data(train="crystals.csv"), settings=VAESettings(model=config))
        save_weights(ConCDVAE(config), folder / "vae.safetensors", facts={**FIGURES, "job": as_toml(vae)})
        save_prior(folder / "prior.safetensors", digest(folder / "vae.safetensors"))
        save_prior(folder / "stranger.safetensors", "0" * 64)
        settings = CGCNNSettings(property="hardness", task="classification", threshold=-0.5)
        job = as_toml(Job(data=Data(train="crystals.csv"), settings=settings))
        save_cgcnn(folder / "cgcnn.safetensors", "classification", {**FIGURES, "job": job})
        folder.rename(out)

    return made_once("cli_weights", make)


@pytest.fixture(scope="module")
def cgcnn(weights: Path, made_once: MadeOnce) -> Path:
    """Of a classification, and of a property that no table of Druse's knows; `test_import` has the other two."""

    def build(out: Path) -> None:
        given = "--property=hardness=-10:90:2.5:GPa"
        text = done("build", weights / "cgcnn.safetensors", out, given, "--licence=CC-BY-4.0", "--zip")
        assert text.splitlines() == [
            str(out),
            f"{out}.zip",
            f"next: druse bundle show {out}; druse bundle verify {out}",
        ]

    return made_once("cli_cgcnn", build)


@pytest.fixture(scope="module")
def con_cdvae(weights: Path, made_once: MadeOnce) -> Path:
    def build(out: Path) -> None:
        prior = f"--prior=default={weights / 'prior.safetensors'}"
        text = done("build", weights / "vae.safetensors", out, prior, "--name=rock salts", "--zip", "--json")
        printed = json.loads(text)
        assert printed == {"bundle": str(out), "sha256": Bundle.open(out).digest, "zip": f"{out}.zip"}
        assert Bundle.open(f"{out}.zip").digest == printed["sha256"]

    return made_once("cli_con_cdvae", build)


def test_show_a_cgcnn(cgcnn: Path) -> None:
    text = done("show", cgcnn)
    assert "cli_cgcnn (cgcnn), version 1" in text
    assert "CC-BY-4.0" in text
    assert "trained on  crystals.csv" in text
    assert "1,200" in text
    assert "predicts (classification: above -0.5 or not)" in text
    assert "hardness  scalar  -10 to 90         GPa" in text
    assert "mae  0.125" in text
    assert "nan" not in text


def test_show_a_con_cdvae(con_cdvae: Path) -> None:
    text = done("show", con_cdvae)
    assert "rock salts (con-cdvae)" in text
    assert "up to 4 atoms" in text
    assert "prior default: 50 steps" in text
    assert text.count("energy    scalar  3.5 to 7.5        eV") == 2  # of the model, of the prior
    assert text.count("parity    class   0 to 1") == 2


@pytest.mark.parametrize("kind", ["cgcnn", "con_cdvae"])
def test_show_json(kind: str, request: pytest.FixtureRequest, weights: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    content = json.loads(done("show", folder, "--json"))
    assert content["sha256"] == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert content["kind"] == kind.replace("_", "-")
    assert content["provenance"]["figures"] == {"mae": 0.125}
    assert content["provenance"]["epochs"] == 4
    files = {"cgcnn": {"cgcnn"}, "con_cdvae": {"vae", "prior"}}[kind]
    found = {name.split(": ")[-1]: sha for name, sha in content["provenance"]["weights"].items()}
    assert found == {f"{name}.safetensors": digest(weights / f"{name}.safetensors") for name in files}


@pytest.mark.parametrize("kind", ["cgcnn", "con_cdvae"])
def test_verify(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    outputs = {output for output in Bundle.open(folder).reference() if "/outputs/" in output}
    text = done("verify", folder, "--backend=ort-cpu", "--threads=1")
    assert "too far" not in text
    assert text.count(" good ") == len(outputs)
    assert all(output.replace("/outputs/", "/") in text for output in outputs)  # whole names, however long
    content = json.loads(done("verify", folder, "--threads=1", "--json"))
    assert content["ok"]
    assert {row["output"] for row in content["outputs"]} == {output.replace("/outputs/", "/") for output in outputs}
    assert all(row["ok"] and row["largest"] <= row["tolerance"] == 2e-5 for row in content["outputs"])


def test_verify_an_archive(con_cdvae: Path, tmp_path: Path) -> None:
    Bundle.open(con_cdvae).write_zip(tmp_path / "written.zip")
    assert json.loads(done("verify", tmp_path / "written.zip", "--threads=1", "--json"))["ok"]


def altered(folder: Path, place: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A bundle that is whole in itself, with other recorded arrays."""
    shutil.copytree(folder, place)
    arrays = {name: value.copy() for name, value in Bundle.open(folder).reference().items()}
    change(arrays)
    np.savez_compressed(place / REFERENCE, allow_pickle=False, **arrays)
    content = (place / REFERENCE).read_bytes()
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["files"][REFERENCE] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (place / MANIFEST).write_text(json.dumps(manifest))
    return place


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("cgcnn", "network/value"),
        ("con_cdvae", "heads/lattice"),
        ("con_cdvae", "decoder/scaled"),
        ("con_cdvae", "priors/default/network/eps"),
    ],
)
def test_verify_finds_the_output_that_is_off(
    kind: str, output: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    role, _, name = output.rpartition("/")

    def shift(arrays: dict[str, np.ndarray]) -> None:
        value = arrays[f"{role}/outputs/{name}"]
        value += 1e-3 * np.abs(value).max()

    place = altered(request.getfixturevalue(kind), tmp_path / "altered", shift)
    result = druse("verify", place, "--threads=1")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # a verdict, not an error
    assert [line.split()[0] for line in result.stdout.splitlines() if "too far" in line] == [output]
    result = druse("verify", place, "--threads=1", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert not content["ok"]
    assert [row["output"] for row in content["outputs"] if not row["ok"]] == [output]


def test_a_reference_that_is_no_number_is_too_far_and_still_json(cgcnn: Path, tmp_path: Path) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays["network/outputs/value"][0] = np.nan

    result = druse("verify", altered(cgcnn, tmp_path / "nan", spoil), "--threads=1", "--json")
    assert result.exit_code == 1

    def no_constant(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    (row,) = json.loads(result.stdout, parse_constant=no_constant)["outputs"]
    assert row["largest"] is None
    assert not row["ok"]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("cgcnn", "network/inputs/frac", None),
        ("con_cdvae", "decoder/inputs/latent", None),
        ("con_cdvae", "decoder/inputs/level", np.zeros(1, np.int32)),
        ("con_cdvae", "priors/default/network/inputs/step", None),
        ("con_cdvae", "priors/default/network/inputs/step", np.zeros(0, np.int32)),
        ("con_cdvae", "priors/default/network/inputs/terms", None),
    ],
)
def test_a_reference_that_lacks_something_is_told(
    kind: str, name: str, value: np.ndarray | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value

    place, last = altered(request.getfixturevalue(kind), tmp_path / "altered", spoil), name.rpartition("/")[2]
    says = f"lacks the input {last}" if value is None else f"`{last}` must have shape"
    assert says in refused("verify", place, "--threads=1")


def test_a_changed_file_is_an_error(cgcnn: Path, tmp_path: Path) -> None:
    shutil.copytree(cgcnn, tmp_path / "changed")
    with (tmp_path / "changed" / REFERENCE).open("ab") as file:
        file.write(b"\0")
    for command in ("show", "verify"):
        assert "is not the file that manifest.json describes" in refused(command, tmp_path / "changed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend=abacus"], "`backend` must be auto or one of ort-cpu, ort-cuda, "),
        (["--precision=fp8"], "`precision` must be auto or one of fp32, tf32, fp16, bf16, got 'fp8'"),
        (["--backend=ort-cpu", "--precision=bf16"], "ort-cpu computes in fp32"),
    ],
)
def test_what_cannot_verify_is_said_in_one_line(
    as_users_call: None,
    cgcnn: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["druse", "bundle", "verify", str(cgcnn), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


HOSTILE = "a\x1b[31mred\x1b]0;title\x07\n\r\x9bb\u202e\x7f[bold]x[/] [/wrong] :warning:"
"""Colours, the window's title, lines, text from right to left, and what Rich would take for markup."""


def test_nothing_in_a_manifest_steers_the_terminal(cgcnn: Path, con_cdvae: Path, tmp_path: Path) -> None:
    def hostile(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        place = tmp_path / folder.name
        shutil.copytree(folder, place)
        manifest = json.loads((place / MANIFEST).read_text())
        manifest["name"] = manifest["licence"] = HOSTILE
        made = manifest["provenance"]
        made["note"] = made["data"] = made["created_by"] = HOSTILE
        made["figures"] = {HOSTILE: 1.0}
        change(manifest)
        (place / MANIFEST).write_text(json.dumps(manifest))
        return place

    def of_cgcnn(manifest: dict[str, Any]) -> None:
        manifest["target"] |= {"name": HOSTILE, "unit": HOSTILE}

    def of_con_cdvae(manifest: dict[str, Any]) -> None:
        manifest["conditions"][1] |= {"name": HOSTILE, "labels": [HOSTILE, "even"]}

    seen = "a?[31mred?]0;title????b??[bold]x[/] [/wrong] :warning:"
    for place, times in (
        (hostile(cgcnn, of_cgcnn), 8),
        (hostile(con_cdvae, of_con_cdvae), 8),
    ):
        text = done("show", place)
        assert all(c.isprintable() for c in text if c != "\n")
        assert text.count(seen) == times
        assert json.loads(done("show", place, "--json"))["name"] == HOSTILE
        assert done("show", place, "--json").isascii()


def test_the_folder_s_name_does_not_steer_the_terminal_either(cgcnn: Path, tmp_path: Path) -> None:
    place = tmp_path / "x\x1b[31m[bold]y"
    shutil.copytree(cgcnn, place)
    assert done("verify", place, "--threads=1").startswith("x?[31m[bold]y on ")


def test_an_existing_folder_stays_as_it_is(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for command, source in (("build", weights / "cgcnn.safetensors"), ("import", weights)):
        assert "mine exists; give another folder" in refused(command, source, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vae", ["--prior=default={}/stranger.safetensors"], "trained on the latents of other weights"),
        ("vae", ["--prior=default={}/cgcnn.safetensors"], "does not hold a prior"),
        ("vae", ["--prior=default={}/none.safetensors"], "does not exist"),
        ("vae", ["--prior=default"], "cannot read the prior 'default'; write NAME=RUN"),
        ("vae", ["--prior=={}/prior.safetensors"], "write NAME=RUN"),
        ("vae", ["--prior=a={}/prior.safetensors", "--prior=a={}/prior.safetensors"], "two priors have the name 'a'"),
        ("vae", ["--prior=a-b={}/prior.safetensors"], "a plain name"),
        ("vae", ["--property=band_gap"], "leave --property out"),
        ("vae", ["--version=2"], "leave --version out"),
        ("cgcnn", ["--property=hardness=0:1:0.1", "--version=a|b"], "that can be printed, without |, got 'a|b'"),
        ("vae", ["--data={}/none.csv"], "none.csv"),
        ("prior", [], "holds a prior; give a model of step one"),
        (
            "cgcnn",
            ["--prior=default={}/prior.safetensors"],
            "is a CGCNN, which takes no priors, no data and no other precision",
        ),
        ("cgcnn", ["--data={}/none.csv"], "is a CGCNN, which takes no priors, no data and no other precision"),
        ("cgcnn", ["--precision=fp16"], "is a CGCNN, which takes no priors, no data and no other precision"),
        ("vae", ["--precision=fp8"], "must be fp16 or bf16 (fp32 is always there), got fp8"),
        ("cgcnn", ["--property=energy=0:1:0.1"], "the weights are of 'hardness', not of 'energy'"),
        ("none", [], "does not exist"),
    ],
)
def test_build_refuses(weights: Path, tmp_path: Path, model: str, options: list[str], message: str) -> None:
    given = [option.format(weights) for option in options]
    assert message in refused("build", weights / f"{model}.safetensors", tmp_path / "new", *given)
    assert not list(tmp_path.iterdir())


JOB = '[data]\ntrain = "x"\n[settings]\nproperty = "band_gap"\n'


@pytest.mark.parametrize(
    ("task", "facts", "message"),
    [
        ("regression", {}, "does not say how it was trained"),
        ("regression", {"settings": "{"}, "does not say how it was trained"),
        ("regression", {"job": "["}, "holds a job that cannot be read"),
        ("regression", {"job": "x = 1"}, "holds a job that cannot be read"),
        ("regression", {"job": '[data]\ntrain = "x"\n[settings]\n'}, "cannot tell the range of ''"),
        ("regression", {"job": JOB + "threshold = 0.5"}, "is a regression with the threshold 0.5"),
        ("classification", {"job": JOB}, "is a classification with the threshold None"),
        ("regression", {"job": JOB, "step": "many"}, "holds a figure that is none"),
        ("regression", {"job": JOB, "val_mae": "low"}, "holds a figure that is none"),
    ],
)
def test_build_refuses_what_says_nothing_of_itself(
    tmp_path: Path, task: str, facts: dict[str, str], message: str
) -> None:
    path = save_cgcnn(tmp_path / "w.safetensors", task, facts)
    assert message in refused("build", path, tmp_path / "new")


def test_a_property_that_only_the_data_knows_needs_its_range(weights: Path, tmp_path: Path) -> None:
    said = refused("build", weights / "cgcnn.safetensors", tmp_path / "new")
    assert "write hardness=LOW:HIGH:SPACING and perhaps :UNIT, with --property" in said


def test_import(shared: Path, tmp_path: Path) -> None:
    checkpoint = shared / "data" / "cgcnn" / "mpall20_fm.pth.tar"
    done("import", checkpoint, tmp_path / "fm", f"--property={FORMATION_ENERGY}", "--licence=MIT, the authors'")
    content = json.loads(done("show", tmp_path / "fm", "--json"))
    assert content["target"]["unit"] == "eV/atom"
    assert content["provenance"]["source"] == "imported"
    assert content["provenance"]["weights"] == {checkpoint.name: digest(checkpoint)}
    text = done("show", tmp_path / "fm")
    assert FORMATION_ENERGY in text
    assert "MIT, the authors'" in text
    assert json.loads(done("verify", tmp_path / "fm", "--threads=1", "--json"))["ok"]


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("mpall20_fm", [], "does not say what it predicts; give --property"),
        ("mpall20_fm", ["--property=energy"], "write energy=LOW:HIGH:SPACING"),
        ("mpall20_fm", ["--property=crystal_system"], "cannot tell the range"),
        ("mpall20_fm", ["--property=energy=1:0:0.1"], "must have minimum < maximum"),
        ("mpall20_fm", [f"--property={FORMATION_ENERGY}", "--threshold=0"], "is a regression; leave --threshold out"),
        ("mpall20_fm", [f"--property={FORMATION_ENERGY}", "--below"], "is a regression; leave --below out"),
        ("mpall20_Cfm", [f"--property={FORMATION_ENERGY}"], "is a classification; give --threshold"),
        ("mpall20_Cfm", [f"--property={FORMATION_ENERGY}", "--threshold=nan"], "`threshold` must be a number, got nan"),
    ],
)
def test_import_refuses(shared: Path, tmp_path: Path, checkpoint: str, options: list[str], message: str) -> None:
    path = shared / "data" / "cgcnn" / f"{checkpoint}.pth.tar"
    assert message in refused("import", path, tmp_path / "new", *options)
    assert not list(tmp_path.iterdir())


def test_import_of_no_run(weights: Path, tmp_path: Path) -> None:
    assert "none" in refused("import", tmp_path / "none", tmp_path / "new")
    assert "vae.safetensors" in refused("import", weights / "vae.safetensors", tmp_path / "new")
    assert "leave --property" in refused("import", weights, tmp_path / "new", "--property=band_gap")
    refused("import", weights, tmp_path / "new")


def test_show_what_is_no_bundle(weights: Path, tmp_path: Path) -> None:
    for command in ("show", "verify"):
        assert "does not exist" in refused(command, tmp_path / "none")
        assert "manifest.json is missing" in refused(command, weights)
        assert "is no bundle" in refused(command, weights / "vae.safetensors")
