"""Property models: those that come with Druse, columns of several, and crystals that no model can be asked about."""

import re
from pathlib import Path

import bundles
import msgspec
import numpy as np
import pytest
from crystal_examples import BRASS, COPPER, CSCL, MGO, NACL, ZINC_BLENDE, crystal, supercell

from druse import Bundle, Crystals, InputError
from druse.backends import open_backend
from druse.candidates import Entries
from druse.properties import EMBEDDED, PropertyModel, PropertyModels
from druse.verify import verify

LONG = [
    "formation_energy_per_atom|cgcnn-mp20|1|eV/atom",
    "band_gap|cgcnn-mp20|1|eV",
    "band_gap_class|cgcnn-mp20|1|P(>0 eV)",
    "formation_energy_class|cgcnn-mp20|1|P(>-0.9 eV/atom)",
]
SHORT = [name.partition("|")[0] for name in LONG]
EMPTY = crystal(np.eye(3), [], np.zeros((0, 3)))
FLAT = crystal(np.diag([3.0, 3.0, 0.0]), [11], [[0, 0, 0]])
NOWHERE = crystal(4 * np.eye(3), [11, 17], [[0, 0, 0], [np.nan, 0.5, 0.5]])
LONELY = crystal(20 * np.eye(3), [8], [[0, 0, 0]])
HEAVY = crystal(4 * np.eye(3), [101, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
NOTHING = crystal(4 * np.eye(3), [0, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
GOOD = Crystals.concatenate([NACL, MGO, COPPER, supercell(BRASS), CSCL, supercell(supercell(ZINC_BLENDE)), LONELY])
BAD = {"empty": EMPTY, "flat": FLAT, "nowhere": NOWHERE, "heavy": HEAVY, "nothing": NOTHING}


@pytest.fixture(scope="module")
def models() -> PropertyModels:
    return PropertyModels.open(n_threads=2)


def put(place: Path, **changes: object) -> Path:
    """A bundle made by hand: its network gives 2 for every crystal."""
    files = bundles.cgcnn_files()
    changed = msgspec.structs.replace(bundles.cgcnn_manifest(files), **changes)
    return bundles.put("folder", place, bundles.with_manifest(files, changed))


def put_json(place: Path, **changes: object) -> Path:
    """The same with changes that its manifest's own type may refuse; None leaves a field out."""
    files = bundles.cgcnn_files()
    manifest = {**msgspec.to_builtins(bundles.cgcnn_manifest(files)), **changes}
    text = msgspec.json.encode({name: value for name, value in manifest.items() if value is not None})
    return bundles.put("folder", place, {**files, bundles.MANIFEST: text})


@pytest.mark.parametrize("name", EMBEDDED)
def test_one_that_comes_with_druse_is_whole_and_gives_what_it_gave(name: str) -> None:
    bundle = Bundle.embedded(name)
    assert bundle.path == ""
    manifest = bundle.manifest
    assert manifest.name == "cgcnn-mp20"
    assert manifest.version == "1"  # type: ignore[union-attr]
    assert "CC BY 4.0" in manifest.licence
    assert manifest.provenance.source == "trained"
    assert "MP-20" in manifest.provenance.data
    assert "1,215 crystals" in manifest.provenance.note
    assert sum(file.bytes for file in manifest.files.values()) < 600_000
    (deviation,) = verify(bundle, open_backend("ort-cpu", n_threads=1))
    assert deviation.ok
    assert deviation.alone


def test_a_name_that_does_not_come_with_druse() -> None:
    with pytest.raises(InputError, match="comes without the bundle 'none'; give one"):
        Bundle.embedded("none")


def test_columns(models: PropertyModels) -> None:
    columns = models.columns(GOOD)
    assert list(columns) == [*LONG, *SHORT]
    assert list(models.units) == list(columns)
    assert [models.units[name] for name in SHORT] == ["eV/atom", "eV", "P(>0 eV)", "P(>-0.9 eV/atom)"]
    for long, short in zip(LONG, SHORT, strict=True):
        assert columns[long].dtype == np.float64
        assert columns[long].tobytes() == columns[short].tobytes()  # of one model
        assert np.isfinite(columns[long]).all()
    for name in SHORT[2:]:
        assert (columns[name] >= 0).all()
        assert (columns[name] <= 1).all()
    # rock salt binds and insulates, brass does not
    assert columns["formation_energy_per_atom"][0] < -1.5
    assert columns["band_gap"][0] > 3
    assert columns["band_gap_class"][0] > 0.9
    assert columns["formation_energy_class"][0] < 0.1
    assert columns["formation_energy_per_atom"][3] > -0.5
    assert columns["band_gap_class"][3] < 0.1
    assert columns["formation_energy_class"][3] > 0.9


def test_one_model_alone_gives_the_same(models: PropertyModels) -> None:
    columns = models.columns(GOOD)
    for name, long in zip(EMBEDDED, LONG, strict=True):
        alone = PropertyModel.open(Bundle.embedded(name), n_threads=1).predict(GOOD)
        values = alone if alone.ndim == 1 else alone[:, 1]
        assert columns[long].tobytes() == values.astype(np.float64).tobytes()


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_evaluated_is_not_a_number_and_harms_nothing(models: PropertyModels, kind: str) -> None:
    alone = models.columns(GOOD)
    among = models.columns(Crystals.concatenate([BAD[kind], GOOD[0], BAD[kind], GOOD, BAD[kind]]))
    for name, values in among.items():
        assert np.isnan(values[[0, 2, -1]]).all()
        assert values[1] == alone[name][0]
        assert values[3:-1].tobytes() == alone[name].tobytes()


def test_bytes_do_not_depend_on_the_batch_or_the_threads(models: PropertyModels) -> None:
    many = Crystals.concatenate([GOOD] * 12)  # several bins
    whole = models.columns(many)
    one_thread = PropertyModels.open(n_threads=1).columns(many)
    each = [models.columns(one) for one in GOOD]
    for name, values in whole.items():
        assert values.tobytes() == one_thread[name].tobytes()
        assert values.tobytes() == np.tile(np.concatenate([one[name] for one in each]), 12).tobytes()


def test_no_crystals(models: PropertyModels) -> None:
    columns = models.columns(GOOD.take([]))
    assert list(columns) == [*LONG, *SHORT]
    assert all(values.shape == (0,) for values in columns.values())
    assert PropertyModel.open(Bundle.embedded("cgcnn_band_gap_class")).predict(GOOD.take([])).shape == (0, 2)
    assert PropertyModels.open(embedded=False).columns(GOOD) == {}


def test_many_empty_crystals_beside_a_large_one_take_little_memory(models: PropertyModels) -> None:
    large = crystal(30 * np.eye(3), [11] * 400, np.random.default_rng(0).random((400, 3)))
    many = Crystals.concatenate([large, *[EMPTY] * 20_000])
    assert bundles.peak_memory(lambda: models.columns(many)) < 60e6


def test_an_ensemble(tmp_path: Path) -> None:
    """A model of 2 for every crystal beside the embedded one, and a third one."""
    energy = bundles.cgcnn_manifest({}).target
    target = msgspec.structs.replace(energy, name="formation_energy_per_atom")
    two = put(tmp_path / "a", target=target, name="two")
    again = put(tmp_path / "b", target=target, name="two", version="2024-05")
    both = PropertyModels.open([two], embedded=True, n_threads=2)
    columns, ours = both.columns(GOOD), PropertyModels.open(n_threads=2).columns(GOOD)[SHORT[0]]
    assert list(columns) == [
        *LONG, f"{SHORT[0]}|two|1|eV/atom", SHORT[0], f"{SHORT[0]}_std", *SHORT[1:],
    ]  # fmt: skip
    assert list(both.units) == list(columns)
    assert both.units[f"{SHORT[0]}_std"] == "eV/atom"
    assert columns[f"{SHORT[0]}|two|1|eV/atom"].tolist() == [2.0] * len(GOOD)
    np.testing.assert_allclose(columns[SHORT[0]], (ours + 2) / 2, rtol=1e-15)
    np.testing.assert_allclose(columns[f"{SHORT[0]}_std"], np.std([ours, np.full(len(GOOD), 2.0)], axis=0, ddof=1))
    three = PropertyModels.open([Bundle.open(two), again], embedded=True, n_threads=1).columns(GOOD)
    np.testing.assert_allclose(three[SHORT[0]], (ours + 4) / 3, rtol=1e-15)
    np.testing.assert_allclose(three[f"{SHORT[0]}_std"], np.abs(ours - 2) / np.sqrt(3), rtol=1e-12)
    assert f"{SHORT[0]}|two|2024-05|eV/atom" in three


def test_other_neighbours_are_found_too(tmp_path: Path) -> None:
    """The model made by hand takes 4 neighbours within 6 Angstrom; both sorts run side by side."""
    columns = PropertyModels.open([put(tmp_path)], embedded=True, n_threads=2).columns(GOOD)
    assert columns["energy"].tolist() == [2.0] * len(GOOD)
    alone = PropertyModels.open(n_threads=2).columns(GOOD)
    assert all(columns[name].tobytes() == alone[name].tobytes() for name in alone)


@pytest.mark.usefixtures("as_users_call")
class TestRefused:
    """Each with one sentence that says what to do."""

    def refused(self, models: list[object], says: str) -> None:
        with pytest.raises(InputError, match=says) as caught:
            PropertyModels.open(models, n_threads=1)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400

    def test_the_same_column_twice(self, tmp_path: Path) -> None:
        a, b = put(tmp_path / "a"), put(tmp_path / "b")
        self.refused([a, b], re.escape("the same column 'energy|tiny|1|eV/atom'; leave one out"))
        self.refused([a, Bundle.embedded(EMBEDDED[0]), Bundle.embedded(EMBEDDED[0])], "would write the same column")

    def test_two_units(self, tmp_path: Path) -> None:
        target = msgspec.structs.replace(bundles.cgcnn_manifest({}).target, unit="meV/atom")
        self.refused([put(tmp_path / "a"), put(tmp_path / "b", target=target)], "which have no mean; give one")

    def test_a_generator(self) -> None:
        self.refused([Bundle.embedded()], "holds a generator .Con-CDVAE.; give the bundle of a property model")

    def test_no_bundle(self, tmp_path: Path) -> None:
        self.refused([tmp_path / "none"], "does not exist")

    @pytest.mark.parametrize("version", ["", "a|b", "a\nb", "1" * 41])
    def test_a_version_that_is_no_part_of_a_name(self, tmp_path: Path, version: str) -> None:
        self.refused([put_json(tmp_path, version=version)], "`version` must be up to 40 characters")


def test_a_bundle_without_a_version_is_version_1(tmp_path: Path) -> None:
    assert PropertyModel.open(put_json(tmp_path, version=None)).column == "energy|tiny|1|eV/atom"


def test_a_name_cannot_break_the_columns(tmp_path: Path) -> None:
    models = PropertyModels.open([put(tmp_path, name="a|b\x1b[31m")], n_threads=1)
    assert list(models.units) == ["energy|a/b?[31m|1|eV/atom", "energy"]


def test_entries_keep_what_their_source_says(models: PropertyModels) -> None:
    n = len(GOOD)
    gap, note = np.arange(n) + 0.5, np.array(["note"] * n)
    entries = Entries(0, ("x",) * n, tuple(map(str, range(n))), ("",) * n, GOOD, {"band_gap": gap, "note": note})
    once = models.add_to(entries)
    assert list(once.columns) == ["source_band_gap", "note", *LONG, *SHORT]
    assert once.columns["source_band_gap"] is gap
    assert once.columns["band_gap"].tobytes() == models.columns(GOOD)["band_gap"].tobytes()
    assert list(models.add_to(once).columns) == list(once.columns)
    assert models.add_to(once).columns["source_band_gap"] is gap
