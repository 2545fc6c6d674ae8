"""The Materials Project (Jain et al., APL Mater. 1, 011002) through its own client, as a table with MP-20's columns."""

import csv
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from druse._dependencies import require
from druse._files import whole_file
from druse.errors import DownloadError, InputError

COLUMNS = (
    "material_id", "formation_energy_per_atom", "band_gap", "pretty_formula", "e_above_hull", "spacegroup.number",
    "cif",
)  # fmt: skip

_FIELDS = [
    "material_id", "structure", "formation_energy_per_atom", "band_gap", "energy_above_hull", "symmetry",
    "formula_pretty",
]  # fmt: skip
_SYSTEM = re.compile(r"([A-Z][a-z]?|\*)(-([A-Z][a-z]?|\*))*")


def fetch_materials_project(
    path: Path,
    *,
    api_key: str | None,
    chemical_systems: Sequence[str] = (),
    max_atoms: int | None = None,
    quiet: bool = True,
) -> int:
    """Ask the Materials Project for crystals and write them as CSV; the file appears whole or not at all.

    Energies are in eV/atom, gaps in eV. Crystals of GNoME are left out: their licence forbids commercial use.

    Args:
        path: of the CSV.
        api_key: from https://materialsproject.org/api.
        chemical_systems: such as ``Li-Fe-O``: exactly these elements, ``*`` for any one; empty for all.
        max_atoms: in the cell.
        quiet: do not show the client's own progress bars.

    Returns:
        Rows written.

    Raises:
        InputError: no key, or a chemical system of another form.
        DownloadError: the service is out of reach, refuses, or knows no such crystal.
        MissingDependencyError: mp-api is not installed.
    """
    for system in chemical_systems:
        if not _SYSTEM.fullmatch(system):
            raise InputError(f"a chemical system must be symbols joined by hyphens, such as Li-Fe-O, got {system!r}")
    if not api_key:
        raise InputError(
            "the Materials Project wants an API key; get one at https://materialsproject.org/api, then set the "
            "environment variable MP_API_KEY or give --api-key"
        )
    require("mp_api.client", purpose="fetching from the Materials Project", extra="mp")
    documents = _search(api_key, chemical_systems, max_atoms, quiet)
    if not documents:
        raise DownloadError("the Materials Project knows no crystal of this kind; ask for other systems or more atoms")
    return write_documents(path, documents)


def _search(api_key: str, chemical_systems: Sequence[str], max_atoms: int | None, quiet: bool) -> list[Any]:
    from mp_api.client import MPRester

    query: dict[str, Any] = {"fields": _FIELDS, "all_fields": False, "include_gnome": False, "deprecated": False}
    if chemical_systems:
        query["chemsys"] = list(chemical_systems)
    if max_atoms is not None:
        query["num_sites"] = (1, max_atoms)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with MPRester(api_key, mute_progress_bars=quiet) as client:
                return list(client.materials.summary.search(**query))
    except Exception as error:  # of the client, of requests, of its own data model
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(f"the Materials Project could not be asked: {reason[0]}") from error


def row(document: Any) -> dict[str, Any]:
    """A summary document of the API as a row of the table; what the document lacks is empty."""
    symmetry = document.symmetry
    values = {
        "material_id": str(document.material_id),
        "formation_energy_per_atom": document.formation_energy_per_atom,
        "band_gap": document.band_gap,
        "pretty_formula": document.formula_pretty,
        "e_above_hull": document.energy_above_hull,
        "spacegroup.number": None if symmetry is None else symmetry.number,
        "cif": document.structure.to(fmt="cif"),
    }
    return {name: "" if value is None else value for name, value in values.items()}


def write_documents(path: Path, documents: Iterable[Any]) -> int:
    """Write summary documents as CSV, and return how many."""
    count = 0
    with whole_file(path, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for document in documents:
            writer.writerow(row(document))
            count += 1
    return count
