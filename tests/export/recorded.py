"""Upstream's recorded inputs and outputs (``../shared/fixtures``), and how far from them something is."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from druse import Graph

CALL, CHAIN = 1e-5, 1e-4  # of the scale


def recorded(shared: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(shared / "fixtures" / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(np.ascontiguousarray(array))


def error(got: Any, expected: np.ndarray, scale: float | None = None) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    expected = expected.astype(np.float64)
    assert tuple(got.shape) == expected.shape
    values = got.detach().numpy() if isinstance(got, torch.Tensor) else got
    return float(np.abs(values - expected).max()) / (scale or float(np.abs(expected).max()))


def offsets_of(n_atoms: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(n_atoms)])


def recorded_graph(z: dict[str, np.ndarray], name: str) -> Graph:
    """The graph of upstream's own edges, of which each pair is kept once."""
    source, target = z[f"{name}/out/raw_edge_index"]
    image = z[f"{name}/out/raw_to_jimages"].astype(np.int32)
    first = image[np.arange(len(image)), np.argmax(image != 0, axis=1)]  # the first number that is not 0
    keep = (source < target) | ((source == target) & (first < 0))
    return Graph.from_edges(
        z[f"{name}/inputs/frac_coords"],
        z[f"{name}/inputs/cells"],
        offsets_of(z[f"{name}/inputs/num_atoms"]),
        source[keep],
        target[keep],
        image[keep],
        half=True,
    )
