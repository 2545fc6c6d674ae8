"""Screening of sources as they come: without entries, with columns of all sorts, names that repeat, other content."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import COPPER, MGO, NACL, batch, crystal, rock_salt
from screening_examples import many_file

pytest.importorskip("pymatgen", reason="the rules need it")
pytest.importorskip("smact", reason="the rules need it")

from ase.io import read

from druse import Crystals
from druse._columns import append_columns, read_columns
from druse._judge import judge_of
from druse.candidates import Entries, files_of, read_entries, write_entries
from druse.errors import InputError
from druse.io import write_extxyz
from druse.rules import (
    CompositionRule,
    GeometryRule,
    NovelRule,
    PropertyRule,
    Rule,
    RuleSet,
    ScoreTerm,
    SymmetryRule,
    TopKRule,
    UniqueRule,
)
from druse.screening import Screening, screen

LEADING = ["number", "id", "file", "formula", "n_atoms", "rule", "reason", "value"]


def only(*rules: Rule) -> RuleSet:
    return RuleSet(rules=rules, embedded=False)


def file_of(path: Path, ids: tuple[str, ...], **columns: list[float] | list[str]) -> Path:
    """Rock salt, so many times, each a little larger than the one before."""
    crystals = Crystals.concatenate([rock_salt(5.0 + 0.2 * k, 11, 17) for k in range(len(ids))])
    arrays = {name: np.array(column) for name, column in columns.items()}
    write_entries(path, Entries(0, ("f",) * len(ids), ids, ("",) * len(ids), crystals, arrays))
    return path


def screened(folder: Path, sources: list[Path], rules: RuleSet, piece: int = 256) -> Screening:
    screening = Screening.begin(folder, sources, rules, piece=piece)
    screening.finish(n_jobs=1)
    return screening


def refused_by(screening: Screening) -> list[str]:
    return read_columns(screening.path / "verdicts.parquet", "")["rule"].tolist()  # type: ignore[no-any-return]


def test_a_source_without_entries(tmp_path: Path) -> None:
    """As the survivors of a screening that none survived are, with rules that ask for what nobody says."""
    source = file_of(tmp_path / "none.parquet", ())
    rules = only(
        GeometryRule(),
        PropertyRule(column="gap", min=1.0),
        SymmetryRule(method="moyo"),
        UniqueRule(),
        NovelRule(reference=str(many_file(tmp_path / "many.parquet", 3))),
        TopKRule(k=1, score=(ScoreTerm(column="gap", goal="max"),)),
    )
    screening = screened(tmp_path / "s", [source], rules)
    assert screening.funnel.entries == screening.funnel.survivors == 0
    assert list(read_columns(screening.path / "verdicts.parquet", "")) == LEADING
    assert screened(tmp_path / "again", [screening.path], rules).funnel.entries == 0
    assert screen(Crystals.concatenate([]), rules).survivors.tolist() == []


def test_one_text_among_numbers_hides_no_number(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b", "c"), gap=["1.5", "n/a", "0.5"])
    more = file_of(tmp_path / "b.parquet", ("d", "e"), gap=[2.5, 0.25], note=["x", "y"])
    rules = only(PropertyRule(column="gap", min=1.0), TopKRule(k=1, score=(ScoreTerm(column="gap", goal="max"),)))
    for piece in (1, 2, 256):
        screening = screened(tmp_path / str(piece), [source, more], rules, piece)
        assert refused_by(screening) == ["top_k", "gap", "gap", "", "gap"]
        assert screening.survivors().ids == ("d",)


def test_a_column_that_comes_late(tmp_path: Path) -> None:
    """The first entry is broken, and the second says nothing of it."""
    path = tmp_path / "late.extxyz"
    write_extxyz(path, batch(NACL, MGO, COPPER), [{}, {"gap": 0.0}, {"gap": 2.0}])
    path.write_text("1\nbroken\nXx 0 0 0\n" + path.read_text())
    screening = screened(tmp_path / "s", [path], only(PropertyRule(column="gap", min=1.0)))
    assert refused_by(screening) == ["read", "gap", "gap", ""]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ((PropertyRule(column="nearest_distance", min=1.0),), "comes with a rule of kind 'geometry'"),
        ((PropertyRule(column="spacegroup", min=1.0), SymmetryRule()), "applied after those of kind 'property'"),
        ((PropertyRule(column="score", min=1.0),), "there are .*source_score"),
        ((PropertyRule(column="gap_std", min=1.0),), "'gap_std'"),
    ],
)
def test_what_is_not_known_yet(tmp_path: Path, rules: tuple[Rule, ...], says: str) -> None:
    """A rule that would refuse everything, as what it asks for is computed later or not at all."""
    source = file_of(tmp_path / "a.parquet", ("a",), score=[1.0], gap=[1.0])
    with pytest.raises(InputError, match=says):
        Screening.begin(tmp_path / "s", [source], only(*rules))


def test_what_is_known_by_then(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b"), score=[1.0, 3.0], band_gap=[1.0, 3.0])
    rules = only(GeometryRule(), PropertyRule(column="nearest_distance", min=2.55),
                 PropertyRule(column="source_score", max=2.0))  # fmt: skip
    assert refused_by(screened(tmp_path / "s", [source], rules)) == ["nearest_distance", "source_score"]
    rules = RuleSet(rules=(PropertyRule(column="source_band_gap", min=2.0),))
    screening = screened(tmp_path / "t", [source], rules)
    assert refused_by(screening) == ["source_band_gap", ""]
    assert screening.survivors().columns["source_band_gap"].tolist() == [3.0]
    again = screened(tmp_path / "again", [screening.path], RuleSet(rules=(GeometryRule(),)))
    assert again.survivors().columns["source_band_gap"].tolist() == [3.0], "not the prediction of the time before"


def test_infinite_numbers(tmp_path: Path) -> None:
    terms = (ScoreTerm(column="a", goal="max"), ScoreTerm(column="b", goal="max"))
    source = file_of(
        tmp_path / "a.parquet", ("a", "b", "c"), a=[np.inf, 1.0, np.inf], b=[-np.inf, 1.0, 1.0],
        target_spacegroup=[np.inf] * 3,
    )  # fmt: skip
    screening = screened(tmp_path / "s", [source], only(TopKRule(k=5, score=terms)))
    assert screening.survivors().ids == ("c", "b")
    assert screening.funnel.rules[-1].reasons == {"nothing is known of its score": 1}


def test_reasons_are_counted_by_the_kind_of_their_rule(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b"), known_gap=[0.0, 0.0])
    screening = screened(tmp_path / "s", [source], only(PropertyRule(column="known_gap", min=1.0)))
    assert screening.funnel.rules[-1].reasons == {"known_gap below 1": 2}


def test_names_and_columns_that_files_cannot_tell_apart(tmp_path: Path) -> None:
    ids = ("a", "a", "a_0", "b c", "b_c", "")
    columns = {"a note": ["x"] * 6, "a_note": [1.0] * 6, "": [2.0] * 6, "Lattice": [3.0] * 6, "stress": [4.0] * 6}
    source = tmp_path / "a.parquet"
    file_of(source, ids, **columns)  # type: ignore[arg-type]
    screening = screened(tmp_path / "s", [source], only(GeometryRule()))
    text = (screening.path / "survivors.cif").read_text()
    assert len({line for line in text.splitlines() if line.startswith("data_")}) == 6
    atoms = read(screening.path / "survivors.extxyz", ":")
    assert len({one.info["id"] for one in atoms}) == 6
    assert all(one.info["a_note"] == "x" and one.info["a_note_"] == 1.0 for one in atoms)
    assert all(one.info["_"] == 2.0 and one.info["Lattice_"] == 3.0 and one.info["stress_"] == 4.0 for one in atoms)
    np.testing.assert_allclose([one.cell[0, 1] for one in atoms], [rock_salt(5.0 + 0.2 * k, 11, 17).cells[0, 0, 1]
                                                                   for k in range(6)])  # fmt: skip
    assert screening.survivors().ids == ids


def test_as_many_columns_as_a_source_may_have(tmp_path: Path) -> None:
    columns = {f"c{k:04d}": [1.0, 2.0] for k in range(1000)}
    source = tmp_path / "wide.parquet"
    file_of(source, ("a", "b"), **columns)  # type: ignore[arg-type]
    rows = read_columns(screened(tmp_path / "s", [source], only(GeometryRule())).path / "verdicts.parquet", "")
    assert rows["c0999"].tolist() == [1.0, 2.0]
    assert rows["formula"].tolist() == ["NaCl", "NaCl"]


def test_results_inside_a_source_are_no_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    first = screened(tmp_path / "first", [file_of(tmp_path / "a.parquet", ("a", "b"))], only(GeometryRule()))
    shutil.copy(first.path / "survivors.cif", folder / "both.cif")
    screening = Screening.begin(folder / "out", [folder, first.path], only(GeometryRule()))
    (first.path / "report.html").write_text("made of it")
    assert screening.finish(n_jobs=1).survivors == 4
    assert files_of(folder) == [folder / "both.cif"]
    assert files_of(first.path) == [first.path / "survivors.parquet"]
    shutil.copy(folder / "both.cif", folder / "more.cif")
    with pytest.raises(InputError, match="other sources"):
        Screening.begin(folder / "out", [folder, first.path], only(GeometryRule()))


def test_a_source_given_twice(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b"))
    screening = screened(tmp_path / "s", [source, source], only(GeometryRule()))
    assert screening.funnel.survivors == 4
    assert [one.info["id"] for one in read(screening.path / "survivors.extxyz", ":")] == ["a_0", "b_1", "a_2", "b_3"]


def test_what_is_other_is_said(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b"))
    screened(tmp_path / "s", [source], only(GeometryRule()))
    with pytest.raises(InputError, match="other size of a piece"):
        Screening.begin(tmp_path / "s", [source], only(GeometryRule()), piece=7)
    with pytest.raises(InputError, match="other rules"):
        Screening.begin(tmp_path / "s", [source], only(UniqueRule()))


def test_a_kill_between_the_last_file_and_the_end(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b"))
    screening = screened(tmp_path / "s", [source], only(GeometryRule()))
    (screening.path / "pieces").mkdir()
    (screening.path / "pieces" / "000000000.parquet").write_bytes(b"")
    assert screening.finish(n_jobs=1).survivors == 2
    assert not (screening.path / "pieces").exists()


def test_a_damaged_piece_says_what_to_do(tmp_path: Path) -> None:
    source = file_of(tmp_path / "a.parquet", ("a", "b"))
    screening = Screening.begin(tmp_path / "s", [source], only(GeometryRule()))
    (screening.path / "pieces").mkdir()
    (screening.path / "pieces" / "000000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"000000000.parquet is damaged .*; delete it, and druse resume"):
        screening.finish(n_jobs=1)


def test_models_that_were_built_again_are_opened_again() -> None:
    rules = RuleSet(rules=(GeometryRule(),))
    assert judge_of(rules, ("a",)) is judge_of(rules, ("a",))
    assert judge_of(rules, ("a",)) is not judge_of(rules, ("b",))


def test_any_crystals_in_memory() -> None:
    """What a file would be refused for is refused, and columns may be of any type."""
    crystals = batch(
        crystal(np.nan * np.eye(3), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        crystal(4 * np.eye(3), [0, 17], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        crystal(np.zeros((3, 3)), [11], [[0, 0, 0]]),
        crystal(4 * np.eye(3), [11, 17], [[0, 0, 0], [0.5, np.inf, 0.5]]),
        NACL,
    )
    rules = (GeometryRule(), CompositionRule(neutral=True), PropertyRule(column="n", min=1.0), SymmetryRule())
    for given in (["1", "2", None, "x", "5"], [1, 2, 3, 4, 5], [True] * 5, np.array([None, 1, 2, 3, 4.5], object)):
        found = screen(crystals, only(*rules, UniqueRule()), columns={"n": given})
        assert found.rules == ("read",) * 4 + ("",)
    assert found.verdicts[1].reason == "an atom of no element"


def test_parts_of_a_table_do_not_show(tmp_path: Path) -> None:
    """Whole numbers and others, in either order, text, and what is missing."""
    whole, other = {"a": np.arange(2), "b": np.array([0.5, np.nan])}, {"b": np.arange(1), "a": np.array([1.5])}
    append_columns(tmp_path / "a", [whole, other, {"c": np.array(["x"])}])
    found = read_columns(tmp_path / "a", "")
    np.testing.assert_array_equal(found["a"], [0.0, 1.0, 1.5, np.nan])
    np.testing.assert_array_equal(found["b"], [0.5, np.nan, 0.0, np.nan])
    assert found["c"].tolist() == ["", "", "", "x"]
    values = np.arange(10_000.0)
    for name, size in (("one", 10_000), ("many", 7)):
        append_columns(tmp_path / name, ({"a": values[k : k + size]} for k in range(0, len(values), size)))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    assert len(next(read_entries([many_file(tmp_path / "e.parquet", 3)]))) == 3
