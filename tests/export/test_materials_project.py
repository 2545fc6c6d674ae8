"""The thin part before mp-api: what it needs, and how a document becomes a row."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pymatgen", reason="structures are pymatgen's")

from pymatgen.core import Lattice, Structure

from druse.errors import DownloadError, InputError
from druse_export.data import load_table
from druse_export.data.materials_project import COLUMNS, fetch_materials_project, write_documents

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def document(**changes: object) -> SimpleNamespace:
    """What the API gives for rock salt, as far as we ask."""
    facts = {
        "material_id": "mp-22862",
        "structure": NACL,
        "formation_energy_per_atom": -2.1,
        "band_gap": 5.0,
        "energy_above_hull": 0.0,
        "symmetry": SimpleNamespace(number=225),
        "formula_pretty": "NaCl",
    }
    return SimpleNamespace(**{**facts, **changes})


def test_documents_become_a_table_like_mp_20(tmp_path: Path) -> None:
    path = tmp_path / "mp.csv"
    bare = document(material_id="mp-1", band_gap=None, energy_above_hull=None, symmetry=None)
    assert write_documents(path, [document(), bare]) == 2
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["pretty_formula"], rows[0]["spacegroup.number"], rows[1]["band_gap"]) == ("NaCl", "225", "")
    table = load_table(path, n_jobs=1)
    assert table.ids == ("mp-22862", "mp-1")
    assert table.properties["formation_energy_per_atom"].tolist() == [-2.1, -2.1]
    assert table.properties["e_above_hull"][0] == 0.0
    assert table.properties["spacegroup"][0] == 225
    assert table.crystals.n_atoms.tolist() == [8, 8]


def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_documents(tmp_path / "mp.csv", [document(), document(structure=None)])
    assert list(tmp_path.iterdir()) == []


def test_no_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wants an API key; .*MP_API_KEY.*--api-key"):
        fetch_materials_project(tmp_path / "mp.csv", api_key=None, chemical_systems=["Li-Fe-O"])


@pytest.mark.parametrize("system", ["li-fe", "LiFeO", "Li-", "Li,Fe", ""])
def test_what_is_no_chemical_system(tmp_path: Path, system: str) -> None:
    with pytest.raises(InputError, match="must be symbols joined by hyphens"):
        fetch_materials_project(tmp_path / "mp.csv", api_key="key", chemical_systems=[system])


def command(folder: Path, *arguments: str, key: str | None) -> subprocess.CompletedProcess[str]:
    """`druse data fetch mp` where mp-api cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "MP_API_KEY"}
    if key is not None:
        environment["MP_API_KEY"] = key
    script = "import sys; sys.modules['mp_api'] = None; sys.argv[0] = 'druse'; import druse.cli as c; c.main()"
    whole = [sys.executable, "-c", script, "data", "fetch", "mp", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    without_key = command(tmp_path, "--chemsys", "Li-Fe-O", key=None)
    assert without_key.returncode == 1
    assert without_key.stderr.startswith("error: the Materials Project wants an API key")
    without_client = command(tmp_path, "--chemsys", "Li-Fe-O", key="secret")
    assert without_client.returncode == 1
    assert without_client.stderr == (
        "error: fetching from the Materials Project needs mp-api; pip install 'druse[mp]'\n"
    )
    by_option = command(tmp_path, "--api-key", "secret", key=None)
    assert by_option.stderr == without_client.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "materials_project.csv").write_text("mine")
    result = command(tmp_path, "--max-atoms", "4", key="secret")
    assert result.returncode == 1
    assert "materials_project.csv is there already" in result.stderr


def test_the_real_client_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("mp_api.client", reason="mp-api is an extra of its own")
    with pytest.raises(DownloadError, match="the Materials Project could not be asked"):
        fetch_materials_project(tmp_path / "mp.csv", api_key="x" * 32, chemical_systems=["Na-Cl"])
