"""Properties of crystals from a bundled CGCNN (Xie and Grossman, Phys. Rev. Lett. 120, 145301, 2018)."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from druse._arrays import Float32, Int32
from druse._score import WIDTH, grouped, in_parts
from druse.backends import Backend, open_backend
from druse.bundle import Bundle, CGCNNManifest
from druse.crystals import Crystals
from druse.errors import InputError
from druse.graphs import Graph, radius_graph

__all__ = ["PropertyModel", "neighbor_table"]

_BIN = 512.0
"""Atoms evaluated at once."""


def neighbor_table(
    graph: Graph, max_neighbors: int, cutoff: float
) -> tuple[Int32[np.ndarray, "atoms neighbors"], Float32[np.ndarray, "atoms neighbors"]]:
    """Exactly ``max_neighbors`` neighbours of each atom, and their distances in Angstrom.

    An atom with fewer is filled up, as in the authors' code, with atom 0 of its crystal at the cutoff plus 1 Angstrom.

    Raises:
        InputError: the graph is symmetrised, or has more edges into an atom.
    """
    if graph.is_half or int(graph.degree.max(initial=0)) > max_neighbors:
        raise InputError(
            f"CGCNN needs directed edges, at most {max_neighbors} into an atom; build the graph with "
            f"max_neighbors={max_neighbors}, shell_tolerance=None and symmetrise='none'"
        )
    firsts = np.repeat(graph.offsets[:-1], np.diff(graph.offsets)).astype(np.int32)
    neighbor = np.repeat(firsts[:, None], max_neighbors, axis=1)
    distance = np.full((graph.n_atoms, max_neighbors), cutoff + 1.0, np.float32)
    used = np.arange(graph.in_edge.shape[1]) < graph.degree[:, None]
    rows, columns = np.nonzero(used)
    edges = graph.in_edge[rows, columns]
    neighbor[rows, columns] = graph.src[edges]
    distance[rows, columns] = graph.distance[edges]
    return neighbor, distance


class PropertyModel:
    """A property model that is ready to run."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        if not isinstance(bundle.manifest, CGCNNManifest):
            raise InputError(f"{bundle.name} holds a generator (Con-CDVAE); this needs the bundle of a property model")
        self.bundle, self.backend, self.manifest = bundle, backend, bundle.manifest
        network = self.manifest.network
        self._run = backend.load(bundle.read(network.file), network, "fp32")
        self._pool = ThreadPoolExecutor(backend.workers, "druse") if backend.workers > 1 else None

    @classmethod
    def open(
        cls, bundle: Any, *, backend: str | Backend = "auto", precision: str = "fp32", n_threads: int = 0
    ) -> "PropertyModel":
        """A model from a bundle; arguments and errors as of `druse.model.Model.open`."""
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if isinstance(backend, str):
            backend = open_backend(backend, precision=precision, n_threads=n_threads)
        return cls(opened, backend)

    def predict(self, crystals: Crystals) -> Float32[np.ndarray, "crystals ..."]:
        """``[crystals]`` values in the property's unit, or ``[crystals, 2]`` probabilities of False and True.

        Crystals without atoms, or without a graph (see `druse.graphs`), get NaN.

        Raises:
            InputError: an element that the model does not know.
        """
        if len(crystals.species) and not (crystals.species.min() >= 1 and crystals.species.max() <= 100):
            raise InputError(
                f"CGCNN knows the elements 1 to 100, got {crystals.species.min()} to {crystals.species.max()}"
            )
        bins = grouped(crystals.n_atoms, _BIN)
        parts = list(
            in_parts(bins, lambda piece: self._evaluate(crystals.take(np.arange(piece.start, piece.stop))), self._pool)
        )
        width = () if self.manifest.task == "regression" else (2,)
        return np.concatenate(parts) if parts else np.zeros((0, *width), np.float32)

    def _evaluate(self, crystals: Crystals) -> np.ndarray:
        spec = self.manifest
        graph = radius_graph(
            crystals.frac, crystals.cells, crystals.offsets, cutoff=spec.cutoff, max_neighbors=spec.max_neighbors,
            shell_tolerance=None, n_threads=1,
        )  # fmt: skip
        neighbor, distance = neighbor_table(graph, spec.max_neighbors, spec.cutoff)
        n_atoms = crystals.n_atoms
        # one more crystal of one atom stands behind the last, so that an array never has a single row
        rows, most = len(neighbor), -(-max(1, int(n_atoms.max(initial=1))) // WIDTH) * WIDTH
        places = np.arange(most)
        member = np.where(places < n_atoms[:, None], crystals.offsets[:-1, None] + places, rows)
        share = np.where(places < n_atoms[:, None], 1.0 / np.maximum(n_atoms, 1)[:, None], 0.0)
        (value,) = self._run(
            {
                "species": np.append(crystals.species, np.int32(1)),
                "neighbor": np.vstack([neighbor, np.full((1, spec.max_neighbors), rows, np.int32)]),
                "distance": np.vstack([distance, np.full((1, spec.max_neighbors), spec.cutoff + 1.0, np.float32)]),
                "member": np.vstack([member, np.full((1, most), rows)]).astype(np.int32),
                "share": np.vstack([share, np.full((1, most), 1.0 / most)]).astype(np.float32),
            }
        )
        value = value[:-1].copy()
        value[~graph.ok | (n_atoms == 0)] = np.nan
        return value
