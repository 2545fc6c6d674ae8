"""Novelty: the answer is that of StructureMatcher for all pairs, whatever the order, the processes, the pieces."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import BRASS, COPPER, MGO, NACL, batch, crystal, rock_salt, supercell
from polymorphs import CARBON, IRON, POLYMORPHS, TITANIA, ZINC_SULPHIDE, any_crystal, changed

pytest.importorskip("pymatgen", reason="compares structures")

from druse import Crystals, InputError, _matching, duplicates
from druse._fingerprints import as_structure
from druse._matching import formulas, matcher, primitives_of
from druse._processes import Processes
from druse.candidates import Entries, write_entries
from druse.novelty import Reference, known

HERE = pytest.mark.filterwarnings("ignore")


def fits(a: Crystals, b: Crystals) -> bool:
    """As anyone asks it: cells as they come, nothing reduced or left out before."""
    return bool(matcher().fit(as_structure(a), as_structure(b)))


def brute_force(crystals: Crystals, reference: Crystals) -> list[int]:
    return [next((k for k, old in enumerate(reference) if fits(old, new)), -1) for new in crystals]


def hard_set(seed: int) -> tuple[Crystals, Crystals]:
    """References with all polymorphs, twice, and structures made of them and of one another."""
    rng = np.random.default_rng(seed)
    olds = [*POLYMORPHS, *(changed(one, rng) for one in POLYMORPHS)]
    olds = [olds[k] for k in rng.permutation(len(olds))]
    news = [changed(olds[rng.integers(len(olds))], rng) for _ in range(45)]
    iron = [crystal(any_crystal(rng).cells, [26], [[0, 0, 0]]) for _ in range(10)]
    pairs = [crystal(any_crystal(rng).cells, [6, 6], rng.random((2, 3))) for _ in range(5)]
    return batch(*news, *iron, *pairs), batch(*olds)


@HERE
@pytest.mark.parametrize("seed", [0, 1])
def test_the_answer_of_brute_force(seed: int) -> None:
    crystals, olds = hard_set(seed)
    found = known(crystals, Reference(olds), n_jobs=1)
    np.testing.assert_array_equal(found.match, brute_force(crystals, olds))
    assert (found.match >= 0).sum() > 15
    assert (found.match == -1).sum() > 10
    left = list(found.pairs.values())
    assert left == sorted(left, reverse=True)
    assert left[0] == len(crystals) * len(olds)
    assert found.calls == left[-1] < left[0] / 20


def test_order_processes_and_pieces_change_nothing() -> None:
    crystals, olds = hard_set(2)
    reference = Reference(olds)
    once = known(crystals, reference, n_jobs=1).match
    order = np.random.default_rng(0).permutation(len(crystals))
    with Processes(2, purpose="testing") as processes:
        np.testing.assert_array_equal(known(crystals.take(order), reference, processes=processes).match, once[order])
        pieces = [crystals.take(range(k, min(k + 7, len(crystals)))) for k in range(0, len(crystals), 7)]
        found = [known(piece, Reference(olds), processes=processes).match for piece in pieces[:3]]
    np.testing.assert_array_equal(np.concatenate(found), once[:21])


def test_what_everybody_knows() -> None:
    """Supercells, sizes, cells and mirror images are the same; polymorphs are not; names and numbers come back."""
    quartz = crystal(  # a left-handed and a right-handed one
        [[4.913, 0, 0], [-2.4565, 4.2548, 0], [0, 0, 5.405]],
        [14] * 3 + [8] * 6,
        [
            *([0.47, 0, 2 / 3], [0, 0.47, 1 / 3], [0.53, 0.53, 0], [0.4135, 0.2669, 0.7858], [0.7331, 0.1466, 0.4525]),
            *([0.8534, 0.5865, 0.1191], [0.2669, 0.4135, 0.2142], [0.1466, 0.7331, 0.5475], [0.5865, 0.8534, 0.8809]),
        ],
    )
    mirrored = crystal(quartz.cells * [1, 1, -1], quartz.species, quartz.frac)
    reference = Reference(batch(BRASS, *ZINC_SULPHIDE, *TITANIA, NACL, MGO, NACL, quartz), list("abcdefghijkl"))
    crystals = batch(
        *ZINC_SULPHIDE[::-1],
        *map(supercell, TITANIA),
        rock_salt(7.0, 11, 17),
        COPPER,
        mirrored,
        supercell(supercell(MGO)),
        *CARBON,
    )
    seen: list[tuple[int, int]] = []
    found = known(crystals, reference, n_jobs=1, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(found.match, [3, 2, 1, 4, 5, 6, 7, 8, -1, 11, 9, -1, -1])
    assert found.names == tuple("abcdefghijkl")
    assert seen[-1][0] == seen[-1][1] > len(crystals)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_no_crystal_is_not_compared() -> None:
    broken = crystal(np.diag([5, 5, np.nan]), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    empty = crystal(np.eye(3), [], [])
    nobody = crystal(np.eye(3), [0], [[0, 0, 0]])
    found = known(batch(broken, NACL, empty, nobody, MGO), Reference(batch(broken, empty, NACL)), n_jobs=1)
    np.testing.assert_array_equal(found.match, [-2, 2, -2, -2, -1])
    assert found.names == ("", "", "")
    assert len(known(batch(), Reference(NACL), n_jobs=1).match) == 0
    np.testing.assert_array_equal(known(NACL, Reference(batch()), n_jobs=1).match, [-1])
    with pytest.raises(InputError, match="one for each crystal, got 1 for 2 crystals"):
        Reference(batch(NACL, MGO), ["one"])


def test_what_takes_too_long_harms_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,728 atoms of one element take the reduction several seconds; it has one here."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(12)] * 3), axis=-1).reshape(-1, 3)
    crowd = crystal(30 * np.eye(3), [26] * 1728, (grid + rng.uniform(-0.05, 0.05, grid.shape)) / 12)
    reference = Reference(batch(*IRON))
    with Processes(2, purpose="testing") as processes:
        known(batch(*IRON), reference, processes=processes)  # imports what is slow to import
        monkeypatch.setattr(_matching, "_SECONDS", 1.0)
        found = known(batch(IRON[1], crowd, IRON[0]), reference, processes=processes)
    np.testing.assert_array_equal(found.match, [1, -2, 0])


@HERE
def test_a_cache_changes_nothing(tmp_path: Path) -> None:
    crystals, olds = hard_set(3)
    ids = tuple(f"entry {k}" for k in range(len(olds)))
    blank = ("",) * len(olds)
    write_entries(tmp_path / "olds.parquet", Entries(0, blank, ids, blank, olds, {}))
    plain = Reference.open(tmp_path / "olds.parquet", n_jobs=1)
    expected = known(crystals, plain, n_jobs=1)
    assert plain.names == ids
    places = np.concatenate([plain.places(formula) for formula in set(formulas(crystals))])
    for source in (tmp_path / "olds.parquet", str(tmp_path / "olds.parquet"), olds):
        cache = tmp_path / ("crystals" if source is olds else "files")
        reference = Reference.open(source, cache=cache, n_jobs=1)
        np.testing.assert_array_equal(known(crystals, reference, n_jobs=1).match, expected.match)
        again = Reference.open(source, cache=cache, n_jobs=1)
        assert len(again.missing(places)) == 0
        np.testing.assert_array_equal(known(crystals, again, n_jobs=1).match, expected.match)
        assert again.names == (("",) * len(olds) if source is olds else ids)
        (file,) = cache.iterdir()
        for bad in (b"", file.read_bytes()[:-300], b"PK\x03\x04 no archive"):
            file.write_bytes(bad)
            assert len(Reference.open(source, cache=cache, n_jobs=1).missing(places)) > 0


def test_files_of_any_kind(tmp_path: Path, shared: Path) -> None:
    """A data set as published: each of its crystals is known, at its own place or that of one before."""
    with gzip.open(shared / "data" / "mp20" / "val.csv.gz", "rt", newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row, _ in zip(reader, range(40), strict=False)]
    with (tmp_path / "some.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    reference = Reference.open(tmp_path / "some.csv", n_jobs=1)
    found = known(reference.crystals, reference, n_jobs=1)
    assert reference.names == tuple(row["material_id"] for row in rows)
    np.testing.assert_array_equal(found.match, brute_force(reference.crystals, reference.crystals))
    assert (found.match == np.arange(40)).sum() > 35


@HERE
def test_duplicates_in_blocks_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the first of each group, in order, whatever the block; and so where a block killed a process."""
    crystals = hard_set(4)[0].take(range(36))
    expected: list[int] = []
    heads: list[int] = []
    for b, one in enumerate(crystals):
        expected.append(next((head for head in heads if fits(crystals[head], one)), b))
        if expected[b] == b:
            heads.append(b)
    for block in (2, 32):
        monkeypatch.setattr(duplicates, "_BLOCK", block)
        np.testing.assert_array_equal(duplicates.duplicates(crystals, n_jobs=1), expected)
    first = np.full(len(crystals), -1)
    with Processes(1, purpose="testing") as here:
        primitives = primitives_of(crystals, here)
        kinds = list(zip(formulas(crystals), primitives.crystals.n_atoms, strict=True))
        for kind in set(kinds):
            rows = [row for row, other in enumerate(kinds) if other == kind]
            duplicates._one_by_one(rows, first, primitives, here)
    np.testing.assert_array_equal(first, expected)


def test_primitive_cells_are_the_matcher_s() -> None:
    """The reduction that `fit` makes of the crystal, to the last bit: it is what `_mappings` has to know."""
    rng = np.random.default_rng(5)
    crystals = batch(*(changed(POLYMORPHS[rng.integers(len(POLYMORPHS))], rng) for _ in range(30)))
    with Processes(1, purpose="testing") as here:
        primitives = primitives_of(crystals, here).crystals
    for one, cell in zip(crystals, primitives, strict=True):
        structure = matcher()._process_species([as_structure(one)])[0]
        expected = matcher()._get_reduced_structure(structure, True, True)
        np.testing.assert_array_equal(cell.cells[0], expected.lattice.matrix)
        np.testing.assert_array_equal(cell.frac, expected.frac_coords)
        np.testing.assert_array_equal(cell.species, expected.atomic_numbers)
