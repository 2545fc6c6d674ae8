"""What a relaxation by VASP gave: one ``vasprun.xml``, read by pymatgen, and how far it went from where it began.

Files are looked through before they are parsed: VASP writes no document type, so one that has it, and with it entities
that could grow or point elsewhere, is no file of VASP's.
"""

import contextlib
import gzip
import importlib
import math
import re
import resource
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._fingerprints import as_structure
from druse._processes import time_limit
from druse.crystals import Crystals
from druse.lattice import parameters_from_cells, volumes

LARGEST = 1 << 30
"""Bytes of a vasprun.xml, unpacked. Those of relaxations have a few million; ``LORBIT`` makes more."""

NUMBERS = (
    "energy", "energy_per_atom", "band_gap_dft", "fmax", "n_steps", "converged_electronic", "converged_ionic",
    "volume_change", "delta_a", "delta_b", "delta_c", "delta_alpha", "delta_beta", "delta_gamma",
    "rmsd", "rmsd_angstrom",
)  # fmt: skip
"""Columns of a result: eV, eV an atom, eV, eV/Angstrom, ionic steps, 0 or 1 twice, relative change of the volume,
changes of the cell's edges in Angstrom and angles in degrees, distance by StructureMatcher as it is and in Angstrom."""

_CHUNK = 1 << 20
_MEMORY = 4 << 30  # bytes more than a process has when it begins to read
_ENCODING = re.compile(rb"""^(?:\xef\xbb\xbf)?\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_ENCODINGS = {b"ISO-8859-1", b"UTF-8", b"US-ASCII", b"ASCII"}


class Task(NamedTuple):
    """A result to read; it travels to another process.

    Attributes:
        folder: of the calculation.
        initial: the structure it was made for.
        seconds: for all of it; None for no limit, and no limit of memory, as in a caller's own process.
        largest: bytes of a file, unpacked.
    """

    folder: Path
    initial: Crystals
    seconds: float | None
    largest: int = LARGEST


class Outcome(NamedTuple):
    """What came of a calculation.

    Attributes:
        status: ``finished``, ``failed`` (it ended without a relaxed structure, or cannot be read), ``unfinished`` (it
            runs, or was ended from outside) or ``waiting`` (it has not begun).
        reason: empty where it is finished.
        relaxed: the last structure; None where it is not finished.
        numbers: see `NUMBERS`; those that are known.
    """

    status: str
    reason: str = ""
    relaxed: Crystals | None = None
    numbers: dict[str, float] = {}  # noqa: RUF012


class _Unfit(Exception):  # noqa: N818
    """A file that is not parsed; the text says why."""


def read(task: Task) -> Outcome:
    """Read a result; nothing is raised for what a file holds."""
    paths = [path for name in ("vasprun.xml", "vasprun.xml.gz") if (path := task.folder / name).is_file()]
    if not paths:
        return Outcome("waiting", "there is no vasprun.xml yet")
    importlib.import_module(
        "pymatgen.io.vasp.outputs"
    )  # before there is a limit, which native libraries do not take well
    try:
        with time_limit(task.seconds), _memory_limit(None if task.seconds is None else _MEMORY):
            if not _complete(paths[0], task.largest):
                return Outcome("unfinished", "its vasprun.xml is not complete: it runs, or was ended from outside")
            return _outcome(_parsed(paths[0]), task.initial)
    except _Unfit as error:
        return Outcome("failed", f"its {paths[0].name} {error}")
    except TimeoutError as error:
        return Outcome("failed", f"its {paths[0].name} cannot be read ({error})")
    except Exception as error:
        text = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
        return Outcome("failed", f"its {paths[0].name} cannot be read ({detail})")


def killed(task: Task) -> Outcome:  # noqa: ARG001
    """The outcome of a result that kills the process that reads it."""
    return Outcome("failed", "its vasprun.xml kills the process that reads it, for want of memory perhaps")


def changes(initial: Crystals, relaxed: Crystals) -> dict[str, float]:
    """How far two structures of the same atoms are apart, as in table 3 of the paper.

    Lengths and angles are those of the cells as they are given. The distance is pymatgen's `StructureMatcher` with its
    own tolerances (ltol 0.2, stol 0.3, angle_tol 5): the root mean square over atoms when both have the same volume,
    divided by the cube root of the volume of an atom; in Angstrom it is multiplied by that of the two's geometric mean.
    NaN where it finds them to be different structures.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    lengths, angles = parameters_from_cells(np.concatenate([initial.cells, relaxed.cells]))
    before, after = volumes(initial.cells)[0], volumes(relaxed.cells)[0]
    edges = dict(zip(("delta_a", "delta_b", "delta_c"), np.abs(lengths[1] - lengths[0]).tolist(), strict=True))
    corners = np.abs(angles[1] - angles[0]).tolist()
    matched = StructureMatcher().get_rms_dist(as_structure(initial), as_structure(relaxed))
    rmsd = math.nan if matched is None else float(matched[0])
    unit = (math.sqrt(before * after) / len(initial.species)) ** (1 / 3)
    return {
        "volume_change": float(after / before - 1),
        **edges,
        **dict(zip(("delta_alpha", "delta_beta", "delta_gamma"), corners, strict=True)),
        "rmsd": rmsd,
        "rmsd_angstrom": rmsd * unit,
    }


def _outcome(run: Any, initial: Crystals) -> Outcome:
    structure = run.final_structure
    relaxed = Crystals(
        np.array(structure.frac_coords),
        np.array(structure.lattice.matrix)[None],
        np.array([0, len(structure)]),
        np.array(structure.atomic_numbers, np.int32),
    )
    if not np.array_equal(relaxed.species, initial.species):
        return Outcome("failed", "its vasprun.xml is of other atoms than its POSCAR had")
    last = run.ionic_steps[-1]
    numbers = {
        "energy": float(run.final_energy),
        "energy_per_atom": float(run.final_energy) / len(structure),
        "n_steps": float(len(run.ionic_steps)),
        "converged_electronic": float(run.converged_electronic),
        "converged_ionic": float(run.converged_ionic),
        "band_gap_dft": _gap(run),
        "fmax": float(np.linalg.norm(np.array(last["forces"]), axis=1).max()) if "forces" in last else math.nan,
    }
    finite = np.isfinite(relaxed.frac).all() and np.isfinite(relaxed.cells).all() and volumes(relaxed.cells)[0] > 0
    if not (finite and math.isfinite(numbers["energy"])):
        return Outcome("failed", "its vasprun.xml has no energy, or a structure that is none")
    if not run.converged_electronic:
        reason = f"electrons did not converge in the last of {len(run.ionic_steps)} steps"
        return Outcome("failed", reason, None, numbers)
    if not run.converged_ionic:
        return Outcome("failed", f"did not relax in {len(run.ionic_steps)} steps", None, numbers)
    return Outcome("finished", "", relaxed, {**numbers, **changes(initial, relaxed)})


def _gap(run: Any) -> float:
    """Between the highest occupied and the lowest empty eigenvalue on the mesh, either spin; 0 for a metal."""
    if not run.eigenvalues:
        return math.nan
    gap = float(run.eigenvalue_band_properties[0])
    return gap if math.isfinite(gap) else math.nan


def _parsed(path: Path) -> Any:
    from pymatgen.io.vasp.outputs import Vasprun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Vasprun(path, parse_dos=False, parse_eigen=True, parse_potcar_file=False)


def _complete(path: Path, largest: int) -> bool:
    """Whether a file ends as VASP ends it."""
    size, before, steps = 0, b"", False
    for chunk in _chunks(path):
        if not size and not _plain(chunk):
            raise _Unfit("is no XML as VASP writes it")
        size += len(chunk)
        if size > largest:
            raise _Unfit(f"has more than {largest / 1e6:,.0f} MB")
        text = before + chunk
        if b"\0" in chunk or b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise _Unfit("has a document type, which VASP does not write")
        steps = steps or b"<calculation" in text
        before = text[-64:]
    complete = b"</modeling>" in before
    if complete and not steps:
        raise _Unfit("has no ionic step")
    return complete


def _plain(start: bytes) -> bool:
    """XML in an encoding in which a document type cannot hide."""
    match = _ENCODING.match(start)
    return start.lstrip(b"\xef\xbb\xbf").startswith(b"<") and (match is None or match[1].upper() in _ENCODINGS)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except EOFError:
        return  # packed, and cut off
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _Unfit(f"cannot be unpacked ({error})") from error


@contextlib.contextmanager
def _memory_limit(more: int | None) -> Iterator[None]:
    """MemoryError in the block when it takes so much more than the process has."""
    if more is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
