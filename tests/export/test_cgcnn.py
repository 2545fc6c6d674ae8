"""CGCNN: the authors' twelve models give the authors' predictions (``../shared/data/cgcnn``)."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need PyTorch")

from druse import Crystals, InputError, radius_graph  # noqa: E402
from druse_export.importing.cgcnn import read_cgcnn  # noqa: E402
from druse_export.models.cgcnn import CGCNN, CGCNNConfig, neighbor_table  # noqa: E402

MODELS = [f"{data}_{kind}" for data in ("mpall20", "mpall40", "oqmd") for kind in ("fm", "bg", "Cbg", "Cfm")]


@pytest.fixture(scope="module")
def recorded(shared: Path) -> tuple[Crystals, dict[str, np.ndarray]]:
    """49 crystals, their cells as published, and the authors' predictions."""
    from pymatgen.core import Structure

    with (shared / "data" / "mptest" / "mptest_train.csv").open(newline="") as file:
        cifs = {row["material_id"]: row["cif"] for row in csv.DictReader(file)}
    with (shared / "data" / "cgcnn" / "mptest_train_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    crystals = []
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen remarks on rounded coordinates
            found = Structure.from_str(cifs[row["material_id"]], fmt="cif")
        numbers = np.array([site.specie.Z for site in found], np.int32)
        crystals.append(Crystals(found.frac_coords, found.lattice.matrix[None], np.array([0, len(found)]), numbers))
    predictions = {name: np.array([float(row[name]) for row in rows]) for name in MODELS}
    return Crystals.concatenate(crystals), predictions


@pytest.mark.parametrize("name", MODELS)
def test_predictions(shared: Path, recorded: tuple[Crystals, dict[str, np.ndarray]], name: str) -> None:
    crystals, predictions = recorded
    model = read_cgcnn(shared / "data" / "cgcnn" / f"{name}.pth.tar")
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=8.0, max_neighbors=12, shell_tolerance=None
    )
    with torch.no_grad():
        predicted = model.predict(neighbor_table(graph, crystals.species, model.config))
    values = predicted[:, 1] if model.config.task == "classification" else predicted
    # no crystal is exempted: the models do not tell neighbours 12 and 13 apart where they tie
    assert np.abs(values.numpy() - predictions[name]).max() < 1e-4


def test_the_published_size() -> None:
    assert sum(p.numel() for p in CGCNN(CGCNNConfig()).parameters()) == 80_833


def test_a_missing_neighbour_is_atom_0_beyond_the_cutoff() -> None:
    crystal = Crystals(np.zeros((1, 3)), np.eye(3)[None] * 7.9, np.array([0, 1]), np.array([11], np.int32))
    both = Crystals.concatenate([crystal, crystal])
    graph = radius_graph(both.frac, both.cells, both.offsets, cutoff=8.0, max_neighbors=12, shell_tolerance=None)
    table = neighbor_table(graph, both.species, CGCNNConfig())
    assert table.distance[1, :6].tolist() == pytest.approx([7.9] * 6, abs=1e-5)
    assert table.distance[1, 6:].tolist() == [9.0] * 6
    assert table.neighbor[1].tolist() == [1] * 12


def test_a_symmetrised_graph_is_refused() -> None:
    graph = radius_graph(
        np.zeros((1, 3)), np.eye(3)[None] * 3, [0, 1], cutoff=8.0, max_neighbors=12, symmetrise="union"
    )
    with pytest.raises(InputError, match="directed edges"):
        neighbor_table(graph, np.array([11]), CGCNNConfig())
