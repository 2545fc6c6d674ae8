"""Sums over paths in native code: every pair written out in float64, and the same bytes everywhere."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import eval_legendre

from druse import DruseError, _native

N_SPHERICAL, N_RADIAL, N_BASIS = 4, 3, 5


class Case(NamedTuple):
    """Tables of random edges; every edge has one row and is summed at one atom."""

    row: tuple[np.ndarray, np.ndarray]
    sum: tuple[np.ndarray, np.ndarray]
    labels: tuple[np.ndarray, np.ndarray]
    unit: np.ndarray
    mirror: int

    @property
    def n_edges(self) -> int:
        return len(self.labels[0])

    def structure(self) -> _native.Paths:
        arrays = (*self.row, *self.sum, *self.labels, self.unit)
        width = (self.row[0].shape[1], self.sum[0].shape[1])
        n_atoms = len(self.row[1])
        structure = _native.Paths(n_atoms, self.n_edges, *width, *map(_native.pointer, arrays), self.mirror)
        structure.kept = arrays
        return structure

    def pairs(self) -> list[tuple[int, int, np.ndarray]]:
        """Edges with a row and summed, and P_l between them."""
        unit = np.concatenate([self.unit, -self.unit])[: self.n_edges] if self.mirror else self.unit
        orders, found = np.arange(N_SPHERICAL), []
        for row, n_row, summed, n_sum in zip(*self.row, *self.sum, strict=True):
            for e in row[:n_row]:
                for f in summed[:n_sum]:
                    if self.labels[0][e] != self.labels[1][f]:
                        cosine = unit[e].astype(np.float64) @ unit[f]
                        found.append((int(e), int(f), eval_legendre(orders, cosine)))
        return found


def table(rng: np.random.Generator, n_atoms: int, n_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges in any order at random atoms, some of which have none."""
    atom = rng.integers(0, n_atoms, n_edges)
    degree = np.bincount(atom, minlength=n_atoms).astype(np.int32)
    edges = np.full((n_atoms, degree.max(initial=0) + 2), -5, np.int32)
    for n in range(n_atoms):
        edges[n, : degree[n]] = rng.permutation(np.flatnonzero(atom == n))
    return edges, degree


def random_case(n_atoms: int, n_edges: int, *, mirror: bool, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(n_edges // 2 if mirror else n_edges, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    labels = rng.integers(0, 4, n_edges), rng.integers(0, 4, n_edges)
    both = table(rng, n_atoms, n_edges), table(rng, n_atoms, n_edges)
    as_int = tuple(label.astype(np.int32) for label in labels)
    return Case(*both, as_int, unit.astype(np.float32), len(unit) if mirror else 0)


def call(
    name: str, case: Case, sizes: tuple[int, ...], *arrays: np.ndarray, threads: int = 1, isa: str = "best"
) -> None:
    _native.call(name, _native.cpu(threads, isa), case.structure(), *sizes, *map(_native.pointer, arrays))


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process holds")
def test_working_memory_of_a_large_atom_is_not_kept() -> None:
    small, large = (random_case(1, n, mirror=False) for n in (20, 3000))
    for case in (small, large):
        arrays = [
            np.zeros((case.n_edges, *shape), np.float32) for shape in ((N_BASIS, N_SPHERICAL), (16,), (N_BASIS, 16))
        ]
        before = resident_bytes()
        call("druse_triplet_sum", case, (N_SPHERICAL, N_BASIS, 16), *arrays)
        assert resident_bytes() - before < 2**26, "its cosines alone are 144 MB"


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(got - expected).max(initial=0) <= 3e-6 * np.abs(expected).max(initial=1))


CASES = [(1, 8, 16, False), (3, 40, 64, True), (9, 60, 48, False), (2, 90, 80, True), (4, 0, 16, False)]


def path_sum(case: Case, n_channels: int, **where: int | str) -> tuple[np.ndarray, ...]:
    """Inputs, then the sum and its gradients."""
    rng = np.random.default_rng(1)
    spherical = floats(rng, case.n_edges, N_SPHERICAL, N_RADIAL)
    weight = floats(rng, N_SPHERICAL, N_RADIAL, n_channels)
    x, given = floats(rng, case.n_edges, n_channels), floats(rng, case.n_edges, n_channels)
    out, of_weight, of_x = np.empty_like(x), np.empty_like(weight), np.empty_like(x)
    sizes = (N_SPHERICAL, N_RADIAL, n_channels)
    call("druse_path_sum", case, sizes, spherical, weight, x, out, **where)
    call("druse_path_sum_gradient", case, sizes, spherical, weight, x, given, of_weight, of_x, **where)
    return spherical, weight, x, given, out, of_weight, of_x


def triplet_sum(case: Case, n_channels: int, **where: int | str) -> tuple[np.ndarray, ...]:
    """Inputs, then the sum and its gradients."""
    rng = np.random.default_rng(2)
    radial = floats(rng, case.mirror or case.n_edges, N_BASIS, N_SPHERICAL)
    x, given = floats(rng, case.n_edges, n_channels), floats(rng, case.n_edges, N_BASIS, n_channels)
    out, of_x = np.empty_like(given), np.empty_like(x)
    of_radial = np.empty((case.n_edges, N_BASIS, N_SPHERICAL), np.float32)
    sizes = (N_SPHERICAL, N_BASIS, n_channels)
    call("druse_triplet_sum", case, sizes, radial, x, out, **where)
    call("druse_triplet_sum_gradient", case, sizes, radial, x, given, of_radial, of_x, **where)
    return radial, x, given, out, of_radial, of_x


@pytest.mark.parametrize(("n_atoms", "n_edges", "n_channels", "mirror"), CASES)
def test_path_sum_and_gradients(n_atoms: int, n_edges: int, n_channels: int, mirror: bool) -> None:
    case = random_case(n_atoms, n_edges, mirror=mirror)
    spherical, weight, x, given, *got = path_sum(case, n_channels)
    factors = np.einsum("eln,lnc->elc", spherical, weight, dtype=np.float64)
    out, of_weight, of_x = (np.zeros_like(value, np.float64) for value in got)
    for e, f, polynomials in case.pairs():
        out[e] += polynomials @ factors[f] * x[f]
        of_x[f] += polynomials @ factors[f] * given[e]
        of_weight += (polynomials[:, None] * spherical[f])[:, :, None] * (given[e] * x[f])
    assert all(close(ours, expected) for ours, expected in zip(got, (out, of_weight, of_x), strict=True))


@pytest.mark.parametrize(("n_atoms", "n_edges", "n_channels", "mirror"), CASES)
def test_triplet_sum_and_gradients(n_atoms: int, n_edges: int, n_channels: int, mirror: bool) -> None:
    case = random_case(n_atoms, n_edges, mirror=mirror)
    radial, x, given, *got = triplet_sum(case, n_channels)
    out, of_radial, of_x = (np.zeros_like(value, np.float64) for value in got)
    for e, f, polynomials in case.pairs():
        own = radial[e % len(radial)] @ polynomials  # [basis]
        out[e] += own[:, None] * x[f]
        of_x[f] += own @ given[e]
        of_radial[e] += (given[e] @ x[f])[:, None] * polynomials
    assert all(close(ours, expected) for ours, expected in zip(got, (out, of_radial, of_x), strict=True))


@pytest.mark.parametrize("function", [path_sum, triplet_sum])
def test_the_same_bytes_on_every_instruction_set_and_number_of_threads(function) -> None:  # type: ignore[no-untyped-def]
    case = random_case(40, 900, mirror=True, seed=5)
    expected = [value.tobytes() for value in function(case, 64)]
    for isa in ("baseline", "avx2", "avx512"):
        for threads in (1, 3):
            try:
                got = function(case, 64, threads=threads, isa=isa)
            except DruseError as error:
                assert "not supported" in str(error)  # noqa: PT017 - the other sets are compared all the same
                continue
            assert [value.tobytes() for value in got] == expected, (isa, threads)


def test_what_does_not_fit_is_refused() -> None:
    case = random_case(3, 20, mirror=True)
    x, radial, out = np.zeros((20, 16), np.float32), np.zeros((10, 5, 4), np.float32), np.zeros((20, 5, 16), np.float32)
    for sizes in ((0, 5, 16), (4, 0, 16), (4, 5, 0), (4, 5, 15), (65, 5, 16)):
        with pytest.raises(DruseError, match="out of range"):
            call("druse_triplet_sum", case, sizes, radial, x, out)
    for place, value in (((0, 0), 20), ((0, 0), -1)):
        for tables in ("row", "sum"):
            edges, degree = (array.copy() for array in getattr(case, tables))
            edges[place], degree[0] = value, max(1, degree[0])
            with pytest.raises(DruseError, match="out of range"):
                call("druse_triplet_sum", case._replace(**{tables: (edges, degree)}), (4, 5, 16), radial, x, out)
    edges, degree = case.row[0], case.row[1].copy()
    degree[1] = edges.shape[1] + 1
    with pytest.raises(DruseError, match="out of range"):
        call("druse_triplet_sum", case._replace(row=(edges, degree)), (4, 5, 16), radial, x, out)
    with pytest.raises(DruseError, match="out of range"):
        call("druse_triplet_sum", case._replace(mirror=9), (4, 5, 16), radial, x, out)
