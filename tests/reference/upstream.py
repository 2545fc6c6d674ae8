"""Recordings of upstream's own code (``../shared/fixtures``), one crystal at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reference.graph import Edge, edge_list
from reference.structures import Structure

K = 20
TIE = 1e-6
"""Relative difference of squared distances below which upstream's unstable sort may choose either."""


class Recorded(NamedTuple):
    """One crystal and upstream's directed edges for it, sources and targets counted from the crystal's first atom."""

    structure: Structure
    cutoff: float
    edges: list[Edge]


def _split(name: str, data: dict[str, Any], cutoff: float) -> Iterator[Recorded]:
    """The crystals of a recorded batch."""
    atoms, bonds = np.cumsum([0, *data["num_atoms"]]), np.cumsum([0, *data["num_bonds"]])
    assert atoms[-1] == len(data["frac_coords"])
    assert bonds[-1] == data["edge_index"].shape[1]
    for b, cell in enumerate(data["cells"].astype(np.float64)):
        a, e = slice(atoms[b], atoms[b + 1]), slice(bonds[b], bonds[b + 1])
        src, dst = data["edge_index"][:, e] - atoms[b]
        edges = edge_list(src, dst, data["to_jimages"][e])
        yield Recorded(Structure(f"{name}:{b}", data["frac_coords"][a].astype(np.float64), cell), cutoff, edges)


def read_neighbours(path: Path) -> list[Recorded]:
    """``neighbours.npz``: 162 cells, each at 9 and 7 Angstrom."""
    found: list[Recorded] = []
    with np.load(path) as file:
        for number in sorted({key.split("/")[0] for key in file.files}):
            prefix = f"{number}/"
            data = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
            for radius in (9.0, 7.0):
                recorded = {key: data[f"r{radius:.0f}/{key}"] for key in ("edge_index", "to_jimages", "num_bonds")}
                found += _split(str(data["name"]), data | recorded, radius)
    return found


def read_batched(path: Path) -> list[Recorded]:
    """``neighbours_batched.npz``: 49 crystals in one call."""
    with np.load(path) as file:
        data = dict(file)
    assert data["max_neighbors"] == K
    return list(_split("batched", data, float(data["radius"])))


def read_decoder(path: Path, *parts: str) -> list[Recorded]:
    """``decoder_io.npz``, ``small`` or ``big`` or both: the list before symmetrisation."""
    found: list[Recorded] = []
    with np.load(path) as file:
        for part in parts:
            data = {key: file[f"{part}/inputs/{key}"] for key in ("num_atoms", "frac_coords", "cells")}
            recorded = {key: file[f"{part}/out/raw_{key}"] for key in ("edge_index", "to_jimages", "num_bonds")}
            found += _split(part, data | recorded, 9.0)
    return found


def read_encoder(path: Path) -> list[Recorded]:
    """``encoder_io.npz``: 17 crystals as the encoder sees them when it finds its edges itself, within 7 Angstrom."""
    with np.load(path) as file:
        data = {key: file[f"inputs/{key}"] for key in ("num_atoms", "frac_coords", "cells")}
        recorded = {key: file[f"otf/{key}"] for key in ("edge_index", "to_jimages", "num_bonds")}
    return list(_split("encoder", data | recorded, 7.0))


def squared_rank(recorded: Recorded) -> np.ndarray:
    """Each target's K-th smallest squared distance (float64); infinity where it has fewer edges."""
    frac, cell = recorded.structure.frac, recorded.structure.cell
    own: list[list[float]] = [[] for _ in frac]
    for src, dst, *image in recorded.edges:
        vector = (frac[dst] - frac[src] - image) @ cell
        own[dst].append(float(vector @ vector))
    return np.array([sorted(square)[K - 1] if len(square) >= K else np.inf for square in own])
