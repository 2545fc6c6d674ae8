"""What an entry from outside may be at most, and entries before they are understood."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["LIMITS", "Limits", "Row", "broken"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a source may ask for. An entry beyond is refused with the reason, and the rest goes on.

    Attributes:
        text: characters of one entry, and bytes of one member of an archive.
        atoms: in the cell.
        operations: symmetry operations in a CIF; the largest conventional space groups have 192.
        shortest, longest: edges of a cell, in Angstrom.
        flatness: volume of a cell over the product of its edges, at least.
        crowding: cubic Angstrom for each atom, at least; below, too much is within some Angstrom of an atom.
        columns: names of columns in one piece; more are left out. Of pieces together, and in a file of ours, twice as
            many.
        texts: characters that an entry has in all its columns, each as long as the longest one of the piece, as arrays
            have it; columns beyond are left out. Of pieces together, and in a file of ours, twice as many.
        value: characters of a name, which is cut, and of a text in a column, which is left out where it is longer.
        depth: brackets inside brackets, in JSON.
        expansion: bytes that come out of a compressed file or member, over those that it has.
        expanded: bytes that come out of one compressed file or archive.
        directory: bytes of the list of members in an archive.
        pickle: bytes of the structure (not the numbers) of a PyTorch file.
        seconds: for one entry, in a process that may be interrupted; None for no limit.
    """

    text: int = 2_000_000
    atoms: int = 500
    operations: int = 192
    shortest: float = 0.5
    longest: float = 1000.0
    flatness: float = 1e-3
    crowding: float = 0.1
    columns: int = 1000
    texts: int = 4000
    value: int = 1000
    depth: int = 64
    expansion: float = 100.0
    expanded: int = 1 << 36
    directory: int = 1 << 26
    pickle: int = 1 << 22
    seconds: float | None = 60.0


LIMITS = Limits()
"""The limits that hold unless others are given."""


class Row(NamedTuple):
    """One entry that nobody has looked into.

    Attributes:
        id: its name.
        text: a CIF, one frame of extended XYZ, a POSCAR, a structure as JSON; or why there is none of these.
        format: ``cif``, ``extxyz``, ``poscar``, ``json``; ``broken`` where the text is the reason.
        columns: what the source says beside it.
    """

    id: str
    text: str
    format: str
    columns: Mapping[str, Any]


def broken(name: str, reason: str) -> Row:
    """An entry that could not even be cut out of its source."""
    return Row(name, reason, "broken", {})
