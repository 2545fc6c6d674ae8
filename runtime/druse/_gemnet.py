"""The score network in native code, its weights those of the bundle's ONNX file.

`druse_export.bundles.decoder` is the statement of the network, ``druse.h`` of the native one. What the graph has as
constants follows from the formulation: a stream of features is kept without a factor that its true values have, so
every layer that adds to it has an amplitude c: c silu(x W / c) = y sigmoid(y / c) with y = x W.
"""

import ctypes
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from druse import _native
from druse._arrays import AtomVector, SpeciesLogits, as_array
from druse._prior import PANEL, packed
from druse.bundle import GraphSpec
from druse.errors import InputError
from druse.graphs import Graph

FORMULATION = "gemnet-t-1"
"""What a manifest calls a decoder whose weights have the names of `layers`."""

_GAIN, _HALF = 1 / 0.6, 1 / math.sqrt(2)
"""The gain of the scaled SiLU, and what a sum of two is multiplied with."""


class Sizes(NamedTuple):
    """Widths and numbers of layers, as in ``druse_gemnet``."""

    atom: int
    edge: int
    triplet: int
    bilinear: int
    rbf: int
    cbf: int
    n_radial: int
    n_spherical: int
    n_blocks: int
    n_before_skip: int
    n_after_skip: int
    n_concat: int
    n_atom: int
    n_species: int
    n_levels: int


def widths_fit(*widths: int) -> bool:
    """Whether the native network takes features of these widths (of atoms, edges, triplets, the bilinear layer)."""
    return all(width % PANEL == 0 for width in widths)


class Layer(NamedTuple):
    """A weight by its name in the file: ``[n_in, n_out]``, and its amplitude; 0 without activation."""

    name: str
    n_in: int
    n_out: int
    amplitude: float = 0.0


def layers(sizes: Sizes) -> Iterator[Layer]:
    """Every weight, in the order of ``druse.h``."""
    atom, edge, rbf, bilinear = sizes.atom, sizes.edge, sizes.rbf, sizes.bilinear

    def residuals(name: str, width: int, n: int, amplitude: float) -> Iterator[Layer]:
        for k in range(n):
            yield Layer(f"{name}.{2 * k}", width, width, 1.0)
            yield Layer(f"{name}.{2 * k + 1}", width, width, amplitude / _HALF**k)

    def head(name: str) -> Iterator[Layer]:
        yield Layer(f"{name}.dense", edge, edge, 1.0)
        yield from residuals(f"{name}.residuals", edge, sizes.n_atom, 1.0)
        yield Layer(f"{name}.out", edge, rbf)

    per_degree = sizes.cbf * sizes.n_spherical
    yield Layer("radial", sizes.n_radial, 3 * rbf + per_degree + edge)
    yield Layer("elements", sizes.n_species, atom)
    yield Layer("levels", sizes.n_levels, atom)
    yield Layer("ends.both", atom, 2 * edge)
    yield from head("forces.0")
    stream = _GAIN
    for b in range(sizes.n_blocks):
        block = f"blocks.{b}"
        yield Layer(f"{block}.ba", edge, edge, 1.0)
        yield Layer(f"{block}.gate", rbf, edge)
        yield Layer(f"{block}.down", edge, sizes.triplet, 1.0)
        yield Layer(f"{block}.bilinear", sizes.cbf * sizes.triplet, bilinear)
        yield Layer(f"{block}.ca", edge, edge, 1.0)
        yield Layer(f"{block}.up_ca", bilinear, edge, _HALF)
        yield Layer(f"{block}.up_ac", bilinear, edge, _HALF)
        yield from residuals(f"{block}.before_skip", edge, sizes.n_before_skip, 1 / _HALF)
        stream *= _HALF
        yield from residuals(f"{block}.after_skip", edge, sizes.n_after_skip, _GAIN / stream)
        stream *= _HALF**sizes.n_after_skip
        yield Layer(f"{block}.atom_gate", rbf, edge)
        yield Layer(f"{block}.atom_dense", edge, atom, 1.0)
        yield from residuals(f"{block}.atom_residuals", atom, sizes.n_atom, 1.0)
        yield Layer(f"{block}.ends.both", atom, 2 * edge)
        yield Layer(f"{block}.feature", edge, edge, 1.0)
        yield from residuals(f"{block}.residual_m", edge, sizes.n_concat, 1.0)
        stream *= _HALF
        yield from head(f"forces.{b + 1}")
    yield Layer("species", atom, sizes.n_species)


def factors(sizes: Sizes) -> np.ndarray:
    """``[n_blocks, 3]``: of what is added to edges at the skip, to atoms, and to edges at the end."""
    found, stream = [], _GAIN
    for _ in range(sizes.n_blocks):
        skip = _GAIN * _HALF ** (1 + sizes.n_before_skip) / stream
        stream *= _HALF ** (1 + sizes.n_after_skip)
        found.append([skip, _GAIN * _HALF ** (1 + sizes.n_atom), _GAIN * _HALF**sizes.n_concat / stream])
        stream *= _HALF
    return np.array(found, np.float32).reshape(-1, 3)


def flops(sizes: Sizes, degree: np.ndarray) -> float:
    """Floating-point operations of the products in one evaluation, padding left out.

    Args:
        sizes: of the network.
        degree: ``[atoms]`` directed edges into each atom; all that the count depends on.
    """
    n_atoms, directed, triplets = len(degree), float(np.sum(degree)), float(np.sum(np.square(degree, dtype=np.float64)))
    total = 0.0
    for layer in layers(sizes):
        name = layer.name.rpartition(".")[2]
        if name in ("elements", "levels"):  # rows are looked up
            continue
        if name in ("radial", "gate", "atom_gate"):  # the same in both directions
            rows = directed / 2
        else:
            on_atoms = name in ("both", "species", "atom_dense") or ".atom_residuals." in layer.name
            rows = n_atoms if on_atoms else directed
        total += 2 * rows * layer.n_in * layer.n_out
    # over the edges into an atom: Legendre block and messages, radial part, what an atom gets
    sums = sizes.n_spherical * sizes.triplet * (triplets + sizes.cbf * directed) + sizes.edge * directed
    return total + 2 * sizes.n_blocks * sums


class GemNetT:
    """The score network, ready to run. Every thread may call it."""

    def __init__(self, tensors: Mapping[str, np.ndarray], spec: GraphSpec, name: str = "the network") -> None:
        """Packs the weights ``decoder.NAME.weight``.

        Raises:
            InputError: they are not those of such a network.
        """
        try:
            self.sizes = sizes_of(tensors, spec)
            kept = [(layer, tensors[f"decoder.{layer.name}.weight"]) for layer in layers(self.sizes)]
            bias = tensors["decoder.species_bias"]
            good = widths_fit(*self.sizes[:4]) and bias.shape == (self.sizes.n_species,)
            good &= all(weight.shape == (layer.n_in, layer.n_out) for layer, weight in kept)
        except (KeyError, ValueError, ZeroDivisionError):
            good = False
        if not good:
            raise InputError(f"{name} has not the weights of its formulation {FORMULATION}; build the bundle again")
        as_they_are = ("elements", "levels")
        arrays = [np.ascontiguousarray(w) if la.name in as_they_are else packed(w) for la, w in kept]
        self._arrays = [*arrays, np.ascontiguousarray(bias)]
        self._pointers = (ctypes.c_void_p * len(self._arrays))(*map(_native.pointer, self._arrays))
        sharpness = [1 / layer.amplitude if layer.amplitude else 0.0 for layer, _ in kept]
        self._sharpness, self._factors = np.array([*sharpness, 0.0], np.float32), factors(self.sizes)
        self._net = _native.GemNet(
            *self.sizes,
            0,
            spec.cutoff,
            ctypes.addressof(self._pointers),
            _native.pointer(self._sharpness),
            _native.pointer(self._factors),
        )

    def score(
        self, graph: Graph, species: np.ndarray, latent: np.ndarray, level: np.ndarray, *, isa: str = "best"
    ) -> tuple[AtomVector, SpeciesLogits]:
        """Sigma times the score, and logits, of crystals with a graph; arguments as of `druse.model.Model.score`."""
        n_atoms, degree = graph.in_edge.shape
        crystal = np.repeat(np.arange(len(latent), dtype=np.int32), np.diff(graph.offsets))
        arrays: tuple[Any, ...] = (
            *(graph.src, graph.dst, graph.distance, graph.unit, graph.in_edge, graph.degree, crystal),
            as_array("species", species, np.int32, n_atoms),
            as_array("latent", latent, np.float32, len(graph.offsets) - 1, self.sizes.atom),
            as_array("level", level, np.int32, len(graph.offsets) - 1),
        )
        batch = _native.GemNetBatch(
            len(latent), n_atoms, graph.n_edges, degree, graph.mirror, *map(_native.pointer, arrays)
        )
        score = np.empty((n_atoms, 3), np.float32)
        logits = np.empty((n_atoms, self.sizes.n_species), np.float32)
        _native.call(
            "druse_gemnet_score", _native.cpu(1, isa), self._net, batch, _native.pointer(score), _native.pointer(logits)
        )
        return score, logits


def sizes_of(tensors: Mapping[str, np.ndarray], spec: GraphSpec) -> Sizes:
    """Of a network by its weights ``decoder.NAME.weight``; KeyError or ValueError where they are those of another."""

    def weight(name: str) -> tuple[int, int]:
        n_in, n_out = tensors[f"decoder.{name}.weight"].shape
        return int(n_in), int(n_out)

    def count(name: str) -> int:
        return sum(key.startswith(f"decoder.{name}.") for key in tensors)

    n_species, atom = weight("elements")
    rbf, edge = weight("blocks.0.gate")
    _, triplet = weight("blocks.0.down")
    products, bilinear = weight("blocks.0.bilinear")
    return Sizes(
        atom=atom,
        edge=edge,
        triplet=triplet,
        bilinear=bilinear,
        rbf=rbf,
        cbf=products // triplet,
        n_radial=spec.n_radial,
        n_spherical=spec.n_spherical,
        n_blocks=sum(f"decoder.blocks.{k}.ba.weight" in tensors for k in range(len(tensors))),
        n_before_skip=count("blocks.0.before_skip") // 2,
        n_after_skip=count("blocks.0.after_skip") // 2,
        n_concat=count("blocks.0.residual_m") // 2,
        n_atom=count("blocks.0.atom_residuals") // 2,
        n_species=n_species,
        n_levels=weight("levels")[0],
    )
