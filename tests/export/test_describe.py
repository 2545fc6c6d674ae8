"""`druse data describe` and its figure: numbers that can be counted by hand, pictures that are pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="draws")

from druse import Crystals, InputError
from druse_export.data import CrystalTable, Rejected, describe
from druse_export.data.figure import draw_distributions, figure_format, save_figure


def small_table(**properties: list[float]) -> CrystalTable:
    """Rock salt, diamond and iron, each in a cube of 4 Angstrom, with an atom less than they should have."""
    crystals = Crystals(
        np.zeros((6, 3)) + np.linspace(0, 0.8, 6)[:, None],
        np.stack([4.0 * np.eye(3)] * 3),
        np.array([0, 3, 5, 6]),
        np.array([11, 17, 17, 6, 6, 26], np.int32),
    )
    values = {name: np.array(column) for name, column in properties.items()}
    return CrystalTable(crystals, ("salt", "diamond", "iron"), {**values, "n_atom": np.array([3.0, 2.0, 1.0])})


def test_what_is_counted() -> None:
    table = small_table(
        band_gap=[5.0, np.nan, 0.0], other=[1.0, 2.0, 6.0], spacegroup=[225, 227, 229], crystal_system=[6, 6, 6]
    )
    found = describe(table, n_filtered=2)
    assert (found.n_rows, found.n_crystals, found.n_filtered) == (5, 3, 2)
    assert found.elements == {"C": 1, "Na": 1, "Cl": 1, "Fe": 1}
    assert {name: n for name, n in found.crystal_systems.items() if n} == {"cubic": 3}
    gap, other, n_atom, density = found.properties
    assert (gap.name, gap.unit, gap.count, gap.minimum, gap.mean, gap.median, gap.maximum) == (
        "band_gap", "eV", 2, 0.0, 2.5, 2.5, 5.0,
    )  # fmt: skip
    assert (other.unit, other.count, other.mean, other.median) == ("", 3, 3.0, 2.0)
    assert (n_atom.name, n_atom.maximum) == ("n_atom", 3.0)
    assert (density.name, density.unit, density.minimum) == ("number_density", "atoms/Å³", 1 / 64)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["properties"][0]["median"] == 2.5


def test_nothing_left_is_described_but_not_drawn() -> None:
    empty = small_table(band_gap=[1.0, 2.0, 3.0]).select(np.zeros(3, bool))
    found = describe(empty, n_filtered=3)
    assert (found.n_rows, found.n_crystals, found.elements, found.properties) == (3, 0, {}, ())
    with pytest.raises(InputError, match="nothing to draw"):
        draw_distributions(empty, "nothing")


def test_filters_that_are_not_given_filter_nothing() -> None:
    table = small_table(band_gap=[9.0, np.nan, 0.0])
    everything = dict.fromkeys(("min_density", "max_hull", "max_gap", "max_atoms"))
    assert table.filtered(**everything).ids == table.ids
    assert table.filtered(**{**everything, "max_gap": 8.0}).ids == ("diamond", "iron")
    assert table.filtered(**{**everything, "min_density": 0.02}).ids == ("salt", "diamond")


@pytest.mark.parametrize(
    "table",
    [
        small_table(),
        small_table(band_gap=[0.0, 0.0, 0.0], e_above_hull=[0.0, 0.1, np.nan]),
        small_table(formation_energy_per_atom=[-1.0, -1.0, -1.0], crystal_system=[0.0, np.nan, 6.0]),
        small_table(band_gap=[np.nan, np.nan, np.nan], crystal_system=[np.nan, np.nan, np.nan]),
        small_table(a=[1.0, 2.0, 1e30], b=[np.inf, 1.0, 2.0], c=[0.0, 0.0, -1e-30], d=[1.0, 2.0, 3.0]),
    ],
    ids=["no properties", "metals", "equal values", "no values", "wild values"],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_any_table_can_be_drawn(tmp_path: Path, table: CrystalTable, suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    save_figure(draw_distributions(table, "three crystals"), path, dpi=40)
    assert path.read_bytes()[:5] == (b"\x89PNG\r" if suffix == "png" else b"<?xml")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    script = (
        "import matplotlib\nfrom test_describe import small_table\n"
        "from druse_export.data.figure import draw_distributions\n"
        "before = dict(matplotlib.rcParams)\ndraw_distributions(small_table(), '')\n"
        "print(before == dict(matplotlib.rcParams))\n"
        "import matplotlib.pyplot\nprint(matplotlib.pyplot.get_fignums())"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert child.stdout.split() == ["True", "[]"]


def test_a_figure_of_no_kind() -> None:
    assert figure_format(Path("a.PDF")) == "pdf"
    with pytest.raises(InputError, match=r"must end in \.png, .* got 'a\.doc'"):
        figure_format(Path("a.doc"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "druse", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def salts(tmp_path: Path) -> Path:
    """Thirteen broken rows, and one structure twice, in columns as OQMD calls them."""
    pymatgen = pytest.importorskip("pymatgen.core", reason="writes the structure")
    salt = pymatgen.Structure.from_spacegroup(
        "Fm-3m", pymatgen.Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).to(fmt="cif")
    lines = ["entry_id,delta_e,stability,band_gap,unit_cell"]
    lines += [f'{k},-2.1,0.0,5.0,"{salt}"' for k in (7, 8)]
    lines += [f"bad{k},0,0,0,[nonsense]" for k in range(13)]
    path = tmp_path / "salts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_for_people(salts: Path, tmp_path: Path) -> None:
    result = run("describe", salts, "--cache", tmp_path / "cache", "--out", tmp_path / "a.png", "--jobs", "1")
    assert result.returncode == 0, result.stderr
    assert "15 rows, 2 read, 13 skipped" in result.stdout
    assert result.stdout.count("skipped bad") == 10
    assert "and 3 more" in result.stdout
    assert "formation_energy_per_atom" in result.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert result.stderr == ""


def test_the_command_for_programs(salts: Path) -> None:
    result = run("describe", salts, "--no-cache", "--json", "--max-atoms", "7", "--jobs", "1")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["n_rows"], found["n_crystals"], found["n_filtered"], len(found["rejected"])) == (15, 0, 2, 13)
    assert found["rejected"][12]["id"] == "bad12"
    assert found["rejected"][12]["reason"]


def test_the_command_refuses_before_it_works(salts: Path, tmp_path: Path) -> None:
    result = run("describe", salts, "--out", tmp_path / "figure.doc")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: a figure's name must end in .png")
    assert run("describe", tmp_path / "none.csv", "--no-cache").stderr.count("\n") == 1


def test_rejected_rows_are_described() -> None:
    table = small_table()
    table = CrystalTable(table.crystals, table.ids, table.properties, (Rejected("x", "no reason"),))
    assert describe(table).n_rows == 4
    assert describe(table).to_dict()["rejected"] == [{"id": "x", "reason": "no reason"}]
