"""The POTCAR of an element, and its ENMAX: from the user's own files, or from the table that comes with Druse.

No POTCAR comes with Druse, for VASP's licence does not allow it; the table has a published number for each.
"""

import contextlib
import functools
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from druse._dependencies import require
from druse.errors import InputError

FUNCTIONALS = ("PBE", "PBE_52", "PBE_54", "PBE_64")
"""Sets of PBE potentials, by pymatgen's names. The table knows no ENMAX of the first, of which there are several."""

_HEADER = 1 << 16  # bytes; TITEL and ENMAX stand in the first two thousand
_LARGEST = 1 << 26  # bytes of one POTCAR; the largest have three million


class Refusal(Exception):  # noqa: N818
    """A structure cannot be calculated; the text is the reason, for the index."""


class Potcar(NamedTuple):
    """What stands for an element.

    Attributes:
        symbol: of the potential, such as Fe_pv.
        enmax: in eV.
        source: ``POTCAR`` or ``table``.
        path: of the file; None with the table.
    """

    symbol: str
    enmax: float
    source: str
    path: Path | None = None


class Potcars:
    """Potentials of a set, found as pymatgen finds them.

    Args:
        functional: one of `FUNCTIONALS`.
        folder: of POTCARs, in pymatgen's layout (``POT_PAW_PBE_64/POTCAR.Fe_pv.gz``) or VASP's (``Fe_pv/POTCAR``), of
            the set or of all sets. An element that is not there cannot be had. None: pymatgen's setting
            PMG_VASP_PSP_DIR, and the table for what that lacks.
        symbols: of the potential of some elements, where it is not the Materials Project's choice.

    Raises:
        InputError: no such set, folder or element.
        MissingDependencyError: pymatgen is not installed.
    """

    def __init__(self, functional: str, folder: Path | None = None, symbols: Mapping[str, str] | None = None) -> None:
        require("pymatgen.io.vasp.sets", purpose="the choice of POTCARs", extra="screen")
        from pymatgen.core import SETTINGS
        from pymatgen.io.vasp.inputs import PotcarSingle
        from pymatgen.io.vasp.sets import MPRelaxSet, MPScanRelaxSet

        if functional not in FUNCTIONALS:
            raise InputError(f"`functional` must be one of {', '.join(FUNCTIONALS)}, got {functional!r}")
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"{folder} is no folder of POTCARs; give one that has POTCAR.Fe_pv.gz or Fe_pv/POTCAR")
        self.functional = functional
        chosen = MPRelaxSet if functional in ("PBE", "PBE_52") else MPScanRelaxSet
        self._symbols: dict[str, str] = {**chosen.CONFIG["POTCAR"]}
        for element, symbol in (symbols or {}).items():
            if not re.fullmatch(rf"{re.escape(element)}(_[A-Za-z0-9_]+|\.[0-9]+|)", symbol) or not element.isalpha():
                raise InputError(f"the POTCAR of {element!r} must be its symbol or such as Fe_pv, got {symbol!r}")
            self._symbols[element] = symbol
        setting = SETTINGS.get("PMG_VASP_PSP_DIR")
        self._own = folder is not None
        self._folder = Path(folder) if folder is not None else Path(setting) if setting else None
        self._set = PotcarSingle.functional_dir.get(functional, functional)
        self._found: dict[str, Potcar] = {}

    def of(self, element: str) -> Potcar:
        """The potential of an element, by its symbol.

        Raises:
            Refusal: there is none, or its ENMAX is not known.
        """
        if element not in self._found:
            self._found[element] = self._find(element)
        return self._found[element]

    @property
    def used(self) -> dict[str, dict[str, Any]]:
        """What `of` gave so far, by element: symbol, ENMAX and its source."""
        return {
            element: {"symbol": one.symbol, "enmax": one.enmax, "source": one.source}
            for element, one in sorted(self._found.items())
        }

    def _find(self, element: str) -> Potcar:
        symbol = self._symbols.get(element)
        if symbol is None:
            raise Refusal(f"no {self.functional} potential is chosen for {element}; choose one")
        if (path := self._path(symbol)) is not None:
            return Potcar(symbol, _enmax_of(path, symbol), "POTCAR", path)
        if self._own:
            raise Refusal(f"there is no POTCAR of {symbol} in the folder given")
        enmax = _table().get((symbol, self.functional))
        if enmax is None:
            raise Refusal(f"ENMAX of {symbol} in the set {self.functional} is not known; give a folder of POTCARs")
        return Potcar(symbol, enmax, "table")

    def _path(self, symbol: str) -> Path | None:
        if self._folder is None:
            return None
        for folder in (self._folder / self._set, self._folder):
            for name in (f"POTCAR.{symbol}", f"{symbol}/POTCAR"):
                for path in (folder / name, folder / f"{name}.gz"):
                    if path.is_file():
                        return path
        return None


def content(potcar: Potcar) -> bytes:
    """The user's own POTCAR, as it is.

    Raises:
        Refusal: there is none, or it is no such file.
    """
    if potcar.path is None:
        raise Refusal(f"there is no POTCAR of {potcar.symbol} to write; give a folder of POTCARs")
    with _opened(potcar.path) as file:
        found: bytes = file.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise Refusal(f"the POTCAR of {potcar.symbol} has more than {_LARGEST >> 20} MB")
    return found if found.endswith(b"\n") else found + b"\n"


@functools.cache
def _table() -> dict[tuple[str, str], float]:
    text = resources.files("druse").joinpath("data", "enmax.txt").read_text("ascii")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {(symbol, name): float(enmax) for symbol, enmax, *names in rows for name in names}


def _enmax_of(path: Path, symbol: str) -> float:
    with _opened(path) as file:
        head = file.read(_HEADER).decode("latin-1")
    titel = re.search(r"^\s*TITEL\s*=\s*(\S+)\s+(\S+)", head, re.MULTILINE)
    enmax = re.search(r"ENMAX\s*=\s*([0-9.]+)", head)
    if titel is None or enmax is None:
        raise Refusal(f"the POTCAR of {symbol} has no TITEL or no ENMAX")
    if titel[1] != "PAW_PBE" or titel[2] != symbol:
        raise Refusal(f"the POTCAR of {symbol} is another: {titel[1][:20]} {titel[2][:20]}")
    value = float(enmax[1]) if enmax[1].count(".") <= 1 else math.nan
    if not 0 < value < 1e5:
        raise Refusal(f"the POTCAR of {symbol} has ENMAX = {enmax[1][:20]}")
    return value


def _open(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file, unpacked where it is packed."""
    try:
        with _open(path) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise Refusal(f"the POTCAR {path.name} cannot be read ({str(error)[:80]})") from error
