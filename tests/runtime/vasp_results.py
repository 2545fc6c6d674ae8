"""vasprun.xml of relaxations that never were, as little as pymatgen reads; POTCARs of headers only; sources."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from druse import Crystals
from druse.candidates import Entries, read_entries, write_entries
from druse.elements import SYMBOLS

END = "</modeling>\n"


def vasprun(
    first: Crystals,
    steps: Sequence[tuple[Crystals, float, object]],
    *,
    nsw: int = 300,
    nelm: int = 200,
    scsteps: int = 3,
    gap: tuple[float, float] | None = (1.0, 3.5),
) -> str:
    """The file of a relaxation.

    Args:
        first: the structure it began with.
        steps: of each ionic step the structure, the energy in eV and the forces in eV/Angstrom.
        nsw: most ionic steps.
        nelm: most electronic steps.
        scsteps: electronic steps of each.
        gap: the highest occupied and the lowest empty eigenvalue in eV; None for a file without eigenvalues.
    """
    symbols = [SYMBOLS[z - 1] for z in first.species]
    kinds = list(dict.fromkeys(symbols))
    atoms = "".join(f"<rc><c>{s}</c><c>{kinds.index(s) + 1}</c></rc>" for s in symbols)
    types = "".join(
        f"<rc><c>{symbols.count(s)}</c><c>{s}</c><c>1.0</c><c>1.0</c><c>PAW_PBE {s} 01Jan2000</c></rc>" for s in kinds
    )
    return "\n".join(
        [
            '<?xml version="1.0" encoding="ISO-8859-1"?>',
            "<modeling>",
            '<generator><i name="version" type="string">5.4.4 </i></generator>',
            f'<incar><i type="int" name="NSW">{nsw}</i><i type="int" name="IBRION">2</i></incar>',
            '<kpoints><generation param="Gamma"><v type="int" name="divisions">1 1 1</v></generation>',
            '<varray name="kpointlist"><v>0.0 0.0 0.0</v></varray><varray name="weights"><v>1.0</v></varray></kpoints>',
            f'<parameters><i type="int" name="NSW">{nsw}</i><i type="int" name="IBRION">2</i>',
            f'<i type="int" name="NELM">{nelm}</i><i name="EDIFFG">-0.001</i><i name="ENMAX">600.0</i></parameters>',
            f"<atominfo><atoms>{len(symbols)}</atoms><types>{len(kinds)}</types>",
            f'<array name="atoms"><set>{atoms}</set></array>',
            f'<array name="atomtypes"><set>{types}</set></array></atominfo>',
            _structure(first, "initialpos"),
            *(_calculation(*step, scsteps, gap if k == len(steps) - 1 else None) for k, step in enumerate(steps)),
            _structure(steps[-1][0], "finalpos") if steps else "",
            END,
        ]
    )


def potcar(folder: Path, symbol: str, enmax: float, *, kind: str = "PAW_PBE") -> Path:
    """A file with the lines of a POTCAR's head that Druse reads, and nothing of VASP's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "POTCAR"
    path.write_text(
        f"  {kind} {symbol} 01Jan2000\n   TITEL  = {kind} {symbol} 01Jan2000\n   LEXCH  = PE\n"
        f"   ENMAX  =  {enmax:.3f}; ENMIN  =  100.000 eV\n  End of Dataset\n"
    )
    return path


def _rows(name: str, rows: object) -> str:
    lines = "".join(f"<v>{' '.join(f'{x:.12f}' for x in row)}</v>" for row in np.asarray(rows, float))
    return f'<varray name="{name}">{lines}</varray>'


def _structure(crystal: Crystals, name: str = "") -> str:
    named = f' name="{name}"' if name else ""
    basis, positions = _rows("basis", crystal.cells[0]), _rows("positions", crystal.frac)
    return f"<structure{named}><crystal>{basis}</crystal>{positions}</structure>"


def _energies(value: float) -> str:
    names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    return "<energy>" + "".join(f'<i name="{name}">{value:.8f}</i>' for name in names) + "</energy>"


def _calculation(
    crystal: Crystals, energy: float, forces: object, scsteps: int, gap: tuple[float, float] | None
) -> str:
    electronic = "".join(f"<scstep>{_energies(energy)}</scstep>" for _ in range(scsteps))
    bands = "" if gap is None else (
        '<eigenvalues><array><set><set comment="spin 1"><set comment="kpoint 1">'
        f"<r>{gap[0]} 1.0</r><r>{gap[1]} 0.0</r></set></set></set></array></eigenvalues>"
    )  # fmt: skip
    inside = electronic + _structure(crystal) + _rows("forces", forces) + _energies(energy) + bands
    return f"<calculation>{inside}</calculation>"


def entries(crystals: Crystals, **columns: object) -> Entries:
    n = len(crystals)
    values = {name: np.array(column) for name, column in columns.items()}
    return Entries(0, ("made",) * n, tuple(f"c{k}" for k in range(n)), ("",) * n, crystals, values)


def source(path: Path, crystals: Crystals, **columns: object) -> Path:
    write_entries(path, entries(crystals, **columns))
    return path


def index_of(folder: Path, name: str = "index.parquet") -> Entries:
    return Entries.concatenate(read_entries([folder / name]))


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever POTCARs the person who runs the tests has."""
    from pymatgen.core import SETTINGS

    monkeypatch.delitem(SETTINGS, "PMG_VASP_PSP_DIR", raising=False)
