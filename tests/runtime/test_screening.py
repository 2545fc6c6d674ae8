"""Screening: each rule against an independent count, files that do not depend on how one came to them, bad input."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import COPPER, MGO, NACL, batch, crystal, rock_salt
from screening_examples import many, many_file

pytest.importorskip("pymatgen", reason="the rules need it")
pytest.importorskip("smact", reason="the rules need it")

from pymatgen.core import Structure

from druse import Crystals
from druse._columns import read_columns
from druse.candidates import Entries, read_entries, write_entries
from druse.errors import InputError
from druse.io import to_pymatgen
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

RULES = RuleSet(
    rules=(
        GeometryRule(min_distance=0.7),
        CompositionRule(neutral=True, excluded=("Zn",)),
        PropertyRule(column="gap", min=0.5),
        SymmetryRule(method="moyo", min_space_group=2),
        UniqueRule(),
        TopKRule(
            k=3, score=(ScoreTerm(column="gap", target=2.0), ScoreTerm(column="spacegroup", goal="max", scale=1e4))
        ),
    ),
    embedded=False,
)
FILES = ("verdicts.parquet", "survivors.parquet", "survivors.extxyz", "survivors.cif", "survivors.csv", "funnel.json")


def only(*rules: Rule) -> RuleSet:
    return RuleSet(rules=rules, embedded=False)


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_file(tmp_path_factory.mktemp("source") / "many.parquet", 60)


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Screening:
    screening = Screening.begin(tmp_path_factory.mktemp("screens") / "a", [source], RULES, piece=16)
    screening.finish(n_jobs=1)
    return screening


def shortest(structure: Structure) -> float:
    """Of all distances within 10 Angstrom, by pymatgen."""
    near = structure.get_all_neighbors(10.0)
    return min((neighbor.nn_distance for around in near for neighbor in around), default=math.inf)


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (GeometryRule(min_distance=0.7), lambda s: shortest(s) < 0.7),
        (GeometryRule(min_distance=2.5), lambda s: shortest(s) < 2.5),
        (GeometryRule(min_distance=None, max_isolation=2.4),
         lambda s: max(min(n.nn_distance for n in around) for around in s.get_all_neighbors(10.0)) > 2.4),
        (GeometryRule(min_distance=None, min_volume=15.0), lambda s: s.volume / len(s) < 15),
        (GeometryRule(min_distance=None, max_volume=15.0), lambda s: s.volume / len(s) > 15),
        (GeometryRule(min_distance=None, min_angle=70.0), lambda s: min(s.lattice.angles) < 70),
        (GeometryRule(min_distance=None, max_angle=80.0), lambda s: max(s.lattice.angles) > 80),
        (GeometryRule(min_distance=None, min_height=2.6),
         lambda s: min(1 / np.linalg.norm(s.lattice.inv_matrix, axis=0)) < 2.6),
        (GeometryRule(min_distance=None, max_aspect=1.2), lambda s: max(s.lattice.abc) / min(s.lattice.abc) > 1.2),
        (CompositionRule(allowed=("Na", "Cl", "Mg")), lambda s: not set(s.symbol_set) <= {"Na", "Cl", "Mg"}),
        (CompositionRule(excluded=("Cl",)), lambda s: "Cl" in s.symbol_set),
        (CompositionRule(required=("Mg", "O")), lambda s: not {"Mg", "O"} <= set(s.symbol_set)),
        (CompositionRule(min_elements=2), lambda s: len(s.elements) < 2),
        (CompositionRule(max_elements=1), lambda s: len(s.elements) > 1),
        (CompositionRule(min_atoms=2), lambda s: len(s) < 2),
        (CompositionRule(max_atoms=2), lambda s: len(s) > 2),
    ],
)  # fmt: skip
def test_a_rule_refuses_what_pymatgen_says(rule: Rule, bad: object) -> None:
    long = crystal(np.diag([3.0, 3.0, 4.5]), [11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])
    lonely = crystal(12.0 * np.eye(3), [29], [[0, 0, 0]])
    crystals = Crystals.concatenate([many(30), long, *([lonely] if "isolation" not in str(bad) else [])])
    if isinstance(rule, GeometryRule) and rule.max_isolation:
        crystals = Crystals.concatenate([many(30), long])
    expected = [bool(bad(structure)) for structure in to_pymatgen(crystals)]  # type: ignore[operator]
    found = screen(crystals, only(rule))
    assert [name != "" for name in found.rules] == expected
    assert any(expected)
    assert not all(expected)
    assert [bool(verdict.reason) for verdict in found.verdicts] == expected


def test_an_atom_alone_in_ten_angstrom_is_isolated() -> None:
    lonely = crystal(12.0 * np.eye(3), [29], [[0, 0, 0]])
    found = screen(batch(lonely, COPPER), only(GeometryRule(max_isolation=10.0)))
    assert found.rules == ("geometry", "")
    assert np.isnan(found.columns["nearest_distance"][0])
    assert found.columns["nearest_distance"][1] == pytest.approx(3.61 / 2**0.5, rel=1e-5)


def test_a_window() -> None:
    gap = np.array([0.0, 1.0, 2.0, 3.0, np.nan])
    crystals = Crystals.concatenate([NACL] * 5)

    def stay(**options: object) -> list[int]:
        rule = PropertyRule(column="gap", **options)  # type: ignore[arg-type]
        known = {"gap": gap, "aim": gap[::-1].copy(), "gap_std": np.array([0.1, 0.2, 0.3, 0.4, 0.5])}
        return screen(crystals, only(rule), columns=known).survivors.tolist()

    assert stay() == [0, 1, 2, 3], "what is not known is refused"
    assert stay(min=1.0, max=2.0) == [1, 2]
    assert stay(target=2.5, tolerance=0.5) == [2, 3]
    assert stay(target="aim", tolerance=2.0) == [1, 2, 3], "the target of the first is not known"
    assert stay(max_std=0.25) == [0, 1]


def test_the_best_by_a_score() -> None:
    a, b = np.array([1.0, 2.0, 3.0, np.nan, 2.0, 5.0]), np.array([0.0, 0.0, 4.0, 0.0, 0.0, 9.0])
    crystals = batch(NACL, NACL, MGO, NACL, MGO, COPPER)
    terms = (ScoreTerm(column="a", target=2.0, scale=0.5, weight=2.0), ScoreTerm(column="b", goal="min", scale=4.0))
    score = -2.0 * np.abs(a - 2.0) / 0.5 - b / 4.0

    def stay(k: int, per_formula: int | None = None) -> list[int]:
        rule = TopKRule(k=k, score=terms, per_formula=per_formula)
        found = screen(crystals, only(rule), columns={"a": a, "b": b})
        np.testing.assert_allclose(found.columns["score"][found.survivors], score[found.survivors])
        return found.survivors.tolist()

    assert stay(6) == [1, 4, 0, 2, 5], "of equal ones the first"
    assert stay(2) == [1, 4]
    assert stay(3, per_formula=1) == [1, 4, 5]


def test_what_is_the_same_and_what_is_known(tmp_path: Path) -> None:
    crystals = batch(NACL, MGO, rock_salt(5.7, 11, 17), COPPER, MGO)
    found = screen(crystals, only(UniqueRule()))
    assert found.survivors.tolist() == [0, 1, 3]
    assert found.verdicts[2] == ("the same as 0", 0.0)
    reference = tmp_path / "known.parquet"
    write_entries(reference, Entries(0, ("",) * 2, ("periclase", "copper"), ("",) * 2, batch(MGO, COPPER), {}))
    found = screen(crystals, only(UniqueRule(), NovelRule(reference=str(reference))))
    assert found.survivors.tolist() == [0]
    assert found.rules == ("", "novel", "unique", "novel", "unique")


def test_the_funnel_adds_up(finished: Screening) -> None:
    funnel, rows = finished.funnel, read_columns(finished.path / "verdicts.parquet", "")
    assert [step.name for step in funnel.rules] == ["read", *(rule.name for rule in RULES.rules)]
    entered = 60
    for step in funnel.rules:
        refused = int(np.sum(rows["rule"] == step.name))
        assert (step.entered, step.refused, step.passed) == (entered, refused, entered - refused)
        assert sum(step.reasons.values()) == refused
        entered -= refused
    assert funnel.survivors == entered == int(np.sum(rows["rule"] == "")) == 3
    assert rows["number"].tolist() == list(range(60))
    assert set(finished.seconds) >= {step.name for step in funnel.rules}


def test_in_memory_as_in_a_folder(finished: Screening, source: Path) -> None:
    (entries,) = read_entries([source])
    found = screen(entries.crystals, RULES, columns=entries.columns)
    rows = read_columns(finished.path / "verdicts.parquet", "")
    assert list(found.rules) == rows["rule"].tolist()
    assert [entries.ids[b] for b in found.survivors] == list(finished.survivors().ids)
    np.testing.assert_array_equal(found.columns["score"][found.survivors], finished.survivors().columns["score"])
    for name in ("spacegroup", "volume_per_atom", "nearest_distance"):
        np.testing.assert_array_equal(found.columns[name], rows[name])


def test_survivors_are_what_they_were(finished: Screening, source: Path) -> None:
    (entries,) = read_entries([source])
    survivors = finished.survivors()
    for crystal_, name in zip(survivors.crystals, survivors.ids, strict=True):
        before = entries.crystals[entries.ids.index(name)]
        np.testing.assert_array_equal(crystal_.frac, before.frac)
        np.testing.assert_array_equal(crystal_.cells, before.cells)
        np.testing.assert_array_equal(crystal_.species, before.species)
    from ase.io import read

    atoms = read(finished.path / "survivors.extxyz", ":")
    assert [one.info["id"] for one in atoms] == list(survivors.ids)
    assert all(isinstance(one.info["spacegroup"], int | np.integer) for one in atoms)
    assert len(next(iter(read_entries([finished.path])))) == 3, "a folder of a screening is a source"


@pytest.mark.parametrize(("piece", "jobs"), [(7, 1), (60, 2), (1, 2)])
def test_neither_pieces_nor_processes_matter(
    finished: Screening, source: Path, tmp_path: Path, piece: int, jobs: int
) -> None:
    other = Screening.begin(tmp_path / "b", [source], RULES, piece=piece)
    other.finish(n_jobs=jobs)
    rows, expected = (read_columns(one.path / "verdicts.parquet", "") for one in (other, finished))
    assert list(rows) == list(expected)
    for name in rows:
        np.testing.assert_array_equal(rows[name], expected[name])
    assert contents(other.path)[1:] == contents(finished.path)[1:]


def test_killed_at_any_moment_and_begun_again_it_gives_the_same_files(
    finished: Screening, source: Path, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.json"
    import msgspec

    rules.write_bytes(msgspec.json.encode(RULES))
    script = (
        "import sys, time, msgspec; from druse.rules import RuleSet; from druse.screening import Screening\n"
        "rules = msgspec.json.decode(open(sys.argv[1], 'rb').read(), type=RuleSet)\n"
        "s = Screening.begin(sys.argv[2], [sys.argv[3]], rules, piece=16)\n"
        "def say(what, done, total):\n    print(what, done, flush=True); time.sleep(0.2)\n"
        "s.finish(n_jobs=1, progress=say)\n"
    )
    command = [sys.executable, "-c", script, str(rules), str(tmp_path / "killed"), str(source)]
    seen: set[str] = set()
    while True:  # killed each time that it comes to where it has not been
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            if (line := next((line for line in child.stdout if line not in seen), None)) is None:
                break
            seen.add(line)
            os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == 0
    assert {line.split()[0] for line in seen} >= {"judging", "unique", "writing"}
    assert contents(tmp_path / "killed") == contents(finished.path)
    assert not list((tmp_path / "killed").glob("**/*.part")), "nothing unfinished is left"


def test_a_finished_one_is_not_done_again(finished: Screening, source: Path) -> None:
    before = (finished.path / "verdicts.parquet").stat().st_mtime_ns
    again = Screening.begin(finished.path, [source], RULES, piece=16)
    assert again.finish(n_jobs=1) == finished.funnel
    assert (finished.path / "verdicts.parquet").stat().st_mtime_ns == before


def test_another_screening_does_not_overwrite(finished: Screening, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with other rules"):
        Screening.begin(finished.path, [source], only(UniqueRule()), piece=16)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        Screening.begin(tmp_path, [source], RULES)


def test_a_source_that_changed_in_between(tmp_path: Path) -> None:
    source = many_file(tmp_path / "many.parquet", 10)
    screening = Screening.begin(tmp_path / "s", [source], only(UniqueRule()))
    many_file(source, 10, seed=1)
    with pytest.raises(InputError, match="has changed"):
        screening.finish(n_jobs=1)


def test_two_writers(tmp_path: Path) -> None:
    from druse._folders import locked

    source = many_file(tmp_path / "many.parquet", 10)
    screening = Screening.begin(tmp_path / "s", [source], only(UniqueRule()))
    with locked(screening.path), pytest.raises(InputError, match="another process"):
        screening.finish(n_jobs=1)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (PropertyRule(column="gapp", min=0.0), "'gapp'.*there are.*gap"),
        (PropertyRule(column="gap", target="aim", tolerance=1.0), "'aim'"),
        (TopKRule(k=1, score=(ScoreTerm(column="energy", goal="min"),)), "'energy'"),
        (NovelRule(reference="/no/such/file.csv"), "does not exist"),
    ],
)
def test_a_rule_that_cannot_be_met(source: Path, tmp_path: Path, rule: Rule, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Screening.begin(tmp_path / "s", [source], only(rule))
    assert not (tmp_path / "s").exists()


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Screening.begin(tmp_path / "s", [tmp_path / "none.cif"], RULES)
    with pytest.raises(InputError, match="nothing to screen"):
        Screening.begin(tmp_path / "s", [], RULES)
    with pytest.raises(InputError, match="holds no screening"):
        Screening.open(tmp_path)


def test_nothing_survives(source: Path, tmp_path: Path) -> None:
    screening = Screening.begin(tmp_path / "s", [source], only(GeometryRule(min_distance=9.0), UniqueRule()))
    assert screening.finish(n_jobs=1).survivors == 0
    assert len(screening.survivors()) == 0
    assert json.loads((tmp_path / "s" / "funnel.json").read_text())["survivors"] == 0


def test_names_from_outside_do_no_harm(tmp_path: Path) -> None:
    """Names that repeat, or hold what a terminal, a table or a file's format would obey."""
    ids = ("a", "a", "\x1b[31mred\n2", "../../etc/x", "=cmd()")
    notes = np.array(["", "x\ny", "<script>", "é", '"'], str)
    crystals = batch(NACL, MGO, COPPER, rock_salt(4.8, 20, 8), rock_salt(5.2, 12, 16))
    write_entries(tmp_path / "e.parquet", Entries(0, ("f",) * 5, ids, ("",) * 5, crystals, {"a note": notes}))
    screening = Screening.begin(tmp_path / "s", [tmp_path / "e.parquet"], only(GeometryRule()))
    screening.finish(n_jobs=1)
    assert screening.survivors().ids == ids
    from ase.io import read

    atoms = read(tmp_path / "s" / "survivors.extxyz", ":")
    assert [str(one.info["id"]) for one in atoms][:2] == ["a_0", "a_1"]
    assert len(atoms) == 5
    text = (tmp_path / "s" / "survivors.cif").read_text()
    assert "\x1b" not in text
    assert text.count("data_") == 5


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def druse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_users_call: None) -> Command:
    """The command line: exit code, output, errors."""
    from druse.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["druse", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


def test_the_command(druse: Command, source: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("embedded = false\n[[rules]]\nkind = 'geometry'\n[[rules]]\nkind = 'unique'\n")
    code, text, _ = druse("screen", source, "--rules", rules, "--out", tmp_path / "s", "--jobs", 1)
    assert code == 0
    assert "geometry" in text
    assert "8 of 60 are left" in text
    code, text, _ = druse("screen", source, "--rules", rules, "--out", tmp_path / "s", "--jobs", 1, "--json")
    assert code == 0
    assert json.loads(text)["entries"] == 60
    code, again, _ = druse("resume", tmp_path / "s", "--json")
    assert (code, json.loads(again)) == (0, json.loads(text))
    code, text, _ = druse("screen", "--example")
    assert code == 0
    assert "[[rules]]" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{source}"], "--out DIR"),
        (["--out", "{out}"], "give what to screen"),
        (["{source}", "--out", "{out}", "--rules", "{out}/none.toml"], "does not exist"),
        (["{out}/none.cif", "--out", "{out}"], "does not exist"),
    ],
)
def test_bad_input_is_one_line(druse: Command, source: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    code, text, error = druse("screen", *(part.format(source=source, out=tmp_path / "s") for part in arguments))
    assert (code, text) == (1, "")
    assert error.startswith("error:")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()
