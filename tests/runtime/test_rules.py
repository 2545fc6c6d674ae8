"""Rules: what a file may say, in which order they come, and what is wrong with a bad one."""

from pathlib import Path

import pytest

from druse.errors import InputError
from druse.rules import (
    CompositionRule,
    GeometryRule,
    NovelRule,
    PropertyRule,
    RuleSet,
    ScoreTerm,
    SymmetryRule,
    TopKRule,
    UniqueRule,
    default_rules,
    default_rules_text,
    read_rules,
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def test_cheap_rules_come_before_dear_ones_whatever_their_order() -> None:
    top = TopKRule(k=3, score=(ScoreTerm(column="a", goal="max"),))
    given = (top, NovelRule(reference="x"), UniqueRule(), SymmetryRule(), PropertyRule(column="b", min=0.0),
             PropertyRule(column="a", max=1.0), CompositionRule(), GeometryRule())  # fmt: skip
    rules = RuleSet(rules=given).rules
    assert [rule.name for rule in rules] == [
        "geometry", "composition", "b", "a", "symmetry", "unique", "novel", "top_k",
    ]  # fmt: skip
    assert RuleSet(rules=rules).rules == rules


def test_several_of_a_kind_have_names_of_their_own() -> None:
    window = PropertyRule(column="a", min=0.0)
    rules = RuleSet(rules=(window, PropertyRule(column="a", max=1.0), PropertyRule(name="a 2", column="b", max=0.0)))
    assert [rule.name for rule in rules.rules] == ["a", "a 3", "a 2"]


def test_the_example_with_all_its_examples_taken_up(tmp_path: Path) -> None:
    lines = (line[1:] if line.startswith("#") and not line.startswith("# ") else line
             for line in default_rules_text().splitlines())  # fmt: skip
    rules = read_rules(written(tmp_path, "\n".join(lines)))
    assert {type(rule) for rule in rules.rules} == {
        GeometryRule, CompositionRule, PropertyRule, SymmetryRule, UniqueRule, NovelRule, TopKRule,
    }  # fmt: skip
    novel = next(rule for rule in rules.rules if isinstance(rule, NovelRule))
    assert novel.reference == str(tmp_path / "mp20.csv"), "relative to the file"
    assert rules.models == (str(tmp_path / "my_band_gap.zip"),)
    assert rules.columns == ("formation_energy_per_atom", "band_gap")


def test_the_default_is_cheap() -> None:
    assert [type(rule) for rule in default_rules().rules] == [GeometryRule, CompositionRule, UniqueRule]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rules]]\nkind = 'geometric'", r"rules\[0\]"),
        ("[[rules]]\nkind = 'geometry'\nmin_distanse = 1", "min_distanse"),
        ("[[rules]]\nkind = 'geometry'\nmin_distance = -1", "`min_distance` must be above 0, got -1"),
        ("[[rules]]\nkind = 'geometry'\nmin_distance = 11", "at most 10"),
        ("[[rules]]\nkind = 'geometry'\nmin_volume = 5\nmax_volume = 4", "nothing can pass"),
        ("[[rules]]\nkind = 'geometry'\nmin_distance = nan", "finite"),
        ("[[rules]]\nkind = 'geometry'\nmin_distance = '1'", "float"),
        ("[[rules]]\nkind = 'composition'\nallowed = ['Xx']", "'Xx'"),
        ("[[rules]]\nkind = 'composition'\nallowed = ['Fe']\nrequired = ['O']", "which `allowed` lacks"),
        ("[[rules]]\nkind = 'property'", "column"),
        ("[[rules]]\nkind = 'property'\ncolumn = 'a'\ntarget = 1", "go together"),
        ("[[rules]]\nkind = 'property'\ncolumn = 'a'\ntarget = nan\ntolerance = 1", "`target` must be a finite number"),
        ("[[rules]]\nkind = 'property'\ncolumn = 'a'\ntarget = ''\ntolerance = 1", "name of a column"),
        ("[[rules]]\nkind = 'composition'\nrequired = ['Fe', 'O']\nexcluded = ['O']", "`required` has O, .* can pass"),
        ("[[rules]]\nkind = 'composition'\nallowed = ['Fe', 'O']\nexcluded = ['O', 'Fe']", "nothing can pass"),
        ("[[rules]]\nkind = 'symmetry'\nspace_groups = [231]", "from 1 to 230, got 231"),
        ("[[rules]]\nkind = 'symmetry'\ncrystal_systems = ['round']", "'round'"),
        ("[[rules]]\nkind = 'symmetry'\nmethod = 'eye'", "eye"),
        ("[[rules]]\nkind = 'symmetry'\nmethod = 'moyo'\nangle_tolerance = 1", "moyo takes none"),
        ("[[rules]]\nkind = 'novel'\nreference = ''", "reference"),
        ("[[rules]]\nkind = 'top_k'\nk = 0\nscore = [{column = 'a', goal = 'max'}]", "`k` must be above 0"),
        ("[[rules]]\nkind = 'top_k'\nk = 1\nscore = []", "at least one term"),
        ("[[rules]]\nkind = 'top_k'\nk = 1\nscore = [{column = 'a'}]", "'target', which needs it"),
        (2 * "[[rules]]\nkind = 'top_k'\nk = 1\nscore = [{column = 'a', goal = 'max'}]\n", "one rule of kind 'top_k'"),
        (2 * "[[rules]]\nkind = 'unique'\nname = 'x'\n", "given twice"),
        ("[[rules]]\nkind = 'unique'\nname = 'read'\n", "taken"),
        ("[[rules]]\nkind = 'unique'\nname = 'property models'\n", "taken"),
        ("[[rules]]\nkind = 'top_k'\nk = 1\nscore = [{column = 'a', target = inf}]", "`target` must be a finite"),
        ("rule = 1", "rule"),
        ("[[rules", "rules.toml"),
        ("\x00", "rules.toml"),
    ],
)  # fmt: skip
def test_a_bad_file_says_where_and_why(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_rules(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--example"):
        read_rules(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is a folder"):
        read_rules(tmp_path)
