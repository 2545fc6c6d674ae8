"""The metrics of CDVAE: sets against themselves and against others, by hand, by matminer and SciPy."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import BRASS, COPPER, CSCL, MGO, NACL, ZINC_BLENDE, batch, crystal, rock_salt, supercell

pytest.importorskip("matminer", reason="makes the fingerprints")
pytest.importorskip("smact", reason="knows the oxidation states")

from druse import Crystals, InputError
from druse._fingerprints import Fingerprints, covered, fingerprints
from druse._processes import Processes
from druse.evaluate import CUTOFFS, Cutoffs, Share, densities, evaluate
from druse.tables import Rejected

REAL = batch(NACL, MGO, ZINC_BLENDE)
CLOSE = crystal(5 * np.eye(3), [11, 17], [[0, 0, 0], [0.3 / 5, 0, 0]])
BROKEN = crystal(np.diag([5, 5, np.nan]), [11], [[0, 0, 0]])
CHARGED = crystal(6 * np.eye(3), [12, 17, 17, 17], [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0.5, 0.5, 0.5]])


def made(crystals: Crystals, cache: Path | None = None) -> Fingerprints:
    with Processes(1, purpose="testing") as processes:
        return fingerprints(crystals, processes, cache=cache)


def test_a_set_beside_itself() -> None:
    parts: dict[str, list[tuple[int, int]]] = {}
    found = evaluate(
        REAL, REAL, n_jobs=1, progress=lambda part, done, total: parts.setdefault(part, []).append((done, total))
    )
    whole = Share(3, 3)
    assert (found.structural, found.compositional, found.valid, found.recall, found.precision) == (whole,) * 5
    assert (found.density, found.elements, found.unique, found.invalid) == (0, 0, whole, ())
    assert {part: seen[-1] for part, seen in parts.items()} == dict.fromkeys(
        ("reference", "fingerprints", "duplicates"), (3, 3)
    )


def test_every_kind_of_bad_crystal() -> None:
    bad = batch(NACL, CLOSE, CHARGED, BROKEN, supercell(NACL), CSCL)
    found = evaluate(bad, REAL, rejected=[Rejected("x", "no CIF"), Rejected("y", "no CIF")], n_jobs=1)
    assert found.n_crystals == 8
    assert (found.structural, found.compositional, found.valid) == (Share(4, 8), Share(5, 8), Share(3, 8))
    assert found.unique == Share(4, 8)  # NACL, CLOSE, CHARGED, CSCL
    assert [one.crystal for one in found.invalid] == [1, 2, 3, 6, 7]
    assert found.reasons["no CIF"] == 2
    assert found.reasons["no oxidation states make it neutral"] == 1
    assert found.precision.total == 8
    assert found.precision.count >= 2
    # by the valid ones alone: rock salt twice and cesium chloride
    assert found.elements == 0
    both = densities(batch(NACL, NACL, CSCL)), densities(REAL)
    assert math.isclose(found.density, float(np.mean(np.abs(np.sort(both[0]) - np.sort(both[1])))), rel_tol=1e-9)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    low, high = found.valid.interval()
    assert content["valid"] == {"share": 0.375, "count": 3, "total": 8, "low": low, "high": high}
    assert content["invalid"][-1] == {"crystal": 7, "reason": "no CIF"}


def test_what_has_no_fingerprint_is_not_valid_and_covers_nothing() -> None:
    oganesson = crystal(4 * np.eye(3), [118], [[0, 0, 0]])
    found = evaluate(oganesson, oganesson, n_jobs=1, unique=False)
    assert (found.structural, found.compositional, found.valid) == (Share(1, 1), Share(1, 1), Share(0, 1))
    assert (found.recall, found.precision) == (Share(0, 1), Share(0, 1))
    assert found.invalid[0].reason.startswith("fingerprint: ")
    assert math.isnan(found.density)
    assert found.unique is None
    assert found.to_dict()["density"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_fewer_crystals_for_coverage_change_nothing_else() -> None:
    some = batch(NACL, CLOSE, CHARGED, CSCL)
    plain = evaluate(some, REAL, n_jobs=1).to_dict()
    few = evaluate(some, REAL, n_jobs=1, n_coverage=2).to_dict()  # the first and the last
    assert few.pop("precision")["total"] == 2
    assert few.pop("recall")["count"] <= plain.pop("recall")["count"]
    assert few.items() <= plain.items()


def test_fingerprints_are_matminers() -> None:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
    from pymatgen.core import Lattice, Structure

    found = made(batch(NACL, supercell(NACL), ZINC_BLENDE))
    assert found.structure.shape == (3, 61)
    np.testing.assert_allclose(found.structure[1], found.structure[0], atol=1e-6)
    structure = Structure(Lattice(ZINC_BLENDE.cells[0]), ["Zn", "S"], ZINC_BLENDE.frac)
    sites = CrystalNNFingerprint.from_preset("ops")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of oxidation states, which CDVAE does not give either
        expected = np.mean([sites.featurize(structure, k) for k in (0, 1)], axis=0)
    np.testing.assert_allclose(found.structure[2], expected, atol=1e-12)
    labels = sites.feature_labels()
    assert found.structure[0][labels.index("octahedral CN_6")] > 0.9
    assert found.structure[2][labels.index("tetrahedral CN_4")] > 0.9
    mean = ElementProperty.from_preset("magpie").feature_labels().index("MagpieData mean Number")
    np.testing.assert_allclose(found.composition[0, mean], (14 - 36.52738520455582) / 16.816765336550194)


def test_coverage_by_hand() -> None:
    """Near in structure to one and in composition to another is near; missing fingerprints are near to nothing."""

    def points(*places: tuple[float, float]) -> Fingerprints:
        a, b = np.array(places, float).T[:, :, None]
        return Fingerprints(a, b, tuple("none" if math.isnan(x) else "" for x, _ in places))

    a = points((0.0, 50.0), (9.0, 0.0), (0.4, 10.0), (0.5, 10.0), (math.nan, math.nan))
    b = points((0.0, 0.0), (math.nan, math.nan))
    np.testing.assert_array_equal(covered(a, b, CUTOFFS["mp20"]), [False, False, True, False, False])
    np.testing.assert_array_equal(covered(b, a, CUTOFFS["mp20"]), [True, False])
    np.testing.assert_array_equal(covered(b, points((math.nan, 0.0)), Cutoffs(1, 1)), [False, False])


def test_far_crystals_do_not_cover() -> None:
    found = evaluate(batch(COPPER, BRASS), REAL, n_jobs=1)
    assert found.valid == Share(2, 2)
    assert (found.recall.count, found.precision.count) == (0, 0)
    assert found.elements == 0.5  # one and two elements beside two


def test_densities() -> None:
    from pymatgen.core import Lattice, Structure

    found = densities(REAL)
    expected = [Structure(Lattice(c.cells[0]), c.species.tolist(), c.frac).density for c in REAL]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found[0], 2.16, atol=0.01)  # halite


@pytest.mark.parametrize("share", [Share(0, 5), Share(5, 5), Share(91, 100), Share(1, 3000)])
def test_intervals_are_wilsons(share: Share) -> None:
    from scipy.stats import binomtest

    expected = binomtest(share.count, share.total).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(share.interval(), expected, atol=1e-12)
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval() == (0, 1)


def test_fingerprints_are_kept_under_the_hash_of_the_crystals(tmp_path: Path) -> None:
    some = batch(NACL, BROKEN)
    plain, seen = made(some, tmp_path), []
    with Processes(1, purpose="testing") as processes:
        again = fingerprints(some, processes, cache=tmp_path, progress=lambda *n: seen.append(n))
    assert not seen
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense"):
        kept.write_bytes(content)
        anew = made(some, tmp_path)
        for one in (again, anew):
            np.testing.assert_array_equal(one.structure, plain.structure)
            np.testing.assert_array_equal(one.composition, plain.composition)
            assert one.failures == plain.failures
    made(batch(rock_salt(5.65, 11, 17), BROKEN), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_crystal_that_holds_a_library_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A needle of a cell, whose Voronoi cells take matminer for ever."""
    monkeypatch.setattr("druse._fingerprints._SECONDS", 1.0)
    needle = crystal(np.diag([1, 1, 500]), [11], [[0, 0, 0]])
    others = [NACL, CLOSE, CHARGED, BROKEN]
    with Processes(2, purpose="testing") as processes:
        found = fingerprints(batch(needle, *others), processes)
    assert found.failures[0] == "TimeoutError: not done after 2 s"
    plain = made(batch(*others))  # in this process
    np.testing.assert_array_equal(found.structure[1:], plain.structure)
    np.testing.assert_array_equal(found.composition[1:], plain.composition)
    assert found.failures[1:] == plain.failures == ("", "", "", plain.failures[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": batch()}, "the reference holds no crystals"),
        ({"crystals": batch()}, "there are no crystals to evaluate"),
        ({"n_coverage": 0}, "`n_coverage` must be 1 or more"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(**{"crystals": REAL, "reference": REAL, "n_jobs": 1, **change})
