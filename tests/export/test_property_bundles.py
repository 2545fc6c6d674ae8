"""Property models from weights to bundle to runtime: the authors' twelve (``../shared/data/cgcnn``), and ours."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="bundles are exported from PyTorch")
pytest.importorskip("onnxscript", reason="bundles are exported from PyTorch")
pytest.importorskip("onnxruntime", reason="bundles are checked on ONNX Runtime")

from druse import Bundle, Crystals, InputError, radius_graph  # noqa: E402
from druse.candidates import read_entries  # noqa: E402
from druse.properties import EMBEDDED, PropertyModel, PropertyModels  # noqa: E402
from druse.tables import CrystalTable, load_table  # noqa: E402
from druse_export.bundles.imported import import_bundle  # noqa: E402
from druse_export.bundles.trained import build_bundle  # noqa: E402
from druse_export.models.cgcnn import crystal_table  # noqa: E402
from druse_export.models.weights import digest, read_weights  # noqa: E402

DATA = ("mpall20", "mpall40", "oqmd")
KINDS = {
    "fm": ("formation_energy_per_atom", None),
    "bg": ("band_gap", None),
    "Cbg": ("band_gap", 0.0),
    "Cfm": ("formation_energy_per_atom", -0.9),
}
MODELS = [f"{data}_{kind}" for data in DATA for kind in KINDS]
COLUMNS = {
    "fm": "formation_energy_per_atom|{}|1|eV/atom",
    "bg": "band_gap|{}|1|eV",
    "Cbg": "band_gap_class|{}|1|P(>0 eV)",
    "Cfm": "formation_energy_class|{}|1|P(>-0.9 eV/atom)",
}
WEIGHTS = Path(__file__).parents[2] / "models"
WITHIN = 1e-4


def import_into(folder: Path, shared: Path, name: str) -> Path:
    data, _, kind = name.partition("_")
    property_, threshold = KINDS[kind]
    import_bundle(
        shared / "data" / "cgcnn" / f"{name}.pth.tar", folder / name, name=data, licence="MIT", property_=property_,
        threshold=threshold, below=kind == "Cfm",
    )  # fmt: skip
    return folder / name


@pytest.fixture(scope="session")
def imported(shared: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a bundle of each of the twelve."""

    def make(out: Path) -> None:
        part = out.with_suffix(".part")
        for name in MODELS:
            import_into(part, shared, name)
        part.rename(out)

    return made_once("imported_cgcnn", make)


@pytest.fixture(scope="module")
def recorded(shared: Path) -> tuple[Crystals, dict[str, np.ndarray]]:
    """The authors' 49 crystals in the cells of their CIF, and their predictions."""
    (entries,) = read_entries([shared / "data" / "mptest" / "mptest_train.csv"])
    assert entries.ok.all()
    with (shared / "data" / "cgcnn" / "mptest_train_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = [entries.ids.index(row["material_id"]) for row in rows]
    assert len(places) == 49
    return entries.crystals.take(places), {name: np.array([float(row[name]) for row in rows]) for name in MODELS}


def ties(crystals: Crystals, within: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Crystals with an atom of which neighbours 12 and 13 are as far, and those of them where the two elements differ.

    Only in the latter does it matter to a model's first layer which one is taken.
    """
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=8.0, max_neighbors=12, shell_tolerance=within
    )
    crystal = np.repeat(np.arange(len(crystals)), crystals.n_atoms)
    tied, differ = np.zeros(len(crystals), bool), np.zeros(len(crystals), bool)
    for atom in np.flatnonzero(graph.degree > 12):
        edges = graph.in_edge[atom, : graph.degree[atom]]
        length, species = graph.distance[edges], crystals.species[graph.src[edges]]
        tied[crystal[atom]] = True
        differ[crystal[atom]] |= len(set(species[np.abs(length - np.sort(length)[11]) < within])) > 1
    return tied, differ


@pytest.mark.slow
def test_the_authors_predictions(imported: Path, recorded: tuple[Crystals, dict[str, np.ndarray]]) -> None:
    """All twelve at once; an ensemble of three for each property."""
    crystals, predictions = recorded
    columns = PropertyModels.open([imported / name for name in MODELS], n_threads=2).columns(crystals)
    # which of two neighbours is taken is not said anywhere, but never changes what these models see: none is exempted
    tied, differ = ties(crystals)
    assert (tied.sum(), differ.sum()) == (37, 0)
    for name in MODELS:
        data, _, kind = name.partition("_")
        values = columns[COLUMNS[kind].format(data)]
        if kind == "Cfm":  # whose class 1 is low
            values = 1 - values
        assert np.abs(values - predictions[name]).max() < WITHIN, name
    for kind, column in COLUMNS.items():
        short = column.partition("|")[0]
        each = np.stack([predictions[f"{data}_{kind}"] for data in DATA])
        each = 1 - each if kind == "Cfm" else each
        assert np.abs(columns[short] - each.mean(axis=0)).max() < WITHIN
        assert np.abs(columns[f"{short}_std"] - each.std(axis=0, ddof=1)).max() < WITHIN


def test_an_ensemble_of_the_authors_and_ours(shared: Path, tmp_path: Path) -> None:
    theirs = import_into(tmp_path, shared, "mpall20_Cfm")
    (entries,) = read_entries([shared / "data" / "mptest" / "mptest_test.csv"])
    columns = PropertyModels.open([theirs], embedded=True, n_threads=2).columns(entries.crystals)
    long = [COLUMNS["Cfm"].format(model) for model in ("cgcnn-mp20", "mpall20")]
    assert [name for name in columns if name.startswith("formation_energy_class|")] == long
    values = np.stack([columns[name] for name in long])
    assert np.corrcoef(values)[0, 1] > 0.8  # classes are the same way round
    np.testing.assert_allclose(columns["formation_energy_class"], values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(columns["formation_energy_class_std"], values.std(axis=0, ddof=1), atol=1e-15)
    assert "band_gap_std" not in columns


def test_classes_are_turned_round_only_where_there_are_some(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a regression; leave --below out"):
        import_bundle(
            shared / "data" / "cgcnn" / "mpall20_fm.pth.tar", tmp_path / "new", name="x", licence="MIT",
            property_="formation_energy_per_atom", below=True,
        )  # fmt: skip


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_comes_with_druse_is_what_was_trained(name: str) -> None:
    weights = WEIGHTS / f"{name}.safetensors"
    bundle = Bundle.embedded(name)
    assert bundle.manifest.provenance.weights == {weights.name: digest(weights)}
    network, _ = read_weights(weights)
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 12, 20)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    cells = np.eye(3) * (14.0 * sizes[:, None, None]) ** (1 / 3) + rng.normal(0, 0.2, (20, 3, 3))
    species = rng.integers(1, 101, offsets[-1]).astype(np.int32)
    crystals = Crystals(rng.random((offsets[-1], 3)), cells, offsets, species)
    table = crystal_table(crystals, network.config)
    with torch.no_grad():
        exact = network.double().predict(table._replace(distance=table.distance.double())).numpy()
    got = PropertyModel.open(bundle, n_threads=1).predict(crystals)
    assert np.abs(got - exact).max() < 1e-5 * max(1.0, np.abs(exact).max())


def test_it_is_built_again_the_same(tmp_path: Path) -> None:
    """As ``scripts/property_bundles.sh`` does it; other versions of what exports it write other bytes."""
    embedded = Bundle.embedded("cgcnn_band_gap")
    manifest = embedded.manifest
    built = build_bundle(
        WEIGHTS / "cgcnn_band_gap.safetensors", tmp_path / "gap", name=manifest.name, version="1",
        licence=manifest.licence,
    )  # fmt: skip
    if built.manifest.provenance.created_by != manifest.provenance.created_by:
        pytest.skip(f"the bundle was built by {manifest.provenance.created_by}")
    assert built.digest == embedded.digest


@pytest.fixture(scope="module")
def validation(shared: Path) -> CrystalTable:
    return load_table(shared / "data" / "mp20" / "val.csv.gz", niggli=False, n_jobs=2)


@pytest.mark.slow
def test_figures_on_validation_data(validation: CrystalTable) -> None:
    columns = PropertyModels.open(n_threads=2).columns(validation.crystals)
    energy, gap = (validation.properties[name] for name in ("formation_energy_per_atom", "band_gap"))
    assert len(energy) == 1215
    assert np.abs(columns["formation_energy_per_atom"] - energy).mean() <= 0.12  # eV/atom; 0.049
    assert np.abs(columns["band_gap"] - gap).mean() <= 0.40  # eV; 0.27
    assert np.mean((columns["band_gap_class"] > 0.5) == (gap > 0)) >= 0.90  # 0.905
    assert np.mean((columns["formation_energy_class"] > 0.5) == (energy > -0.9)) >= 0.95  # 0.970
