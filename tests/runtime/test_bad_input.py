"""Bad input gets an error that names the argument, says what came and what is wanted.

The calls are made as users make them, without the tests' run-time type checks.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import structures
from reference.structures import PEROVSKITE, ROCK_SALT

from druse import Crystals, DruseError, GraphBuffers, InputError, basis, lattice, noise, radius_graph, sampling

pytestmark = pytest.mark.usefixtures("as_users_call")
FRAC, CELLS, OFFSETS = structures.batch([ROCK_SALT, PEROVSKITE])
N = len(FRAC)
SPECIES = np.ones(N, np.int32)
ZEROS = np.zeros((N, 3), np.float32)
N_EDGES = 104
"""Of `graph()`."""
WRITEABLE = "must be a writeable C-contiguous array"
RAGGED = [[0.0, 0.0, 0.0], [0.5, 0.5]]

Case = tuple[str, Any, str]
"""The argument, a bad value, and what the message must say (a regular expression)."""


def graph(**bad: Any) -> Any:
    given = {"frac": FRAC, "cells": CELLS, "offsets": OFFSETS, "cutoff": 5.0, "max_neighbors": 12}
    return radius_graph(**(given | bad))


BATCH_CASES: list[Case] = [
    ("frac", FRAC[:, :2], r"must have shape \[atoms, 3\], got \[7, 2\]"),
    ("frac", FRAC.ravel(), r"must have shape \[atoms, 3\], got \[21\]"),
    ("frac", FRAC.astype(complex), r"must hold real numbers \(float64\), got complex128; convert"),
    ("frac", [["a", "b", "c"]] * 7, r"must hold real numbers"),
    ("frac", np.ones((7, 3), bool), r"must hold real numbers \(float64\), got bool"),
    ("frac", RAGGED, r"must be an array of shape \[atoms, 3\], got list"),
    ("frac", None, r"must hold real numbers"),
    ("cells", CELLS[0], r"must have shape \[crystals, 3, 3\], got \[3, 3\]; wrap a single cell as cells\[None\]"),
    ("cells", CELLS[:, :2], r"must have shape \[crystals, 3, 3\], got \[2, 2, 3\]"),
    ("offsets", [0, 2], r"must end at the number of atoms, 7, got 2"),
    ("offsets", [0, 8, 7], r"must not fall .* got 8 followed by 7 at crystal 1; pass running totals"),
    ("offsets", [0, -1, 7], r"must not fall .* got 0 followed by -1 at crystal 0"),
    ("offsets", [2, 3, 7], r"must start with 0, got 2; for one crystal pass"),
    ("offsets", [], r"must start with 0, got nothing"),
    ("offsets", [0.0, 2.0, 7.0], r"must hold integers \(int64\), got float64"),
    ("offsets", [[0, 2, 7]], r"must have shape \[crystals \+ 1\], got \[1, 3\]"),
    ("offsets", 7, r"must have shape \[crystals \+ 1\], got \[\]"),
    ("offsets", [0, 7], r"must have (one entry more than there are cells, 3|3 entries for 2 cells), got 2"),
    ("offsets", [0, 2, 5, 7], r"must have (one entry more than there are cells, 3|3 entries for 2 cells), got 4"),
]

GRAPH_CASES: list[Case] = [
    *BATCH_CASES,
    *(("cutoff", v, r"must be a distance in Angstrom above 0 and below 1e6, got ") for v in
      (0, 0.0, -1.0, np.nan, np.inf, 1e6, "5", None, True, [5.0], 10**400)),
    *(("max_neighbors", v, r"must be a whole number from 1 up, or None for all, got ") for v in
      (0, -3, 12.0, 2**31, 2**70, "12", True, np.nan, [12])),
    *(("shell_tolerance", v, r"must be a distance in Angstrom from 0 to 1, or None, got ") for v in
      (-0.1, 1.5, np.nan, np.inf, "1e-3", False)),
    *(("mode", v, r"must be one of 'exact', 'upstream', got ") for v in ("Exact", "", 0, None, b"exact", ["exact"])),
    *(("symmetrise", v, r"must be one of 'none', 'upstream', 'union', got ") for v in ("both", None, False, 1)),
    *(("n_threads", v, r"must be a whole number from 0 \(every core\) to 256, got ") for v in (-1, 2.0, True, "2")),
    *(("isa", v, r"must be one of 'best', 'baseline', 'avx2', 'avx512', got ") for v in ("sse", None, 2)),
    ("out", "yes", r"must come from GraphBuffers.allocate, got str"),
    ("out", GraphBuffers.allocate(6, 100, 20), r"must be allocated for the batch's 7 atoms, got 6"),
]  # fmt: skip


def draw(**bad: Any) -> Any:
    given: dict[str, Any] = {"seed": 1, "purpose": 6, "step": 0, "crystal_ids": [0, 1], "width": 3}
    return noise.normal(**(given | bad))


def draw_uniform(**bad: Any) -> Any:
    given: dict[str, Any] = {"seed": 1, "purpose": 6, "step": 0, "crystal_ids": [0, 1], "width": 3}
    return noise.uniform(**(given | bad))


NOISE_CASES: list[Case] = [
    *(("seed", v, r"must be a whole number from 0 to 2\^64 - 1, got ") for v in (-1, 2**64, 2**70, 1.0, "1", None)),
    *(("purpose", v, r"must be a Purpose, or a number from 0 to 255, got ") for v in (-1, 256, "LANGEVIN", None)),
    *(("step", v, r"must be a whole number from 0 to 2\^32 - 1, got ") for v in (-1, 2**32, 1.5, None)),
    *(("width", v, r"must be a whole number from 1 to 2\^26, got ") for v in (0, -1, 2**26 + 1, 3.0)),
    ("crystal_ids", [-1, 0], r"must fit uint64, got values from -1 to 0"),
    ("crystal_ids", [0.0, 1.0], r"must hold integers \(uint64\), got float64"),
    ("crystal_ids", [[0, 1]], r"must have shape \[crystals\], got \[1, 2\]"),
    ("crystal_ids", 5, r"must have shape \[crystals\], got \[\]"),
    ("offsets", [0, 2], r"must have 3 entries for 2 crystal ids, got 2"),
    ("offsets", [1, 2, 3], r"must start with 0, got 1"),
    ("offsets", [0, 3, 2], r"must not fall .* got 3 followed by 2 at crystal 1"),
    ("offsets", [0.0, 1.0, 2.0], r"must hold integers"),
    ("offsets", 2, r"must have shape \[crystals \+ 1\], got \[\]"),
    ("offsets", [[0, 1, 2]], r"must have shape \[crystals \+ 1\], got \[1, 3\]"),
    ("offsets", [0, 1, np.nan], r"must hold integers"),
    ("offsets", ["0", "1", "2"], r"must hold integers"),
    ("out", np.zeros((2, 4), np.float32), WRITEABLE + r" of float(32|64) \[2, 3\], got float32 \[2, 4\]"),
    ("out", np.zeros((2, 3), np.int32), WRITEABLE + r" of float(32|64) \[2, 3\], got int32"),
    ("out", np.zeros((2, 6))[:, ::2], WRITEABLE),
    ("out", [[0.0] * 3] * 2, WRITEABLE + r" of float(32|64) \[2, 3\], got list"),
]  # fmt: skip


def langevin(**bad: Any) -> Any:
    given: dict[str, Any] = {
        "frac": FRAC, "cells": CELLS, "offsets": OFFSETS, "species": SPECIES, "score": ZEROS, "noise": ZEROS,
        "drift": 1.0, "diffusion": 1.0, "logits": np.zeros((N, 5), np.float32),
    }  # fmt: skip
    return sampling.langevin_update(**(given | bad))


LANGEVIN_CASES: list[Case] = [
    *BATCH_CASES,
    ("species", SPECIES[:-1], r"must have shape \[7\], got \[6\]"),
    ("species", SPECIES.astype(float), r"must hold integers \(int32\), got float64"),
    ("species", SPECIES.astype(np.int64) * 2**40, r"must fit int32, got values from"),
    ("score", ZEROS[:-1], r"must have shape \[7, 3\], got \[6, 3\]"),
    ("score", ZEROS.astype(complex), r"must hold real numbers"),
    ("noise", ZEROS[:, :2], r"must have shape \[7, 3\], got \[7, 2\]"),
    ("noise", None, r"pass either `noise` or `seed` with `crystal_ids`"),
    ("seed", 3, r"pass either `noise` or `seed` with `crystal_ids`"),
    *(("drift", v, r"must be a finite number, got ") for v in (np.nan, np.inf, "1", None, True)),
    *(("diffusion", v, r"must be a finite number, got ") for v in (np.nan, -np.inf, None)),
    ("logits", np.zeros((N - 1, 5)), r"must have shape \[7, species\], got \[6, 5\]"),
    ("logits", np.zeros((N, 0)), r"must have at least one species, got none"),
    ("allowed", np.ones((2, 4)), r"must have shape \[2, 5\], got \[2, 4\]"),
    ("allowed", np.ones(5), r"must have shape \[2, 5\], got \[5\]"),
    ("crystal_ids", [1], r"must have shape \[2\], got \[1\]"),
]  # fmt: skip


def ddpm(**bad: Any) -> Any:
    given: dict[str, Any] = {
        "z": np.zeros((2, 4), np.float32), "eps": np.zeros((2, 4), np.float32), "noise": np.zeros((2, 4), np.float32),
        "alpha": 0.9, "alpha_bar": 0.5, "noise_scale": 1.0,
    }  # fmt: skip
    return sampling.ddpm_update(**(given | bad))


DDPM_CASES: list[Case] = [
    ("z", np.zeros(4), r"must have shape \[crystals, latent\], got \[4\]"),
    ("z", np.zeros((2, 0)), r"must have at least one latent dimension, got none"),
    ("z", [["a"]], r"must hold real numbers"),
    ("eps", np.zeros((2, 3)), r"must have shape \[2, 4\], got \[2, 3\]"),
    ("noise", np.zeros((1, 4)), r"must have shape \[2, 4\], got \[1, 4\]"),
    ("noise", None, r"pass either `noise` or `seed` with `crystal_ids`"),
    *(("alpha", v, r"must be a number above 0 and at most 1, got ") for v in (0.0, -0.1, 1.1, np.nan, None)),
    *(("alpha_bar", v, r"must be a number from 0 and below 1, got ") for v in (1.0, -0.1, np.nan, "0.5")),
    *(("noise_scale", v, r"must be a number from 0 up, got ") for v in (-1.0, np.nan, np.inf)),
]  # fmt: skip


def radial(**bad: Any) -> Any:
    return basis.radial_basis(**({"distance": [1.0, 2.0], "cutoff": 5.0, "n_radial": 8} | bad))


def legendre(**bad: Any) -> Any:
    return basis.legendre_block(**({"graph": graph(), "n_spherical": 3} | bad))


def forces(**bad: Any) -> Any:
    return basis.force_sum(**({"graph": graph(), "force": np.zeros(N_EDGES)} | bad))


RADIAL_CASES: list[Case] = [
    ("distance", [[1.0]], r"must have shape \[edges\], got \[1, 1\]"),
    ("distance", ["1"], r"must hold real numbers"),
    *(("cutoff", v, r"must be a distance in Angstrom above 0 and below 1e6, got ") for v in (0, -1, np.nan, None)),
    *(("n_radial", v, r"must be a whole number from 2 to 65536, got ") for v in (1, 0, 65537, 8.0)),
    ("out", np.zeros((2, 9), np.float32), WRITEABLE + r" of float32 \[2, 8\]"),
]
LEGENDRE_CASES: list[Case] = [
    *(("n_spherical", v, r"must be a whole number from 1 to 64, got ") for v in (0, 65, 7.0, None)),
    ("out", np.zeros((1, 1, 1, 1), np.float32), WRITEABLE + r" of float32"),
]
FORCE_CASES: list[Case] = [
    ("force", np.zeros(N_EDGES - 1), rf"must have shape \[{N_EDGES}\], got \[{N_EDGES - 1}\]"),
    ("force", np.zeros((N_EDGES, 3)), r"must have shape"),
    ("out", np.zeros((N, 3)), WRITEABLE + r" of float32 \[7, 3\], got float64"),
]


def crystals(**bad: Any) -> Any:
    return Crystals(**({"frac": FRAC, "cells": CELLS, "offsets": OFFSETS, "species": SPECIES} | bad))


CRYSTALS_CASES: list[Case] = [
    *BATCH_CASES,
    ("species", SPECIES[:-1], r"must have shape \[7\], got \[6\]"),
    ("species", SPECIES * 119, r"must be atomic numbers, got 119 to 119"),
    ("species", SPECIES - 2, r"must be atomic numbers, got -1 to -1"),
    ("species", SPECIES.astype(float), r"must hold integers"),
]


def allocate(**bad: Any) -> Any:
    return GraphBuffers.allocate(**({"n_atoms": 1, "n_edges": 1, "max_degree": 1} | bad))


ALLOCATE_CASES: list[Case] = [
    (name, v, r"must be a whole number from 0 to 2\^30, got ")
    for name in ("n_atoms", "n_edges", "max_degree")
    for v in (-1, 1.0, 2**31, None)
]


def parameters(**bad: Any) -> Any:
    return lattice.cells_from_parameters(**({"lengths": [[1.0, 2.0, 3.0]], "angles": [[90.0, 90.0, 90.0]]} | bad))


LATTICE_CASES: list[Case] = [
    ("lengths", [1.0, 2.0, 3.0], r"must have shape \[crystals, 3\], got \[3\]; wrap one crystal as lengths\[None\]"),
    ("angles", [[90.0] * 3] * 2, r"must have shape \[1, 3\], got \[2, 3\]"),
    ("lengths", [["a", "b", "c"]], r"must hold real numbers"),
]

TABLE: list[tuple[Callable[..., Any], list[Case]]] = [
    (graph, GRAPH_CASES),
    (draw, NOISE_CASES),
    (draw_uniform, NOISE_CASES),
    (langevin, LANGEVIN_CASES),
    (ddpm, DDPM_CASES),
    (radial, RADIAL_CASES),
    (legendre, LEGENDRE_CASES),
    (forces, FORCE_CASES),
    (crystals, CRYSTALS_CASES),
    (allocate, ALLOCATE_CASES),
    (parameters, LATTICE_CASES),
]
ROWS = [
    pytest.param(call, name, value, message, id=f"{call.__name__}-{name}-{number}")
    for call, cases in TABLE
    for number, (name, value, message) in enumerate(cases)
]


@pytest.mark.parametrize(("call", "name", "value", "message"), ROWS)
def test_the_message_names_the_argument(call: Callable[..., Any], name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(**{name: value})
    text = str(caught.value)
    assert re.search(message, text), text
    if not message.startswith("pass either"):
        assert f"`{name}`" in text


@pytest.mark.parametrize("call", [call for call, _ in TABLE], ids=lambda call: call.__name__)
def test_the_same_calls_are_right_with_good_input(call: Callable[..., Any]) -> None:
    call()


def test_more_draws_than_a_crystal_can_have() -> None:
    with pytest.raises(InputError, match=r"at most 2\^24 blocks"):
        noise.normal(1, 6, 0, [0], width=4, offsets=[0, 2**24 + 1], out=None)


def test_masked_values() -> None:
    masked = np.ma.masked_array(np.zeros((2, 3)), mask=[[0, 0, 0], [0, 1, 0]])
    with pytest.raises(InputError, match="`cells` has masked values"):
        lattice.parameters_from_cells(np.ma.stack([masked[:1].repeat(3, 0), masked[1:].repeat(3, 0)]))


def test_noise_without_crystal_ids() -> None:
    with pytest.raises(InputError, match="`crystal_ids` must name each crystal"):
        sampling.langevin_update(FRAC, CELLS, OFFSETS, SPECIES, ZEROS, drift=1.0, diffusion=1.0, seed=1)


def test_a_mask_without_logits() -> None:
    with pytest.raises(InputError, match="`allowed` needs `logits`"):
        langevin(logits=None, allowed=np.ones((2, 5)))


@pytest.mark.parametrize(
    "arrays", [{"frac": FRAC.tolist()}, {"species": SPECIES.astype(np.int64)}, {"frac": FRAC.astype(np.float32)}]
)
def test_in_place_needs_arrays_that_can_be_written(arrays: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`in_place` needs"):
        langevin(**{"frac": FRAC.copy(), "species": SPECIES.copy()} | arrays, in_place=True)


def test_in_place_needs_arrays_that_may_be_written() -> None:
    frac, z = FRAC.copy(), np.zeros((2, 4), np.float32)
    for array in (frac, z):
        array.flags.writeable = False
    with pytest.raises(InputError, match="`in_place` needs"):
        langevin(frac=frac, in_place=True)
    with pytest.raises(InputError, match="`in_place` needs"):
        ddpm(z=z, in_place=True)


@pytest.mark.parametrize(
    ("lengths", "angles", "message"),
    [
        ([[1.0, 2.0, 3.0], [1.0, 0.0, 3.0]], [[90.0] * 3] * 2, "lengths must be above 0 .* crystals 1 are not so"),
        ([[1.0, 2.0, np.inf]], [[90.0] * 3], "crystals 0 are not so"),
        ([[1.0, 2.0, 3.0]], [[90.0, 180.0, 90.0]], "crystals 0 are not so"),
        ([[1.0, 2.0, 3.0]], [[90.0, np.nan, 90.0]], "crystals 0 are not so"),
        (
            [[1.0, 2.0, 3.0]] * 7,
            [[20.0, 20.0, 90.0]] * 7,
            r"no cell has the angles of crystals 0, 1, 2, 3, 4 and 2 more",
        ),
        ([[1.0, 2.0, 3.0]], [[120.0, 120.0, 120.0]], "no cell has the angles"),
    ],
)
def test_cells_that_cannot_be(lengths: list[list[float]], angles: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lattice.cells_from_parameters(lengths, angles)


def test_errors_are_the_builtin_kinds_too() -> None:
    with pytest.raises(ValueError, match="`cutoff`"):
        graph(cutoff=0.0)
    with pytest.raises(DruseError):
        graph(cutoff=0.0)
