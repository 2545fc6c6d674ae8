"""Properties of crystals from bundled CGCNNs (Xie and Grossman, Phys. Rev. Lett. 120, 145301, 2018).

`PropertyModel` is one of them. `PropertyModels` are any number, over the same neighbours, with a column for each model
and one for each property: the mean of its models, and their standard deviation where there are several.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from druse._arrays import Bool, Float32, Int32
from druse._manifest import in_one_line
from druse._score import WIDTH, grouped, in_parts
from druse.backends import Backend, open_backend
from druse.bundle import Bundle, CGCNNManifest
from druse.candidates import Entries
from druse.crystals import Crystals
from druse.errors import InputError
from druse.graphs import Graph, radius_graph

__all__ = ["EMBEDDED", "PropertyModel", "PropertyModels", "neighbor_table"]

EMBEDDED = (
    "cgcnn_formation_energy",
    "cgcnn_band_gap",
    "cgcnn_band_gap_class",
    "cgcnn_formation_energy_class",
)
"""Names of the property models that come with Druse, for `druse.bundle.Bundle.embedded`."""

_BIN = 256.0
"""Atoms evaluated at once: a stream of their 12 edges with 128 channels takes 1.6 MB."""

_N_ELEMENTS = 100


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


class _Surroundings(NamedTuple):
    """What a network takes of crystals, by name, and which of them it can be asked about."""

    inputs: Mapping[str, np.ndarray]
    ok: Bool[np.ndarray, "crystals"]


def _surroundings(crystals: Crystals, max_neighbors: int, cutoff: float) -> _Surroundings:
    """The inputs of crystals; an element that no model knows is given as hydrogen."""
    graph = radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=cutoff, max_neighbors=max_neighbors,
        shell_tolerance=None, n_threads=1,
    )  # fmt: skip
    neighbor, distance = neighbor_table(graph, max_neighbors, cutoff)
    n_atoms = crystals.n_atoms
    known = (crystals.species >= 1) & (crystals.species <= _N_ELEMENTS)
    strange = np.bincount(np.repeat(np.arange(len(crystals)), n_atoms)[~known], minlength=len(crystals))
    # one more crystal of one atom stands behind the last, so that an array never has a single row
    rows, most = len(neighbor), -(-max(1, int(n_atoms.max(initial=1))) // WIDTH) * WIDTH
    places = np.arange(most)
    member = np.where(places < n_atoms[:, None], crystals.offsets[:-1, None] + places, rows)
    share = np.where(places < n_atoms[:, None], 1.0 / np.maximum(n_atoms, 1)[:, None], 0.0)
    inputs = {
        "species": np.append(np.where(known, crystals.species, np.int32(1)), np.int32(1)),
        "neighbor": np.vstack([neighbor, np.full((1, max_neighbors), rows, np.int32)]),
        "distance": np.vstack([distance, np.full((1, max_neighbors), cutoff + 1.0, np.float32)]),
        "member": np.vstack([member, np.full((1, most), rows)]).astype(np.int32),
        "share": np.vstack([share, np.full((1, most), 1.0 / most)]).astype(np.float32),
    }
    return _Surroundings(inputs, graph.ok & (n_atoms > 0) & (strange == 0))


class PropertyModel:
    """A property model that is ready to run.

    Attributes:
        bundle, backend, manifest: what it was opened from and runs on.
        property: what its column is called: the name of its target, or for a classification that name without
            ``_per_atom`` and with ``_class``.
        unit: of the values; a classification has ``P(>THRESHOLD UNIT)``, as what it gives is a probability.
        column: ``property|model|version|unit``, the name of its column among those of other models.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        if not isinstance(bundle.manifest, CGCNNManifest):
            raise InputError(
                f"{bundle.name} holds a generator (Con-CDVAE); give the bundle of a property model instead"
            )
        self.bundle, self.backend, self.manifest = bundle, backend, bundle.manifest
        target, threshold = self.manifest.target, self.manifest.threshold
        self.property, self.unit = target.name, target.unit
        if self.manifest.task == "classification":
            self.property = f"{target.name.removesuffix('_per_atom')}_class"
            self.unit = f"P(>{'?' if threshold is None else f'{threshold:g}'} {target.unit}".rstrip() + ")"
        parts = (self.property, self.manifest.name, self.manifest.version, self.unit)
        self.column = "|".join(in_one_line(part).replace("|", "/") for part in parts)
        network = self.manifest.network
        self._run = backend.load(bundle.read(network.file), network, "fp32")
        self._pool = _pool(backend)

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

        Crystals without atoms, without a graph (see `druse.graphs`), or with an element beyond 100 get NaN.
        """
        (values,) = _predict([self], crystals, self._pool)
        return values

    def _evaluate(self, given: _Surroundings) -> np.ndarray:
        (value,) = self._run(given.inputs)
        value = value[:-1].copy()
        value[~given.ok] = np.nan
        return value


class PropertyModels:
    """Any number of property models, which see each crystal's neighbours once.

    Args:
        models: of any properties; several of one property are an ensemble.

    Attributes:
        models: in order.
        units: of every column, by its name.

    Raises:
        InputError: two models would write the same column, or models of one property give different units.
    """

    def __init__(self, models: Sequence[PropertyModel]) -> None:
        self.models = tuple(models)
        self._groups: dict[str, list[int]] = {}
        for place, model in enumerate(self.models):
            group = self._groups.setdefault(model.property, [])
            if group and (other := self.models[group[0]]).unit != model.unit:
                raise InputError(
                    f"{other.bundle.name} gives {in_one_line(model.property)} as {in_one_line(other.unit)} and "
                    f"{model.bundle.name} as {in_one_line(model.unit)}, which have no mean; give one of them"
                )
            group.append(place)
        columns = [(model.column, model.unit, model.bundle.name) for model in self.models]
        for name, group in self._groups.items():
            unit, text = self.models[group[0]].unit, in_one_line(name)
            columns.append((text, unit, f"the mean of {text}"))
            if len(group) > 1:
                columns.append((f"{text}_std", unit, f"the standard deviation of {text}"))
        self.units: dict[str, str] = {}
        writers: dict[str, str] = {}
        for column, unit, writer in columns:
            if column in writers:
                raise InputError(
                    f"{writers[column]} and {writer} would write the same column {column!r}; leave one out, or give it "
                    "another name or version when its bundle is built (--name, --version)"
                )
            writers[column], self.units[column] = writer, in_one_line(unit)
        self._pool = _pool(self.models[0].backend) if self.models else None

    @classmethod
    def open(
        cls,
        models: Sequence[Any] = (),
        *,
        embedded: bool | None = None,
        backend: str | Backend = "auto",
        precision: str = "fp32",
        n_threads: int = 0,
    ) -> "PropertyModels":
        """Models that are ready to run.

        Args:
            models: bundles, or paths of bundles.
            embedded: whether those that come with Druse stand before them; None: where there are no ``models``.
            backend: see `druse.backends.open_backend`; one for all of them.
            precision: of the backend.
            n_threads: 0 for every core.

        Raises:
            InputError: a bundle cannot be opened or is a generator, or see the class.
        """
        if embedded is None:
            embedded = not models
        opened = [Bundle.embedded(name) for name in EMBEDDED] if embedded else []
        opened += [model if isinstance(model, Bundle) else Bundle.open(model) for model in models]
        if isinstance(backend, str):
            backend = open_backend(backend, precision=precision, n_threads=n_threads)
        return cls([PropertyModel(bundle, backend) for bundle in opened])

    def columns(self, crystals: Crystals) -> dict[str, np.ndarray]:
        """Every model's values, then every property's.

        Returns:
            By name ``[crystals]`` float64: for each model its ``column``; for each property the mean of its models
            under the property's own name and, where there are several, their standard deviation (with n - 1) under
            that name and ``_std``. Classifications give the probability that the property is above the threshold.
            NaN where a crystal has no atoms, no graph, or an element beyond 100. A crystal's numbers do not depend on
            the others.
        """
        found = [
            (values if values.ndim == 1 else values[:, 1]).astype(np.float64)
            for values in _predict(self.models, crystals, self._pool)
        ]
        columns = {model.column: values for model, values in zip(self.models, found, strict=True)}
        for name, places in self._groups.items():
            # sums in order, one model after the other: NumPy's own would depend on the number of crystals
            mean = functools.reduce(np.add, (found[k] for k in places)) / len(places)
            columns[in_one_line(name)] = mean
            if len(places) > 1:
                squares = functools.reduce(np.add, ((found[k] - mean) ** 2 for k in places))
                columns[f"{in_one_line(name)}_std"] = np.sqrt(squares / (len(places) - 1))
        return columns

    def add_to(self, entries: Entries) -> Entries:
        """Entries with the columns of these models after their own.

        A column of the source that is called as one of these, such as a band gap that somebody computed, is kept as
        ``source_NAME``. Columns of an earlier prediction are replaced.
        """
        return dataclasses.replace(entries, columns={**self.kept(entries.columns), **self.columns(entries.crystals)})

    def kept(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What stays of a source's columns beside those of these models; see `add_to`."""
        earlier = {name.partition("|")[0] for name in columns if name.count("|") == 3}
        earlier |= {f"{name}_std" for name in earlier}
        kept = {}
        for name, column in columns.items():
            if name not in self.units:
                kept[name] = column
            elif name not in earlier and "|" not in name:
                kept[f"source_{name}"] = column
        return kept


def _pool(backend: Backend) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(backend.workers, "druse") if backend.workers > 1 else None


def _predict(models: Sequence[PropertyModel], crystals: Crystals, pool: ThreadPoolExecutor | None) -> list[np.ndarray]:
    """Of each model the values of all crystals."""

    def work(piece: range) -> list[np.ndarray]:
        some = crystals.take(np.arange(piece.start, piece.stop))
        graphs = [(model.manifest.max_neighbors, model.manifest.cutoff) for model in models]
        seen = {graph: _surroundings(some, *graph) for graph in dict.fromkeys(graphs)}
        return [model._evaluate(seen[graph]) for model, graph in zip(models, graphs, strict=True)]

    # a crystal without atoms counts as one with an atom, as it has a row of members
    parts = list(in_parts(grouped(np.maximum(crystals.n_atoms, 1), _BIN), work, pool))
    if parts:
        return [np.concatenate(values) for values in zip(*parts, strict=True)]
    return [np.zeros((0,) if model.manifest.task == "regression" else (0, 2), np.float32) for model in models]
