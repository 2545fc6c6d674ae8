"""Shapes and types checked at run time, the data that tests share, Hypothesis's profile."""

import csv
import gzip
import importlib.util
import json
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Before anything imports druse; its modules and not the package itself, for in an editable install only the installer's
# own finder knows where the package's native library lies.
_package = importlib.util.find_spec("druse")
assert _package is not None
assert "druse" not in sys.modules
_modules = [f"druse.{module.name}" for module in pkgutil.iter_modules(_package.submodule_search_locations)]
jaxtyping.install_import_hook(_modules, "beartype.beartype")

from reference.structures import Structure  # noqa: E402

settings.register_profile(
    "druse",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors],
)
settings.load_profile("druse")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of upstream's recorded outputs and of published crystals, beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared, with upstream's fixtures and the data sets, is not beside this repository")
    return folder


@pytest.fixture(scope="session")
def stress_cells(shared: Path) -> list[Structure]:
    """199 hard cells from published sets: one atom, thin, skewed, dense, large (``../shared/data/cells``)."""
    lines = (shared / "data" / "cells" / "stress.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [Structure(row["id"], np.array(row["frac_coords"]), np.array(row["lattice"])) for row in rows]


@pytest.fixture(scope="session")
def mp20_crystals(shared: Path) -> list[Structure]:
    """Every eighth of 1,215 Materials Project crystals (``../shared/data/mp20``; Jain et al., APL Mater. 1, 011002)."""
    from pymatgen.io.cif import CifParser

    with gzip.open(shared / "data" / "mp20" / "val.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))[::8]
    found = []
    for row in rows:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Issues encountered while parsing CIF: .* rounded")
            (crystal,) = CifParser.from_str(row["cif"]).parse_structures(primitive=False)
        found.append(Structure(row["material_id"], np.array(crystal.frac_coords), np.array(crystal.lattice.matrix)))
    return found


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder by a function that takes seconds, once for all test processes."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent

    def make(name: str, work: Callable[[Path], object]) -> Path:
        folder, lock = common / name, common / f"{name}.lock"
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:
            for _ in range(3000):
                if folder.exists():
                    return folder
                time.sleep(0.1)
            pytest.fail(f"another test process did not finish {name}")
        work(folder)  # writes elsewhere and renames
        return folder

    return make


@pytest.fixture
def as_users_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run-time type checks: what the library itself says about bad input, as outside of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def druse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, output, errors."""
    from druse.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["druse", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        written = capsys.readouterr()
        return int(left.value.code or 0), written.out, written.err

    return call
