"""Conditions as the networks take them, formulas, and the schedule of the prior."""

import math
from typing import Any

import numpy as np
import pytest
from ase.data import chemical_symbols
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition

from druse import InputError
from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty, encode
from druse.elements import SYMBOLS, element_features, formula_of, parse_formula
from druse.schedules import ddpm_schedule

ENERGY = ScalarProperty("energy", -2.0, 2.0, 0.5, "eV/atom")
SYSTEM = ClassProperty("system", 3, ("cubic", "hexagonal", "triclinic"))
GROUP = ClassProperty("group", 231)
FORMULA = CompositionProperty()


def one(spec: Property, value: Any, n: int = 2) -> np.ndarray:
    (encoded,) = encode([spec], {spec.name: value}, n).values()
    return encoded


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, [1, 1]),
        (-1.5, [-1.5, -1.5]),
        (np.float64(0.1), [0.1, 0.1]),
        (np.array(3, np.int8), [3, 3]),
        ([1, 2], [1, 2]),
        (np.array([0.1, 1e9]), [0.1, 1e9]),  # beyond the range: that is for the caller to judge
        (np.arange(4)[::2], [0, 2]),
        (range(2), [0, 1]),
    ],
)
def test_scalars(value: Any, expected: list[float]) -> None:
    encoded = one(ENERGY, value)
    assert encoded.dtype == np.float32
    assert encoded.flags.c_contiguous
    assert np.array_equal(encoded, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("spec", "value", "expected"),
    [
        (SYSTEM, 2, [2, 2]),
        (SYSTEM, "hexagonal", [1, 1]),
        (SYSTEM, np.str_("hexagonal"), [1, 1]),
        (SYSTEM, np.array("hexagonal"), [1, 1]),
        (SYSTEM, ["triclinic", "cubic"], [2, 0]),
        (SYSTEM, np.array(["triclinic", "cubic"]), [2, 0]),
        (SYSTEM, np.array(["triclinic", "cubic"], object), [2, 0]),
        (SYSTEM, ["triclinic", 1], [2, 1]),
        (SYSTEM, [2.0, 0.0], [2, 0]),  # a column of a table with gaps
        (SYSTEM, 1.0, [1, 1]),
        (GROUP, [230, 0], [230, 0]),
        (GROUP, np.array([225, 1], np.uint8), [225, 1]),
    ],
)
def test_classes(spec: ClassProperty, value: Any, expected: list[int]) -> None:
    encoded = one(spec, value)
    assert encoded.dtype == np.int32
    assert encoded.flags.c_contiguous
    assert encoded.tolist() == expected


def averaged(formula: str) -> np.ndarray:
    """By pymatgen's fractions, atom for atom."""
    fractions = Composition(formula).fractional_composition
    return sum(share * element_features()[element.Z].astype(np.float64) for element, share in fractions.items())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_compositions(n: int) -> None:
    formulas = ["BaTiO3", "Ca(OH)2", "C"][:n]
    expected = np.array([averaged(formula) for formula in formulas]).reshape(n, 92)
    for given_ in (formulas, np.array(formulas, object), expected, expected.tolist() if n else expected):
        encoded = one(FORMULA, given_, n)
        assert encoded.dtype == np.float32
        assert encoded.shape == (n, 92)
        np.testing.assert_allclose(encoded, expected, atol=1e-6)
    for text in ("BaTiO3", np.str_("BaTiO3"), np.array("BaTiO3")):
        np.testing.assert_allclose(one(FORMULA, text, n), np.tile(averaged("BaTiO3"), (n, 1)), atol=1e-6)


def test_a_formula_in_multiples_is_the_same_condition() -> None:
    first, second = one(FORMULA, ["TiO2", "Ti4O8"])
    assert np.array_equal(first, second)


def test_none_wanted_and_none_given() -> None:
    assert encode([], {}, 3) == {}
    assert {name: value.shape for name, value in encode([ENERGY, SYSTEM], {"energy": 1, "system": 0}, 0).items()} == {
        "energy": (0,),
        "system": (0,),
    }


def test_the_order_is_that_of_the_properties() -> None:
    assert list(encode([SYSTEM, ENERGY], {"energy": 1.0, "system": "cubic"}, 1)) == ["system", "energy"]


NAN_ROW = np.full((2, 92), np.nan)


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (ENERGY, np.nan, r"`energy` must be finite in float32, got nan"),
        (ENERGY, [0.0, -np.inf], r"finite in float32, got -inf"),
        (ENERGY, [1e39, 0.0], r"finite in float32, got 1e\+39"),
        (ENERGY, [1.0], r"must have shape \[2\], got \[1\]"),
        (ENERGY, [1.0, 2.0, 3.0], r"must have shape \[2\], got \[3\]"),
        (ENERGY, [[1.0, 2.0]], r"must have shape \[2\], got \[1, 2\]"),
        (ENERGY, [[1.0], [1.0, 2.0]], "rows of several lengths"),
        (ENERGY, "1.0", "must hold real numbers"),
        (ENERGY, True, "must hold real numbers"),
        (ENERGY, None, "must hold real numbers"),
        (ENERGY, [1.0, None], "must hold real numbers"),
        (ENERGY, 1j, "must hold real numbers"),
        (ENERGY, {1.0, 2.0}, "must hold real numbers"),
        (SYSTEM, 3, "class numbers from 0 to 2, got 3 to 3"),
        (SYSTEM, [0, -1], "class numbers from 0 to 2, got -1 to 0"),
        (SYSTEM, 2**40, "must fit int32"),
        (SYSTEM, 3.0, "whole class numbers from 0 to 2, got 3.0"),
        (SYSTEM, [0.0, 0.5], "whole class numbers from 0 to 2, got 0.5"),
        (SYSTEM, [0.0, np.nan], "whole class numbers from 0 to 2, got nan"),
        (SYSTEM, np.inf, "whole class numbers from 0 to 2, got inf"),
        (SYSTEM, [1e30, 0], r"whole class numbers from 0 to 2, got 1e\+30"),
        (SYSTEM, True, "must hold integers"),
        (SYSTEM, "Cubic", "must be one of cubic, hexagonal, triclinic, got 'Cubic'"),
        (SYSTEM, ["cubic", ""], "must be one of cubic, hexagonal, triclinic, got ''"),
        (SYSTEM, ["cubic", None], "must hold integers"),
        (SYSTEM, ["cubic", [1]], "rows of several lengths"),
        (SYSTEM, ["cubic"], r"must have shape \[2\], got \[1\]"),
        (SYSTEM, [["cubic", "cubic"]], "must hold integers"),
        (GROUP, "225", "must be a number from 0 to 230, got '225'"),
        (GROUP, ["225", "1"], "must be a number from 0 to 230, got '225'"),
        (FORMULA, ["NaCl"], r"must have shape \[2, 92\], got \[1, 92\]"),
        (FORMULA, ["NaCl", "nacl"], "cannot read 'nacl' as a formula"),
        (FORMULA, "Og", "Og has an element beyond number 100"),
        (FORMULA, ["NaCl", 1], "must hold real numbers"),
        (FORMULA, ["NaCl", None], "must hold real numbers"),
        (FORMULA, b"NaCl", "must hold real numbers"),
        (FORMULA, None, "must hold real numbers"),
        (FORMULA, 11, r"must have shape \[2, 92\], got \[\]"),
        (FORMULA, NAN_ROW[0], r"must have shape \[2, 92\], got \[92\]"),
        (FORMULA, NAN_ROW[:, :91], r"must have shape \[2, 92\], got \[2, 91\]"),
        (FORMULA, NAN_ROW, "must be finite in float32, got nan"),
        (FORMULA, np.full((2, 92), 1e39), r"must be finite in float32, got 1e\+39"),
    ],
)
def test_bad_values(as_users_call: None, spec: Property, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        one(spec, value)


@pytest.mark.parametrize("value", ["no formula", "Og"])
def test_a_bad_value_for_all_is_found_though_there_are_none(value: str) -> None:
    with pytest.raises(InputError):
        one(FORMULA, value, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly the properties energy, system; got none"),
        ({"energy": 1.0}, "exactly the properties energy, system; got energy"),
        ({"energy": 1.0, "system": 0, "gap": 1.0}, "got energy, system, gap"),
        ({"energy": 1.0, 1: 0}, "got energy, 1"),
        (1.0, "got 1.0"),
        (None, "got None"),
    ],
)
def test_missing_and_extra_names(as_users_call: None, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode([ENERGY, SYSTEM], values, 1)


@pytest.mark.parametrize("n", [-1, 2.0, "2", None])
def test_a_bad_number(as_users_call: None, n: Any) -> None:
    with pytest.raises(InputError, match="`n` must be a whole number from 0 up"):
        encode([ENERGY], {"energy": 1.0}, n)


def test_symbols() -> None:
    assert list(SYMBOLS) == chemical_symbols[1:]


@given(st.lists(st.integers(1, 118), min_size=1, max_size=40))
def test_a_formula_and_back(species: list[int]) -> None:
    counts = {z: float(species.count(z)) for z in species}
    assert parse_formula(formula_of(species)) == counts
    assert dict(Composition(formula_of(species)).get_el_amt_dict()) == {SYMBOLS[z - 1]: n for z, n in counts.items()}


COUNT = st.one_of(st.just(""), st.integers(1, 40).map(str), st.sampled_from(["0.5", "1.25", "12.0"]))
ATOM = st.tuples(st.sampled_from(SYMBOLS), COUNT).map("".join)
WRITTEN = st.recursive(
    st.lists(ATOM, min_size=1, max_size=4).map("".join),
    lambda inner: st.lists(
        st.one_of(ATOM, st.tuples(inner, COUNT).map(lambda part: f"({part[0]}){part[1]}")), min_size=1, max_size=3
    ).map("".join),
    max_leaves=6,
)


@given(WRITTEN)
def test_formulas_against_pymatgen(formula: str) -> None:
    expected = Composition(formula).get_el_amt_dict()
    found = {SYMBOLS[z - 1]: amount for z, amount in parse_formula(formula).items()}
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-7)  # pymatgen drops and rounds below 1e-8


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("CO", {6: 1, 8: 1}),
        ("Co", {27: 1}),
        ("Ba (TiO3) 2", {56: 1, 22: 2, 8: 6}),
        (" NaCl ", {11: 1, 17: 1}),
        ("Mg((OH)2(CO)3)2", {12: 1, 8: 10, 1: 4, 6: 6}),
        ("H2.5O", {1: 2.5, 8: 1}),
        ("CHHH", {6: 1, 1: 3}),
        ("H" * 50_000, {1: 50_000}),
        ("(" * 5000 + "H2" + ")" * 5000, {1: 2}),  # deep as Python's own stack is not
    ],
)
def test_good_formulas(formula: str, expected: dict[int, float]) -> None:
    assert parse_formula(formula) == expected


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("", "nothing at its end"),
        ("   ", "no element at '   '"),
        ("nacl", "no element at 'nacl'"),
        ("NaXx2", "no element at 'Xx2'"),
        ("D2O", "no element at 'D2O'"),
        ("Na(Cl", "bracket left open at its end"),
        ("NaCl)", r"bracket that closes nothing at '\)'"),
        ("Na()2", "bracket that closes nothing"),
        ("H0", "count that cannot be at 'H0'"),
        ("H0H2", "count that cannot be at 'H0H2'"),
        ("C(H2)0", "count that cannot be"),
        ("H0.0O", "count that cannot be"),
        ("(2H)", "count that cannot be"),
        ("2H", "no element at '2H'"),
        ("H-1", "no element at '-1'"),
        ("H1e5", "no element at 'e5'"),
        ("H.5", r"no element at '\.5'"),
        ("H2.", r"no element at '\.'"),
        ("H2 2", "no element at '2'"),  # not 22
        ("N a", "no element at 'a'"),
        ("H²", "no element at '²'"),
        ("H\u0662", "no element"),  # an Arabic 2, which Python's int() takes
        ("\uff28", "no element"),  # a wide H
        ("NaCl·H2O", "no element at '·H2O'"),
        ("[H]", "no element"),
        ("H\n", "no element"),
        ("H" + "9" * 400, "count that cannot be"),  # infinite as a float
        (f"(H{'9' * 300}){'9' * 300}", "counts that cannot be"),  # and by multiplication
        (f"H{'9' * 308}O{'9' * 308}", "counts that cannot be"),  # and by the sum
        (f"(H0.{'0' * 200}1)0.{'0' * 200}1", "counts that cannot be"),  # zero by multiplication
    ],
)
def test_bad_formulas(formula: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"as a formula: (a )?{reason}.*; write such as"):
        parse_formula(formula)


@pytest.mark.parametrize("formula", ["H" * 100_000 + "?", " " * 100_000 + "?", "(" * 100_000, "9" * 100_000])
def test_what_is_said_of_a_very_long_formula_is_short(formula: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_formula(formula)
    assert len(str(caught.value)) < 200


@given(st.text(st.sampled_from("HOeNa()0123456789. ²٢\n"), max_size=12))
def test_any_text_gives_a_formula_or_a_sentence(text: str) -> None:
    try:
        amounts = parse_formula(text)
    except InputError:
        return
    assert amounts
    assert all(0 < amount < math.inf for amount in amounts.values())


@pytest.mark.parametrize("formula", [None, 5, b"NaCl", ["NaCl"]])
def test_what_is_no_text(as_users_call: None, formula: Any) -> None:
    with pytest.raises(InputError, match="a formula must be text"):
        parse_formula(formula)


@pytest.mark.parametrize(
    ("species", "expected"),
    [([22, 8, 8], "O2Ti"), (np.array([17, 11], np.int32), "NaCl"), ([6] * 1000, "C1000"), ([118, 1], "HOg"), ([], "")],
)
def test_formula_of(species: Any, expected: str) -> None:
    assert formula_of(species) == expected


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ([0], "atomic numbers from 1 to 118, got 0 to 0"),
        ([8, -1], "got -1 to 8"),
        ([1, 119], "got 1 to 119"),
        ([1.0, 2.0], "must hold integers"),
        (["H"], "must hold integers"),
        ([[1, 2]], r"must have shape \[atoms\]"),
        (8, r"must have shape \[atoms\]"),
    ],
)
def test_formula_of_what_is_no_element(as_users_call: None, species: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        formula_of(species)


def plain_schedule(betas: list[float]) -> list[tuple[float, float, float]]:
    """Ho et al., eqs 4 and 7, step by step."""
    rows, alpha_bar = [], 1.0
    for beta in betas:
        before, alpha_bar = alpha_bar, alpha_bar * (1 - beta)
        rows.append((1 - beta, alpha_bar, math.sqrt(beta * (1 - before) / (1 - alpha_bar))))
    return rows


@given(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=60))
def test_schedule(betas: list[float]) -> None:
    schedule = ddpm_schedule(betas)
    np.testing.assert_allclose(np.transpose(schedule), plain_schedule(betas), rtol=1e-12, atol=0)
    assert schedule.sigma[0] == 0
    assert all(part.dtype == np.float64 for part in schedule)
    assert np.all(schedule.sigma <= np.sqrt(betas))  # the posterior is narrower than the step


def test_schedule_of_con_cdvae() -> None:
    betas = tuple(np.linspace(1e-3, 0.02, 300).tolist())
    schedule = ddpm_schedule(betas)
    np.testing.assert_allclose(np.transpose(schedule), plain_schedule(list(betas)), rtol=1e-12, atol=0)
    series = sum(beta + beta**2 / 2 for beta in betas)  # of -log(1 - beta)
    assert schedule.alpha_bar[-1] == pytest.approx(math.exp(-series), rel=1e-3)


@pytest.mark.parametrize("betas", [[1e-15, 1e-15], [1 - 1e-16] * 40, [0.9] * 1000])
def test_extreme_betas_give_numbers(betas: list[float]) -> None:
    assert np.isfinite(np.array(ddpm_schedule(betas))).all()


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "got none"),
        ([0.0], "between 0 and 1, and not below 1e-15, got 0.0"),
        ([0.5, 1.0], "got 1.0"),
        ([0.5, -0.1], "got -0.1"),
        ([np.nan], "got nan"),
        ([0.1, np.inf], "got inf"),
        ([1e-20, 0.1], "got 1e-20"),  # 1 - beta is 1: no noise in the first step, and 0 / 0
        (0.1, r"must have shape \[steps\]"),
        ([[0.1]], r"must have shape \[steps\]"),
        (["0.1"], "must hold real numbers"),
        ([0.1, None], "must hold real numbers"),
        ([1j], "must hold real numbers"),
        (None, "must hold real numbers"),
    ],
)
def test_bad_betas(as_users_call: None, betas: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"`betas` .*{message}"):
        ddpm_schedule(betas)
