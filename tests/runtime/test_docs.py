"""What README and docs show: blocks of Python run, and commands have the options that are given."""

import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from crystal_examples import batch, rock_salt
from screening_examples import many

from druse import Control, Generator
from druse.candidates import export
from druse.cli._app import app
from druse.io import write_crystals
from druse.rules import default_rules
from druse.runs import Request, Run
from druse.screening import Screening

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
RUN = ("README", "candidates", "dft", "evaluate", "generate", "novelty", "properties", "relax", "report", "screening")
"""Pages whose Python runs here; the others need a trained bundle, a data set, or PyTorch."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        text for language, text in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.S) if language in languages
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of."""
    place = tmp_path_factory.mktemp("docs")
    generator = Generator(backend="ort-cpu", n_threads=1)
    control = Control(elements=("Na", "Cl"), n_atoms=(2, 4))
    for name in ("demo", "a", "b"):
        if name == "b":
            shutil.copytree(place / "runs/a", place / "runs/b")
            continue
        request = Request(
            targets={"formation_energy_per_atom": -2.0}, count=2, control=control, oversample=2, seed=len(name)
        )
        Run.create(place / "runs" / name, generator, request).finish(generator)
    real = many(12)
    for name in ("train", "test"):
        write_crystals(place / "mp_20" / f"{name}.csv", real, [{"material_id": f"mp-{k}"} for k in range(len(real))])
    salts = batch(rock_salt(5.6, 11, 17), rock_salt(4.2, 12, 8))
    write_crystals(place / "more.zip", salts)
    write_crystals(place / "salts.cif", salts)
    Screening.begin(place / "screens/demo", [place / "salts.cif"], default_rules()).finish(n_jobs=1)
    export([place / "screens/demo"], place / "short_list.db")
    (place / "elements.toml").write_text("Na = -1.3\n")
    _renamed(place / "mine.zip")
    return place


def _renamed(path: Path) -> None:
    """An embedded property model under another name."""
    source = resources.files("druse").joinpath("data", "cgcnn_band_gap.zip")
    with source.open("rb") as file, zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b'"cgcnn-mp20"', b'"mine"') if name == "manifest.json" else data)


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in RUN], ids=lambda page: page.stem)
def test_python(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    found = blocks(page, "python")
    assert found, "a page without Python belongs out of the list"
    for text in found:
        code = text.replace("count=32", "count=2")  # README's takes a quarter of a minute
        exec(compile(code, str(page), "exec"), {"__name__": "block"})


def commands() -> Iterator[Any]:
    for page in PAGES:
        for text in blocks(page, "sh", "console"):
            for line in text.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                starts = [k for k, word in enumerate(words) if word == "druse"]
                for start in starts:
                    given = words[start + 1 :]
                    ends = [k for k, word in enumerate(given) if word in ("&&", "|", ">", ";")]
                    if given[: min(ends, default=None)]:
                        yield pytest.param(given[: min(ends, default=None)], id=f"{page.stem}: {' '.join(given)[:60]}")


@pytest.mark.parametrize("given", list(commands()))
def test_commands_have_these_options(given: list[str]) -> None:
    command: click.Command = typer.main.get_command(app)
    name = "druse"
    while isinstance(command, click.Group):
        name, command = given[0], command.commands[given[0]]
        given = given[1:]
    with command.make_context(name, [word.rstrip(";") for word in given]):
        pass
