"""The native library through ctypes: the structures and functions of ``druse.h``, and nothing else.

Loaded at the first call, not at import. Arrays reach native code checked (`druse._arrays`), as pointers.
"""

import ctypes
import functools
import importlib.resources
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from druse.errors import DeviceError, DruseError, InputError, NativeLibraryError

ABI_VERSION = 3

OK, ERROR_ARGUMENT, ERROR_MEMORY, ERROR_UNSUPPORTED, ERROR_CUDA = range(5)
ISAS = {"best": 0, "baseline": 1, "avx2": 2, "avx512": 3}


class Exec(Structure):
    """``druse_exec``."""

    _fields_ = (
        ("device", c_int32),
        ("n_threads", c_int32),
        ("isa", c_int32),
        ("reserved", c_int32),
        ("stream", c_void_p),
    )


class GraphOptions(Structure):
    """``druse_graph_options``."""

    _fields_ = (
        ("cutoff", c_double),
        ("shell_tolerance", c_double),
        ("max_neighbors", c_int32),
        ("mode", c_int32),
        ("symmetrise", c_int32),
        ("reserved", c_int32),
    )


class Edges(Structure):
    """``druse_edges``."""

    _fields_ = (
        ("edge_capacity", c_int64),
        ("src", c_void_p),
        ("dst", c_void_p),
        ("image", c_void_p),
        ("distance", c_void_p),
        ("unit", c_void_p),
        ("edge_offsets", c_void_p),
        ("edge_counts", c_void_p),
        ("status", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
    )


class NoiseKey(Structure):
    """``druse_noise_key``."""

    _fields_ = (
        ("seed", c_uint64),
        ("purpose", c_uint32),
        ("step", c_uint32),
        ("crystal_ids", c_void_p),
        ("step_at", c_void_p),
    )


class ResidualMLP(Structure):
    """``druse_residual_mlp``."""

    _fields_ = (
        ("n_layers", c_int32),
        ("latent", c_int32),
        ("widths", c_void_p),
        ("weights", c_void_p),
        ("steps", c_void_p),
        ("n_steps", c_int32),
        ("reserved", c_int32),
    )


class Paths(Structure):
    """``druse_paths``."""

    _fields_ = (
        ("n_atoms", c_int64),
        ("n_edges", c_int64),
        ("row_capacity", c_int64),
        ("sum_capacity", c_int64),
        ("row_edge", c_void_p),
        ("row_degree", c_void_p),
        ("sum_edge", c_void_p),
        ("sum_degree", c_void_p),
        ("row_label", c_void_p),
        ("sum_label", c_void_p),
        ("unit", c_void_p),
        ("mirror", c_int64),
    )


class GemNet(Structure):
    """``druse_gemnet``."""

    _fields_ = (
        ("atom", c_int32),
        ("edge", c_int32),
        ("triplet", c_int32),
        ("bilinear", c_int32),
        ("rbf", c_int32),
        ("cbf", c_int32),
        ("n_radial", c_int32),
        ("n_spherical", c_int32),
        ("n_blocks", c_int32),
        ("n_before_skip", c_int32),
        ("n_after_skip", c_int32),
        ("n_concat", c_int32),
        ("n_atom", c_int32),
        ("n_species", c_int32),
        ("n_levels", c_int32),
        ("reserved", c_int32),
        ("cutoff", c_double),
        ("weights", c_void_p),
        ("sharpness", c_void_p),
        ("factors", c_void_p),
    )


class GemNetBatch(Structure):
    """``druse_gemnet_batch``."""

    _fields_ = (
        ("n_crystals", c_int64),
        ("n_atoms", c_int64),
        ("n_edges", c_int64),
        ("degree_capacity", c_int64),
        ("mirror", c_int64),
        ("src", c_void_p),
        ("dst", c_void_p),
        ("distance", c_void_p),
        ("unit", c_void_p),
        ("in_edge", c_void_p),
        ("degree", c_void_p),
        ("crystal", c_void_p),
        ("species", c_void_p),
        ("latent", c_void_p),
        ("level", c_void_p),
    )


class PaddedGraph(Structure):
    """``druse_padded_graph``."""

    _fields_ = (
        ("n_crystals", c_int64),
        ("n_atoms", c_int64),
        ("n_edges", c_int64),
        ("degree_capacity", c_int64),
        ("cutoff", c_double),
        ("src", c_void_p),
        ("dst", c_void_p),
        ("distance", c_void_p),
        ("in_edge", c_void_p),
        ("degree", c_void_p),
        ("slot", c_void_p),
        ("valid", c_void_p),
        ("status", c_void_p),
        ("met", c_void_p),
    )


_EXEC, _KEY, _P, _N, _I, _D = POINTER(Exec), POINTER(NoiseKey), c_void_p, c_int64, c_int32, c_double
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "druse_abi_version": (_I, ()),
    "druse_result_string": (c_char_p, (_I,)),
    "druse_best_isa": (_I, ()),
    "druse_hardware_threads": (_I, ()),
    "druse_has_cuda": (_I, ()),
    "druse_cuda_devices": (_I, ()),
    "druse_radius_graph": (_I, (_EXEC, _N, _P, _P, _P, POINTER(GraphOptions), POINTER(Edges))),
    "druse_graph_workspace": (_N, (_EXEC, _N, _N)),
    "druse_incidence": (_I, (_EXEC, _N, _P, _P, _P, _P, _N, _N, _I, _P, _P, _P, _P)),
    "druse_philox": (None, (_P, _P, _P)),
    "druse_normal": (_I, (_EXEC, _KEY, _N, _P, _I, _P)),
    "druse_uniform": (_I, (_EXEC, _KEY, _N, _P, _I, _P)),
    "druse_gumbel": (_I, (_EXEC, _KEY, _N, _P, _I, _P)),
    "druse_add_gumbel": (_I, (_EXEC, _KEY, _N, _P, _I, _P)),
    "druse_langevin": (_I, (_EXEC, _KEY, _N, _P, _P, _D, _D, _P, _P, _P, _I, _P, _P, _P, _P, _P)),
    "druse_ddpm": (_I, (_EXEC, _KEY, _N, _I, _D, _D, _D, _P, _P, _P, _P)),
    "druse_combine": (_I, (_EXEC, _N, _D, _P, _D, _P, _D, _P)),
    "druse_advance": (_I, (_EXEC, _N, _P, _P)),
    "druse_pad_graph": (_I, (_EXEC, _P, _P, POINTER(PaddedGraph))),
    "druse_radial_basis": (_I, (_EXEC, _N, _P, _D, _I, _P)),
    "druse_legendre": (_I, (_EXEC, _N, _N, _I, _P, _P, _N, _P, _P)),
    "druse_force_sum": (_I, (_EXEC, _N, _N, _P, _P, _N, _P, _P, _P)),
    "druse_path_sum": (_I, (_EXEC, POINTER(Paths), _I, _I, _I, _P, _P, _P, _P)),
    "druse_path_sum_gradient": (_I, (_EXEC, POINTER(Paths), _I, _I, _I, _P, _P, _P, _P, _P, _P)),
    "druse_triplet_sum": (_I, (_EXEC, POINTER(Paths), _I, _I, _I, _P, _P, _P)),
    "druse_triplet_sum_gradient": (_I, (_EXEC, POINTER(Paths), _I, _I, _I, _P, _P, _P, _P, _P)),
    "druse_gemnet_score": (_I, (_EXEC, POINTER(GemNet), POINTER(GemNetBatch), _P, _P)),
    "druse_pack": (_I, (_I, _I, _P, _P)),
    "druse_prior_eps": (_I, (_EXEC, POINTER(ResidualMLP), _N, _I, _P, _P, _P)),
    "druse_prior_chain": (_I, (_EXEC, POINTER(ResidualMLP), _KEY, _N, _I, _I, _P, _P, _P, _P, _P, _P)),
}


def library_path() -> Path:
    """Where the native library lies: beside the package, or where an editable install has put it.

    Raises:
        NativeLibraryError: it is not there.
    """
    name = {"win32": "druse.dll", "darwin": "libdruse.dylib"}.get(sys.platform, "libdruse.so")
    beside = Path(str(importlib.resources.files("druse").joinpath("_lib", name)))
    if beside.is_file():
        return beside
    from importlib import metadata  # slow, and rarely needed

    try:  # an editable install under another import hook: resources then see the sources only
        installed = Path(str(metadata.distribution("druse").locate_file(f"druse/_lib/{name}")))
    except metadata.PackageNotFoundError:
        installed = beside
    if not installed.is_file():
        raise NativeLibraryError(
            f"the native library {name} is not in the installed package; install Druse with `pip install .` "
            "(it needs a C++17 compiler and CMake 3.25)"
        )
    return installed


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, its functions typed.

    Raises:
        NativeLibraryError: it is absent, cannot be loaded, or has another interface version.
    """
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        version = loaded.druse_abi_version()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(f"{path.name} cannot be loaded: {error}; install Druse again") from error
    if version != ABI_VERSION:
        raise NativeLibraryError(
            f"{path.name} has interface version {version}, this package needs {ABI_VERSION}; install Druse again"
        )
    return loaded


def cpu(n_threads: int = 0, isa: str = "best") -> Exec:
    """Run on the CPU, on ``n_threads`` threads (0: every core)."""
    if isa not in ISAS:
        raise InputError(f"`isa` must be one of {', '.join(map(repr, ISAS))}, got {isa!r}")
    if isinstance(n_threads, bool) or not isinstance(n_threads, int | np.integer) or not 0 <= n_threads <= 256:
        raise InputError(f"`n_threads` must be a whole number from 0 (every core) to 256, got {n_threads!r}")
    return Exec(0, int(n_threads), ISAS[isa], 0, None)


def pointer(array: Any) -> int | None:
    """The address of an array's data; None stays None."""
    return None if array is None else array.ctypes.data


def call(function: str, *arguments: Any) -> None:
    """Call a function of ``druse.h`` and turn a failure into an exception.

    Raises:
        MemoryError: scratch memory could not be had.
        DeviceError: this build or machine cannot run the request, or CUDA failed.
        DruseError: an argument slipped through the checks.
    """
    native = library()
    prepared = [byref(a) if isinstance(a, Structure) else a for a in arguments]
    result = getattr(native, function)(*prepared)
    if result == OK:
        return
    reason = native.druse_result_string(result).decode()
    if result == ERROR_MEMORY:
        raise MemoryError(f"{function}: {reason}")
    if result == ERROR_UNSUPPORTED:
        raise DeviceError(f"{function}: {reason}; `druse doctor` lists what is")
    raise (DeviceError if result == ERROR_CUDA else DruseError)(f"{function}: {reason}")


def noise_key(seed: int, purpose: int, step: int, crystal_ids: Any) -> NoiseKey:
    """The key of a draw; keeps a reference to ``crystal_ids`` alive."""
    key = NoiseKey(seed, purpose, step, pointer(crystal_ids), None)
    key.keep = crystal_ids
    return key
