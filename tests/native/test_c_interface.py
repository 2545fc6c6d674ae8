"""What ``druse.h`` says about calls that are wrong: a result code, a reason, and nothing written."""

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import structures
from reference.structures import PEROVSKITE, ROCK_SALT

from druse import DruseError, _native, graphs

FRAC, CELLS, OFFSETS = structures.batch([ROCK_SALT, PEROVSKITE])
OFFSETS = OFFSETS.astype(np.int64)
UNTOUCHED = 77


def call(function: str, *arguments: Any) -> int:
    """The result code of a function; arrays go as pointers, structures by reference."""
    prepared: list[Any] = []
    for argument in arguments:
        if isinstance(argument, ctypes.Structure):
            prepared.append(ctypes.byref(argument))
        else:
            prepared.append(_native.pointer(argument) if isinstance(argument, np.ndarray) else argument)
    return int(getattr(_native.library(), function)(*prepared))


def radius_graph(**change: Any) -> tuple[int, dict[str, np.ndarray]]:
    """A good call with changes: its result code and the arrays it may write."""
    arrays: dict[str, Any] = {
        "src": np.full(400, UNTOUCHED, np.int32),
        "dst": np.full(400, UNTOUCHED, np.int32),
        "image": np.full((400, 3), UNTOUCHED, np.int32),
        "distance": np.full(400, UNTOUCHED, np.float32),
        "unit": np.full((400, 3), UNTOUCHED, np.float32),
        "edge_offsets": np.full(3, UNTOUCHED, np.int64),
        "counts": np.full(2, UNTOUCHED, np.int64),
        "status": np.full(2, UNTOUCHED, np.uint32),
    }
    given: dict[str, Any] = {
        "exec_": _native.cpu(), "n_crystals": 2, "offsets": OFFSETS, "frac": FRAC, "cells": CELLS, "capacity": 400,
        "cutoff": 5.0, "shell_tolerance": 1e-3, "max_neighbors": 12, "mode": 0, "symmetrise": 0,
    }  # fmt: skip
    given |= change
    options = (given[name] for name in ("cutoff", "shell_tolerance", "max_neighbors", "mode", "symmetrise"))
    written = arrays | {name: value for name, value in change.items() if name in arrays}
    workspace = np.zeros(given.get("workspace", 0) // 16 + 1, np.complex128)
    edges = _native.Edges(
        given["capacity"], *map(_native.pointer, written.values()), workspace.ctypes.data, given.get("workspace", 0)
    )
    crystals = (given[name] for name in ("n_crystals", "offsets", "frac", "cells"))
    code = call("druse_radius_graph", given["exec_"], *crystals, _native.GraphOptions(*options, 0), edges)
    return code, arrays


BAD: list[dict[str, Any]] = [
    {"n_crystals": -1},
    {"offsets": None},
    {"frac": None},
    {"cells": None},
    {"offsets": np.array([0, 9, 7], np.int64)},
    {"offsets": np.array([1, 2, 7], np.int64)},
    {"offsets": np.array([0, 2, 2**40], np.int64)},
    {"cutoff": 0.0},
    {"cutoff": -1.0},
    {"cutoff": float("nan")},
    {"cutoff": float("inf")},
    {"shell_tolerance": 1e7},
    {"shell_tolerance": float("nan")},
    {"max_neighbors": 0},
    {"mode": 2},
    {"mode": -1},
    {"symmetrise": 3},
    {"capacity": -1},
    {"capacity": 2**31},
    {"src": None},
    {"unit": None},
    {"edge_offsets": None},
    {"counts": None},
    {"status": None},
    {"exec_": None},
    {"exec_": _native.Exec(7, 0, 0, 0, None)},
    {"exec_": _native.Exec(0, -1, 0, 0, None)},
    {"exec_": _native.Exec(0, 0, 9, 0, None)},
]


def test_a_good_call_writes() -> None:
    code, arrays = radius_graph()
    assert code == _native.OK
    assert arrays["edge_offsets"][-1] == arrays["counts"].sum() > 0


@pytest.mark.parametrize("change", BAD, ids=",".join)
def test_a_wrong_graph_call_writes_nothing(change: dict[str, Any]) -> None:
    code, arrays = radius_graph(**change)
    assert code == _native.ERROR_ARGUMENT
    for array in arrays.values():
        assert np.all(array == UNTOUCHED)


@pytest.mark.parametrize(
    "change",
    [
        {"n_crystals": -1},
        {"mirror": -1},
        {"mirror": 1},  # below the number of edges
        {"degree_capacity": -1},
        {"degree_capacity": 2**31},
        {"offsets": None},
        {"edge_offsets": None},
        {"edge_offsets": np.array([0, 2, 1], np.int64)},
        {"src": None},
        {"dst": np.array([0, 7], np.int32)},
        {"dst": np.array([0, -1], np.int32)},
        {"src": np.array([2, 3], np.int32)},  # an edge between two crystals
        {"status": None},
        {"degree": None},
    ],
    ids=",".join,
)
def test_a_wrong_incidence_call_writes_nothing(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "n_crystals": 2, "offsets": OFFSETS, "edge_offsets": np.array([0, 1, 2], np.int64),
        "src": np.array([1, 3], np.int32), "dst": np.array([0, 4], np.int32), "mirror": 2,
        "degree_capacity": 3, "pad": 4,
        "in_edge": np.full((7, 3), UNTOUCHED, np.int32), "slot": np.full(4, UNTOUCHED, np.int32),
        "degree": np.full(7, UNTOUCHED, np.int32), "status": np.full(2, UNTOUCHED, np.uint32),
    }  # fmt: skip
    written = [given[name] for name in ("in_edge", "slot", "degree", "status")]
    assert call("druse_incidence", _native.cpu(), *(given | change).values()) == _native.ERROR_ARGUMENT
    for array in written:
        assert np.all(array == UNTOUCHED)
    assert call("druse_incidence", _native.cpu(), *given.values()) == _native.OK
    assert given["degree"].tolist() == [1, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("function", ["druse_normal", "druse_uniform", "druse_gumbel"])
def test_wrong_noise_calls_write_nothing(function: str) -> None:
    ids, out = np.zeros(2, np.uint64), np.full(64, UNTOUCHED, np.float64)
    good, falling = _native.NoiseKey(1, 6, 0, ids.ctypes.data, None), np.array([0, 2, 1], np.int64)
    many = np.array([0, 1, 2**25], np.int64)
    exec_ = _native.cpu()
    for arguments in (
        (exec_, good, -1, None, 3, out),
        (exec_, good, 2, None, 0, out),
        (exec_, good, 2, None, -3, out),
        (exec_, good, 2, falling, 3, out),
        (exec_, good, 2, many, 3, out),
        (exec_, good, 2, None, 3, None),
        (exec_, None, 2, None, 3, out),
        (exec_, _native.NoiseKey(1, 256, 0, ids.ctypes.data, None), 2, None, 3, out),
        (exec_, _native.NoiseKey(1, 6, 0, None), 2, None, 3, out),
    ):
        assert call(function, *arguments) == _native.ERROR_ARGUMENT
        assert np.all(out == UNTOUCHED)
    assert call(function, exec_, good, 2, None, 3, out) == _native.OK


def test_wrong_basis_calls() -> None:
    x = np.zeros(64, np.float32)
    i = np.zeros(64, np.int32)
    exec_ = _native.cpu()
    for function, arguments in (
        ("druse_radial_basis", (-1, x, 5.0, 8, x)),
        ("druse_radial_basis", (2, x, 0.0, 8, x)),
        ("druse_radial_basis", (2, x, float("nan"), 8, x)),
        ("druse_radial_basis", (2, x, 5.0, 1, x)),
        ("druse_radial_basis", (2, None, 5.0, 8, x)),
        ("druse_legendre", (-1, 2, 7, i, i, 0, x, x)),
        ("druse_legendre", (1, -2, 7, i, i, 0, x, x)),
        ("druse_legendre", (1, 2, 0, i, i, 0, x, x)),
        ("druse_legendre", (1, 2, 65, i, i, 0, x, x)),
        ("druse_legendre", (1, 2, 7, None, i, 0, x, x)),
        ("druse_legendre", (1, 2, 7, i, i, -1, x, x)),
        ("druse_force_sum", (1, 2, i, i, 0, x, None, x)),
        ("druse_force_sum", (1, 2, i, None, 0, x, x, x)),
        ("druse_force_sum", (-1, 2, i, i, 0, x, x, x)),
    ):
        assert call(function, exec_, *arguments) == _native.ERROR_ARGUMENT, (function, arguments)


def test_every_result_has_its_words() -> None:
    native = _native.library()
    words = [native.druse_result_string(code).decode() for code in range(5)]
    assert len(set(words)) == 5
    assert words[0] == "ok"
    assert native.druse_result_string(99).decode() == "unknown result"


def test_what_slips_through_the_checks_is_an_exception() -> None:
    with pytest.raises(DruseError, match="druse_radial_basis: an argument is out of range"):
        _native.call("druse_radial_basis", _native.cpu(), -1, None, 5.0, 8, None)


def test_a_device_that_is_not_there() -> None:
    if _native.library().druse_cuda_devices() > 0:
        pytest.skip("a CUDA device is here")
    code, arrays = radius_graph(exec_=_native.Exec(1, 0, 0, 0, None), workspace=2**22)
    assert code in (_native.ERROR_UNSUPPORTED, _native.ERROR_CUDA)
    assert np.all(arrays["status"] == UNTOUCHED)


def test_the_header_and_its_python_mirror_agree() -> None:
    """Names, numbers and fields, read from ``druse.h``."""
    header = (Path(__file__).parents[2] / "cpp_ext" / "include" / "druse.h").read_text()
    bare = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    functions = dict(re.findall(r"DRUSE_API [\w ]+?\*?(druse_\w+)\(([^)]*)\)", bare))
    assert functions.keys() == _native._SIGNATURES.keys()
    for name, arguments in functions.items():
        count = 0 if arguments.strip() == "void" else arguments.count(",") + 1
        assert len(_native._SIGNATURES[name][1]) == count, name
    structs = {name: body for body, name in re.findall(r"typedef struct \{([^}]*)\} (\w+);", bare)}
    for name, mirror in (
        ("druse_exec", _native.Exec),
        ("druse_graph_options", _native.GraphOptions),
        ("druse_edges", _native.Edges),
        ("druse_noise_key", _native.NoiseKey),
    ):
        fields = re.findall(r"(\w+);", structs[name])
        assert fields == [field[0] for field in mirror._fields_]
    version = re.search(r"#define DRUSE_ABI_VERSION (\d+)", header)
    assert version is not None
    assert int(version[1]) == _native.ABI_VERSION
    isas = {name.lower(): int(number) for name, number in re.findall(r"DRUSE_ISA_(\w+) = (\d)", header)}
    assert isas == _native.ISAS


def test_status_bits_are_the_headers() -> None:
    header = (Path(__file__).parents[2] / "cpp_ext" / "include" / "druse.h").read_text()
    bits = {name: 1 << int(shift) for name, shift in re.findall(r"DRUSE_STATUS_(\w+) = 1 << (\d+)", header)}
    assert len(bits) == 9
    assert {name: getattr(graphs, name) for name in bits} == bits
