"""Noise against published answers, against the float64 twin, and as what it claims to be: independent and normal."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import noise as twin
from reference.guard import Guard
from scipy import stats

from druse import DeviceError, _native
from druse.noise import Purpose, gumbel, normal, uniform

SEED = 20_240_817_123_456_789
IDS = np.array([0, 1, 2, 17, 2**32 + 5, 2**64 - 1], np.uint64)

KNOWN = [  # kat_vectors of Random123 1.14, philox4x32-10: counter, key, answer
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
Words = st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def native_philox(counter: list[int], key: list[int]) -> list[int]:
    out = np.zeros(4, np.uint32)
    arrays = [np.array(x, np.uint32) for x in (counter, key)]
    _native.library().druse_philox(*map(_native.pointer, (*arrays, out)))
    return out.tolist()


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
@pytest.mark.parametrize("philox", [native_philox, twin.philox4x32], ids=["native", "twin"])
def test_published_answers(
    philox: Callable[[list[int], list[int]], list[int]], counter: str, key: str, answer: str
) -> None:
    assert philox(words(counter), words(key)) == words(answer)


@given(Words, Words)
def test_blocks_against_the_twin(counter: list[int], key: list[int]) -> None:
    assert native_philox(counter, key[:2]) == twin.philox4x32(counter, key[:2])


# ---- the twin -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 256])
def test_normal_draws_against_the_twin(width: int) -> None:
    offsets = np.cumsum([0, 3, 0, 1, 20, 2, 5])
    drawn = normal(SEED, Purpose.LANGEVIN, 77, IDS, width=width, offsets=offsets)
    for b, crystal_id in enumerate(IDS.tolist()):
        rows = drawn[offsets[b] : offsets[b + 1]]
        expected = twin.normal(SEED, Purpose.LANGEVIN, 77, crystal_id, len(rows), width).reshape(-1, width)
        compare_normals(rows, expected)


def compare_normals(drawn: np.ndarray, expected: np.ndarray) -> None:
    """1e-6, and more for the rare tiny ones: float32 has u to 6e-8, which moves sqrt(-2 log u) by 6e-8 / radius."""
    padded = np.pad(expected, ((0, 0), (0, expected.shape[1] % 2)))
    radius = np.hypot(padded[:, ::2], padded[:, 1::2]).repeat(2, axis=1)[:, : expected.shape[1]]
    full = expected.shape[1] // 2 * 2  # the partner of the last one of an odd row is not known
    error = np.abs(drawn.astype(np.float64) - expected)
    assert np.all(error[:, :full] <= 1e-6 + 1.2e-7 / np.maximum(radius[:, :full], 1e-9))
    assert np.all(error <= 1e-5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_any_name_against_the_twin(seed: int, purpose: int, step: int, crystal_id: int) -> None:
    ids = np.array([crystal_id], np.uint64)
    compare_normals(normal(seed, purpose, step, ids, width=8), twin.normal(seed, purpose, step, crystal_id, 1, 8))
    np.testing.assert_array_equal(
        uniform(seed, purpose, step, ids, width=8), twin.uniform(seed, purpose, step, crystal_id, 1, 8)
    )


@pytest.mark.parametrize("width", [1, 3, 4, 100])
def test_gumbel_draws_are_the_twins(width: int) -> None:
    offsets = np.cumsum([0, 2, 0, 1, 9, 2, 5])
    drawn = gumbel(SEED, Purpose.TYPES, 3, IDS, width=width, offsets=offsets)
    for b, crystal_id in enumerate(IDS.tolist()):
        rows = drawn[offsets[b] : offsets[b + 1]]
        expected = twin.gumbel(SEED, Purpose.TYPES, 3, crystal_id, len(rows), width)
        np.testing.assert_allclose(rows, expected.reshape(-1, width), atol=6e-6, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_uniform_draws_are_the_twins(width: int) -> None:
    offsets = np.cumsum([0, 2, 0, 1, 9, 2, 5])
    drawn = uniform(SEED, Purpose.COORDINATES, 0, IDS, width=width, offsets=offsets)
    for b, crystal_id in enumerate(IDS.tolist()):
        rows = drawn[offsets[b] : offsets[b + 1]]
        expected = twin.uniform(SEED, Purpose.COORDINATES, 0, crystal_id, len(rows), width)
        np.testing.assert_array_equal(rows, expected.reshape(-1, width))


# ---- named, not consumed --------------------------------------------------------------------------------------------

draws = pytest.mark.parametrize("draw", [normal, uniform, gumbel])


@draws
def test_the_batch_does_not_matter(draw: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    counts, ids = rng.integers(0, 9, 40), rng.permutation(1000)[:40]
    offsets = np.cumsum([0, *counts])
    whole = draw(SEED, 6, 3, ids, width=3, offsets=offsets)
    alone = [draw(SEED, 6, 3, ids[b : b + 1], width=3, offsets=[0, counts[b]]) for b in range(40)]
    np.testing.assert_array_equal(whole, np.concatenate(alone))
    order = rng.permutation(40)
    shuffled = draw(SEED, 6, 3, ids[order], width=3, offsets=np.cumsum([0, *counts[order]]))
    np.testing.assert_array_equal(shuffled, np.concatenate([alone[b] for b in order]))


@draws
def test_later_rows_do_not_change_earlier_ones(draw: Callable[..., np.ndarray]) -> None:
    few, many = (draw(SEED, 6, 3, [9], width=5, offsets=[0, n]) for n in (70, 200))
    np.testing.assert_array_equal(few, many[:70])


@draws
def test_rows_are_whole_blocks(draw: Callable[..., np.ndarray]) -> None:
    wide = draw(SEED, 6, 3, IDS, width=8)
    narrow = draw(SEED, 6, 3, IDS, width=4, offsets=2 * np.arange(len(IDS) + 1))
    np.testing.assert_array_equal(narrow.reshape(-1, 8), wide)
    for width in range(1, 9):
        np.testing.assert_array_equal(draw(SEED, 6, 3, IDS, width=width), wide[:, :width])


@draws
def test_no_offsets_is_a_row_for_each(draw: Callable[..., np.ndarray]) -> None:
    rows = np.arange(len(IDS) + 1)
    np.testing.assert_array_equal(
        draw(SEED, 1, 0, IDS, width=6), draw(SEED, 1, 0, IDS, width=6, offsets=rows), strict=True
    )


@draws
def test_every_part_of_the_name_counts(draw: Callable[..., np.ndarray]) -> None:
    first = draw(SEED, Purpose.LANGEVIN, 5, [3], width=64)
    names = [
        (SEED + 1, Purpose.LANGEVIN, 5, 3),
        (SEED + 2**32, Purpose.LANGEVIN, 5, 3),
        (SEED, Purpose.LANGEVIN, 6, 3),
        (SEED, Purpose.LANGEVIN, 5, 4),
        (SEED, Purpose.LANGEVIN, 5, 3 + 2**32),
        *((SEED, purpose, 5, 3) for purpose in Purpose if purpose != Purpose.LANGEVIN),
    ]
    for seed, purpose, step, crystal_id in names:
        other = draw(seed, purpose, step, np.array([crystal_id], np.uint64), width=64)
        assert np.intersect1d(first, other).size <= 1


def test_purposes_are_part_of_a_runs_identity() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "LATENT_START": 1,
        "LATENT_STEP": 2,
        "CONDITION": 3,
        "COMPOSITION": 4,
        "COORDINATES": 5,
        "LANGEVIN": 6,
        "CORRECTOR": 7,
        "TYPES": 8,
    }


# ---- distribution ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    return normal(1, Purpose.LANGEVIN, 0, np.arange(10_000), width=100)


def test_normal_draws_are_normal(million: np.ndarray) -> None:
    drawn = million.astype(np.float64).ravel()
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    n = drawn.size
    assert abs(drawn.mean()) < 4 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((drawn**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((drawn**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert 4.5 < np.abs(drawn).max() < 6.8


def test_both_of_a_box_muller_pair_are_normal(million: np.ndarray) -> None:
    pair = million.astype(np.float64).reshape(-1, 2)
    for lane in range(4):
        assert stats.kstest(million[:, lane::4].astype(np.float64).ravel(), "norm").pvalue > 0.01
    angle = np.arctan2(pair[:, 1], pair[:, 0]) / (2 * np.pi) + 0.5
    assert stats.kstest(angle, "uniform").pvalue > 0.01
    assert stats.kstest((pair**2).sum(axis=1), "chi2", args=(2,)).pvalue > 0.01


def test_gumbel_draws_name_types_by_their_probabilities() -> None:
    drawn = gumbel(1, Purpose.TYPES, 0, np.arange(100_000), width=5)
    assert stats.kstest(drawn[:20_000].ravel(), "gumbel_r").pvalue > 0.01
    assert np.isfinite(drawn).all()
    logits = np.array([0.0, 2.0, -1.0, 1.0, -3.0])
    shares = np.bincount((logits + drawn).argmax(axis=1), minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(), atol=0.005)


def test_uniform_draws_are_uniform() -> None:
    drawn = uniform(1, Purpose.COORDINATES, 0, np.arange(10_000), width=100)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.01
    for lane in range(4):
        assert stats.kstest(drawn[:, lane::4].ravel(), "uniform").pvalue > 0.01


def test_neighbouring_names_are_not_correlated(million: np.ndarray) -> None:
    ids, limit = np.arange(10_000), 4.5 / np.sqrt(1e6)
    for other in (
        normal(1, Purpose.LANGEVIN, 0, ids + 1, width=100),
        normal(1, Purpose.LANGEVIN, 1, ids, width=100),
        normal(2, Purpose.LANGEVIN, 0, ids, width=100),
        normal(1, Purpose.CORRECTOR, 0, ids, width=100),
    ):
        for a, b in ((million, other), (million**2, other**2), (million, other**2)):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < limit
    for a, b in ((million[:-1], million[1:]), (million[:, :-1], million[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < limit


# ---- the same bytes everywhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_any_instruction_set(isa: str, million: np.ndarray) -> None:
    try:
        other = normal(1, Purpose.LANGEVIN, 0, np.arange(10_000), width=100, isa=isa)
    except DeviceError as error:
        pytest.skip(f"this processor has no {isa}: {error}")
    assert other.tobytes() == million.tobytes()
    odd = normal(1, Purpose.LANGEVIN, 0, IDS, width=7, offsets=np.arange(7) * 11, isa=isa)
    assert odd.tobytes() == normal(1, Purpose.LANGEVIN, 0, IDS, width=7, offsets=np.arange(7) * 11).tobytes()


@draws
def test_any_number_of_threads(draw: Callable[..., np.ndarray]) -> None:
    offsets = np.cumsum([0, *np.random.default_rng(1).integers(0, 50, 3000)])
    first = draw(SEED, 6, 3, np.arange(3000), width=3, offsets=offsets, n_threads=1)
    for n_threads in (2, 4, 0):
        other = draw(SEED, 6, 3, np.arange(3000), width=3, offsets=offsets, n_threads=n_threads)
        assert other.tobytes() == first.tobytes()


@draws
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 63, 64, 65])
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_nothing_is_written_beside_the_output(draw: Callable[..., np.ndarray], width: int, rows: int) -> None:
    guard = Guard(np.float64 if draw is uniform else np.float32, rows, width)
    drawn = draw(SEED, 6, 3, [5], width=width, offsets=[0, rows], out=guard.array)
    guard.check()
    assert drawn is guard.array
    np.testing.assert_array_equal(drawn, draw(SEED, 6, 3, [5], width=width, offsets=[0, rows]))


@draws
def test_no_crystals(draw: Callable[..., np.ndarray]) -> None:
    assert draw(SEED, 6, 3, [], width=3).shape == (0, 3)
    assert draw(SEED, 6, 3, [1, 2], width=3, offsets=[0, 0, 0]).shape == (0, 3)
