"""Mistakes that people make with commands, and terminals that they have: one line says what to do, nothing is lost."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pymatgen", reason="compares crystals, finds space groups")
pytest.importorskip("smact", reason="judges compositions")

from crystal_examples import COPPER, NACL, batch
from rich.console import Console

from druse import Control, Generator, InputError
from druse._comparison import read_references
from druse._files import whole_file
from druse.candidates import Exported, export
from druse.cli._generate import _Bars
from druse.io import FORMATS, write_crystals
from druse.runs import Request, Run

pytestmark = pytest.mark.usefixtures("as_users_call")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two shards with a crystal in each."""
    generator = Generator(backend="ort-cpu", n_threads=1)
    control = Control(elements=("Na", "Cl"), n_atoms=(2, 4))
    targets = {"formation_energy_per_atom": -2.0}
    request = Request(targets=targets, count=2, control=control, oversample=2, seed=4, batch=1)
    place = tmp_path_factory.mktemp("mistakes") / "run"
    Run.create(place, generator, request).finish(generator)
    return place


@pytest.fixture
def half(made: Path) -> Iterator[Path]:
    """The same, as it is while its second shard is computed."""
    shard, aside = made / "shards/00001.parquet", made.parent / "aside"
    shard.rename(aside)
    yield made
    if aside.exists():
        aside.rename(shard)


@pytest.fixture
def relaxed(druse: Command, tmp_path: Path) -> Path:
    write_crystals(tmp_path / "good.extxyz", batch(NACL, COPPER))
    options = ("--calculator", "lj", "--no-cell", "--fmax", 1e6, "--jobs", 1)
    assert druse("relax", tmp_path / "good.extxyz", "--out", tmp_path / "relaxed", *options)[0] == 0
    return tmp_path / "relaxed"


@pytest.mark.parametrize(("option", "value"), [("shard", "1/2"), ("bundle", "x.zip"), ("devices", "a"), ("ray", "x")])
def test_a_relaxation_takes_no_options_of_runs(druse: Command, relaxed: Path, option: str, value: str) -> None:
    """They were passed over: each task of an array job did, or was refused, the whole."""
    if option == "ray":
        pytest.importorskip("ray", reason="--ray asks for it first")
    code, _, said = druse("resume", relaxed, f"--{option}", value)
    assert (code, said) == (1, f"error: a relaxation does not take --{option}; leave it out\n")


def test_a_screening_takes_no_options_of_runs(druse: Command, tmp_path: Path) -> None:
    write_crystals(tmp_path / "good.extxyz", batch(NACL, COPPER))
    assert druse("screen", tmp_path / "good.extxyz", "--out", tmp_path / "screened", "--jobs", 1)[0] == 0
    code, _, said = druse("resume", tmp_path / "screened", "--bundle", "x.zip")
    assert (code, said) == (1, "error: a screening does not take --bundle; leave it out\n")


def test_inputs_of_dft_are_not_resumed(druse: Command, tmp_path: Path) -> None:
    (tmp_path / "dft.json").write_text("{}")
    code, _, said = druse("resume", tmp_path)
    assert code == 1
    assert f"druse dft collect {tmp_path} reads what is there" in said


def test_without_ray_no_run_is_begun(druse: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, said = druse("generate", "--count", 1, "--out", tmp_path / "run", "--ray", "auto")
    assert (code, said) == (1, "error: --ray needs ray; pip install 'druse[ray]'\n")
    assert not (tmp_path / "run").exists()


def test_the_generator_that_comes_with_druse_is_shown_and_verified(druse: Command) -> None:
    code, text, _ = druse("bundle", "show", "--json")
    assert (code, json.loads(text)["kind"]) == (0, "con-cdvae")
    code, text, _ = druse("bundle", "verify", "--backend", "ort-cpu", "--json")
    assert (code, json.loads(text)["ok"]) == (0, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "."], ". is a folder; give the name of the page"),
        (["--window", "bandgap=1"], "`windows` has 'bandgap', which is no property here; there are formation_energy"),
    ],
)
def test_reports(
    druse: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = druse("report", made, "--no-symmetry", "--jobs", 1, *options)
    assert code == 1
    assert said.startswith(f"error: {sentence}"), "nor is there an empty line of a bar before it"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_has_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(IsADirectoryError) as caught, whole_file(tmp_path / "there") as file:
        file.write("x")
    assert caught.value.filename == str(tmp_path / "there")


@pytest.mark.parametrize("command", ["predict", "screen", "report", "dft vasp"])
def test_a_run_that_is_not_finished(druse: Command, half: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / ("x.csv" if command == "predict" else "x")
    code, _, said = druse(*command.split(), half, "--out", out, "--jobs", 1)
    assert code == 0
    assert said == (
        f"warning: 1 of 2 crystals of {half} are not made yet and left out; druse resume {half} makes them\n"
    )


def test_a_crystal_that_comes_while_others_are_written_has_not_failed(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path, crystals: Any) -> None:
        next(crystals)
        (half.parent / "aside").rename(half / "shards/00001.parquet")
        path.write_text(f"{1 + len(list(crystals))}")

    monkeypatch.setitem(FORMATS, "late", late)
    assert export([half], tmp_path / "x", format="late") == Exported(crystals=1, left_out=0, unfinished=1)
    assert (tmp_path / "x").read_text() == "1"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("Xx = -1.0", "'Xx' is no element"),
        ("[[rules]]\nkind = 'unique'", "'rules' is no element"),
        ("Li = true", "True is no energy"),
    ],
)
def test_energies_of_elements(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "elements.toml").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_references(tmp_path / "elements.toml")


def test_a_narrow_terminal_shows_whole_numbers(druse: Command, relaxed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "40"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    code, text, _ = druse("resume", relaxed, "--jobs", 1)
    assert code == 0
    assert "matched" in text
    assert "…" not in text


def test_a_bar_ends_where_all_is_done() -> None:
    file = io.StringIO()
    with _Bars(Console(file=file, width=100), shown=True) as bars:
        bars(("crystals", 3.9999999, 4))
    assert "4 of 4" in file.getvalue()
    assert "╸" not in file.getvalue()


def test_an_encoding_without_angstroms() -> None:
    command = [sys.executable, "-m", "druse", "bundle", "show"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "20 neighbours within 9 ?" in shown.stdout


def test_output_to_a_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = f"{sys.executable} -m druse bundle show > /dev/full"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: the output: no space left on device; make room")
    assert len(shown.stderr.splitlines()) == 1


def test_text_is_written_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from druse._files import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as file: file.write('Å')"
    )
    told = ("-X", "warn_default_encoding", "-W", "error::EncodingWarning")
    subprocess.run([sys.executable, *told, "-c", code, str(tmp_path / "text")], check=True)
    assert (tmp_path / "text").read_bytes() == "Å".encode()
