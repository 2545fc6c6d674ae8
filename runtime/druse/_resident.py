"""The score network on a device: buckets of a fixed shape, in which crystals stay from step to step.

A bucket has room for so many crystals, atoms, half edges, and edges into an atom, and a network that is ready for these
shapes. What a bin does not use is filled as `druse._score` does it: with atoms and edges that are not there, of a
crystal that is not there, which harm nothing and get nothing. No count but the room itself is known to the host, so one
evaluation is the same work whatever the crystals are, and a device repeats it without being told anew.

A crystal whose graph finds no room says so in its status word (EDGE_OVERFLOW, DEGREE_OVERFLOW) and is to be evaluated
again with more; the others are not touched by it.
"""

import functools
import logging
import traceback
from collections.abc import Callable

import numpy as np

from druse import _native
from druse._device import Array, Work
from druse._rooms import OVERFLOW, Room, Shape
from druse.backends import OutOfMemoryError, ResidentBackend
from druse.bundle import ConCDVAEManifest, Network, Precision
from druse.crystals import Crystals
from druse.graphs import options
from druse.noise import Purpose

_log = logging.getLogger(__name__)

TOGETHER = 8
"""Steps that are queued at once."""

CAPTURED = 16
"""Pieces of work that a bucket keeps captured: a schedule has five at most, and seeds are part of them."""


class Bucket:
    """Arrays of a shape on a device, and the network that reads and writes them."""

    def __init__(
        self,
        backend: ResidentBackend,
        content: bytes,
        network: Network,
        precision: Precision,
        manifest: ConCDVAEManifest,
        shape: Shape,
    ) -> None:
        """Allocates.

        Raises:
            MemoryError: there is too little memory.
        """
        self.shape, self.device, self._spec = shape, backend.device, manifest.graph
        c, n, h, _ = shape
        self.network_arrays: dict[str, Array] = {}
        for tensor in (*network.inputs, *network.outputs):
            lengths = tuple(shape.lengths[k] if isinstance(k, str) else k for k in tensor.shape)
            self.network_arrays[tensor.name] = self._empty(tensor.dtype, *lengths)
        self.latent, self.level, self.species, self._crystal, self._radial, self._legendre = (
            self.network_arrays[name] for name in ("latent", "level", "species", "crystal", "radial", "legendre")
        )
        self._src, self._dst, self._in_edge, self._valid, self._slot, self._force, self.logits = (
            self.network_arrays[name] for name in ("src", "dst", "in_edge", "valid", "slot", "force", "logits")
        )
        self.n_species = self.logits.shape[1]
        self.offsets, self.cells = self._empty(np.int64, c + 1), self._empty(np.float64, c, 3, 3)
        self.ids, self.frac = self._empty(np.uint64, c), self._empty(np.float64, n, 3)
        self.allowed, self.scaled = self._empty(np.uint8, c, self.n_species), self._empty(np.float32, n, 3)
        self._image, self._distance = self._empty(np.int32, h, 3), self._empty(np.float32, h)
        self._unit, self._degree = self._empty(np.float32, h, 3), self._empty(np.int32, n)
        self._edge_offsets, self._counts = self._empty(np.int64, c + 1), self._empty(np.int64, c)
        self._status, self.met = self._empty(np.uint32, c), self._empty(np.uint32, c)
        self.still = self._empty(np.float32, n, 3)
        self._counters, self._by = self._empty(np.uint32, 2), self._empty(np.int32, 2)
        self._move = self._empty(np.float64, 2)
        self._workspace = self._graph_workspace()
        self.device.fill(self.still, 0)
        self.device.fill(self.logits, 0)
        self.device.upload(self._by, np.array([1, -1], np.int32))
        self._levels = self._empty(np.int32, len(manifest.sigmas), c)
        self.device.upload(self._levels, np.repeat(np.arange(len(manifest.sigmas), dtype=np.int32), c))
        shapes = {name: array.shape for name, array in self.network_arrays.items()}
        addresses = {name: array.address for name, array in self.network_arrays.items()}
        self._network = backend.prepare(content, network, precision, shapes, addresses)
        self._ready: dict[tuple[object, ...], Work] = {}

    def _graph_workspace(self) -> Array | None:
        """What the graph needs on the device."""
        size = _native.library().druse_graph_workspace(self.device.exec_, self.shape.crystals, self.shape.atoms)
        return self._empty(np.uint8, size) if size else None

    def forget(self) -> None:
        """Drop captured work, which may hold the bucket itself."""
        self._ready.clear()

    def status(self) -> np.ndarray:
        """``[crystals]`` of the last evaluation, when all that is queued is done."""
        status: np.ndarray = self.device.download(self._status)
        return status

    def _empty(self, dtype: object, *shape: int) -> Array:
        return self.device.empty(shape, dtype)

    def fill(self, crystals: Crystals, latent: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Put crystals in, no status bits met, every element allowed.

        Args:
            crystals: no more than there is room for.
            latent: ``[crystals, atom]``.
            ids: of the crystals in the run, for draws.
        """
        c, n = self.shape.crystals, self.shape.atoms
        some, n_atoms = len(crystals), len(crystals.frac)
        offsets = np.full(c + 1, n_atoms, np.int64)
        offsets[: some + 1] = crystals.offsets
        cells, latents = np.tile(np.eye(3), (c, 1, 1)), np.zeros(self.latent.shape, np.float32)
        cells[:some], latents[:some] = crystals.cells, latent
        owner, species = np.full(n, c - 1, np.int32), np.ones(n, np.int32)
        owner[:n_atoms] = np.repeat(np.arange(some), crystals.n_atoms)
        species[:n_atoms] = crystals.species
        numbers = np.zeros(c, np.uint64)
        if ids is not None:
            numbers[:some] = ids
        self.device.fill(self.frac, 0)
        for array, values in (
            (self.offsets, offsets), (self.cells, cells), (self.latent, latents), (self._crystal, owner),
            (self.species, species), (self.frac, crystals.frac), (self.ids, numbers),
        ):  # fmt: skip
            self.device.upload(array, values)
        for array, byte in ((self.met, 0), (self.allowed, 1), (self.level, 0), (self.scaled, 0)):
            self.device.fill(array, byte)

    def allow(self, elements: np.ndarray) -> None:
        """Let only some elements be named, ``[species]``, in every crystal."""
        self.device.upload(self.allowed, np.tile(elements.astype(np.uint8), (self.shape.crystals, 1)))

    def at_level(self, level: int) -> None:
        """Queue the setting of every crystal's noise level."""
        self.device.copy(self.level, self._levels.row(level))

    def evaluate(self) -> None:
        """Queue one evaluation: from ``frac``, ``species`` and ``level`` to ``scaled``, ``logits`` and ``met``."""
        self._once(("evaluate",), self._evaluation)()

    def step(self, n: int, *, first: int, left: int, drift: float, diffusion: float, seed: int, purpose: int,
             draw: bool, name: bool) -> None:  # fmt: skip
        """Queue Langevin steps in place: of ``frac``, and of ``species`` where the logits ``name`` them.

        Args:
            n: number of steps.
            first: number of the first, for its noise; the next have the next ones.
            left: evaluations after the first one; what draws of types are named by, falling by one each step.
            drift: see `druse.sampling.langevin_update`.
            diffusion: see there.
            seed: of the run.
            purpose: of the noise.
            draw: whether types are drawn by their probabilities.
            name: whether there are types to be named.
        """
        self.device.upload(self._counters, np.array([first, left], np.uint32))
        self.device.upload(self._move, np.array([drift, diffusion]))
        langevin, types = self._key(seed, purpose, 0), self._key(seed, Purpose.TYPES, 0)
        langevin.step_at, types.step_at = self._counters.address, self._counters.row(1)

        def one() -> None:
            self._evaluation()
            if draw:
                self.draw(types)
            self.move(self.frac, self.species, self.scaled, langevin, 0.0, 0.0, name, move_at=self._move)
            _native.call("druse_advance", self.device.exec_, 2, self._by.address, self._counters.address)

        key = (seed, purpose, draw, name)
        for some in (TOGETHER, 1):
            while n >= some:
                self._once((some, *key), functools.partial(_repeat, one, some))()
                n -= some

    def _once(self, key: tuple[object, ...], work: Work) -> Work:
        """Work that has been captured, or is now; where a device refuses, it is queued piece by piece, and said so."""
        if key not in self._ready:
            keep = [(array, self.device.empty(array.shape, array.dtype)) for array in self._state]
            for array, kept in keep:
                self.device.copy(kept, array.address)
            for _ in range(self.device.warm_ups):  # what is allocated at a first call must not be while captured
                work()
            for array, kept in keep:
                self.device.copy(array, kept.address)
            self.device.wait()
            while len(self._ready) >= CAPTURED:  # the longest unused; nothing is queued now
                del self._ready[next(iter(self._ready))]

            try:
                self._ready[key] = self.device.capture(work)
            except MemoryError:
                raise
            except Exception as error:
                _log.warning("%s: steps are queued kernel by kernel, more slowly: %s", self.device.name, error)
                self._ready[key] = work
        self._ready[key] = self._ready.pop(key)
        return self._ready[key]

    @property
    def _state(self) -> tuple[Array, ...]:
        """What a step changes and the next one reads."""
        return self.frac, self.species, self.met, self._counters

    def _key(self, seed: int, purpose: int, step: int) -> _native.NoiseKey:
        return _native.NoiseKey(seed, purpose, step, self.ids.address, None)

    def draw(self, key: _native.NoiseKey) -> None:
        """Queue the adding of Gumbel noise to the logits."""
        _native.call(
            "druse_add_gumbel", self.device.exec_, key, self.shape.crystals, self.offsets.address, self.n_species,
            self.logits.address,
        )  # fmt: skip

    def draw_types(self, seed: int, step: int) -> None:
        """The same, by name."""
        self.draw(self._key(seed, Purpose.TYPES, step))

    def move(self, frac: Array, species: Array, vector: Array, key: _native.NoiseKey, drift: float, diffusion: float,
             name: bool, *, still: bool = False, move_at: Array | None = None) -> None:  # fmt: skip
        """Queue `druse.sampling.langevin_update` in place.

        Args:
            frac: the places.
            species: the types.
            vector: ``[atoms, 3]``.
            key: of the noise.
            drift: factor of the vector.
            diffusion: factor of the noise.
            name: whether the logits name the types.
            still: without noise.
            move_at: drift and diffusion, on the device, instead of the two.
        """
        logits, allowed = (self.logits.address, self.allowed.address) if name else (None, None)
        _native.call(
            "druse_langevin", self.device.exec_, key, self.shape.crystals, self.offsets.address, self.cells.address,
            drift, diffusion, None if move_at is None else move_at.address, vector.address,
            self.still.address if still else None, self.n_species, logits, allowed, frac.address, species.address,
            self.met.address,
        )  # fmt: skip

    def moved(self, frac: Array, species: Array, vector: Array, *, drift: float, diffusion: float, seed: int,
              step: int, purpose: int, name: bool) -> tuple[Array, Array]:  # fmt: skip
        """Queue `druse.sampling.langevin_update`; the new state."""
        places, types = self.copy(frac), self.copy(species)
        key = self._key(seed, purpose, step)
        self.move(places, types, vector, key, drift, diffusion, name, still=diffusion == 0)
        return places, types

    def copy(self, array: Array) -> Array:
        """Queue a copy."""
        copied = self.device.empty(array.shape, array.dtype)
        self.device.copy(copied, array.address)
        return copied

    def _evaluation(self) -> None:
        self._graph()
        self._bases()
        self._network()
        _native.call(
            "druse_force_sum", self.device.exec_, self.shape.atoms, self.shape.degree, *self._table,
            self._force.address, self.scaled.address,
        )  # fmt: skip

    def _graph(self) -> None:
        """Half edges, their table, and what fills both up."""
        c, n, h, d = self.shape
        exec_, offsets, edge_offsets = self.device.exec_, self.offsets.address, self._edge_offsets.address
        edges = _native.Edges(
            h - 1,
            *(array.address for array in (self._src, self._dst, self._image, self._distance, self._unit)),
            *(array.address for array in (self._edge_offsets, self._counts, self._status)),
            *((self._workspace.address, self._workspace.nbytes) if self._workspace else ()),
        )
        padded = _native.PaddedGraph(
            c, n, h, d, self._spec.cutoff,
            *(array.address for array in (self._src, self._dst, self._distance, self._in_edge, self._degree)),
            *(array.address for array in (self._slot, self._valid, self._status, self.met)),
        )  # fmt: skip
        _native.call(
            "druse_radius_graph", exec_, c, offsets, self.frac.address, self.cells.address, self._options, edges
        )
        _native.call(
            "druse_incidence", exec_, c, offsets, edge_offsets, self._src.address, self._dst.address, h, d, 2 * h - 1,
            *(array.address for array in (self._in_edge, self._slot, self._degree, self._status)),
        )  # fmt: skip
        _native.call("druse_pad_graph", exec_, offsets, edge_offsets, padded)

    def _bases(self) -> None:
        _, n, h, d = self.shape
        spec, exec_ = self._spec, self.device.exec_
        _native.call(
            "druse_radial_basis", exec_, h, self._distance.address, spec.cutoff, spec.n_radial, self._radial.address
        )
        _native.call("druse_legendre", exec_, n, d, spec.n_spherical, *self._table, self._legendre.address)

    @property
    def _table(self) -> tuple[int, int, int, int]:
        """Edges into atoms, as the bases and the sum of forces take them."""
        return self._in_edge.address, self._degree.address, self.shape.edges, self._unit.address

    @property
    def _options(self) -> _native.GraphOptions:
        spec = self._spec
        tolerance = spec.shell_tolerance if spec.mode == "exact" else None
        return options(spec.cutoff, spec.max_neighbors, spec.mode, spec.symmetrise, tolerance)


def _repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


class Resident:
    """A bundle's score network on a backend's device: buckets by their shape, made when they are needed.

    Attributes:
        lock: the device's, to be held by the thread that queues work; `druse._device.Device.enter` is its first act.
    """

    def __init__(
        self, backend: ResidentBackend, content: bytes, network: Network, precision: Precision,
        manifest: ConCDVAEManifest,
    ) -> None:  # fmt: skip
        """Makes nothing yet."""
        self.lock, self.device = backend.device.lock, backend.device
        self._make: Callable[[Shape], Bucket] = lambda shape: Bucket(
            backend, content, network, precision, manifest, shape
        )
        self._manifest, self._buckets = manifest, dict[Shape, Bucket]()

    def bucket(self, n_crystals: int, n_atoms: int, room: Room) -> Bucket:
        """The one for a bin.

        Raises:
            OutOfMemoryError: there is no memory for it, and none of any other bucket to be given back.
        """
        shape = Shape.of(n_crystals, n_atoms, self._manifest, room)
        if shape not in self._buckets:
            try:
                self._buckets[shape] = self._make(shape)
            except MemoryError as first:
                self.recover(first)
                try:
                    self._buckets[shape] = self._make(shape)
                except MemoryError as error:
                    self.recover(error)
                    raise OutOfMemoryError(f"{self.device.name} has no memory for {shape}: {error}") from error
        return self._buckets[shape]

    def clear(self) -> None:
        """Give every bucket's memory back."""
        for bucket in self._buckets.values():
            bucket.forget()
        self._buckets.clear()
        self.device.trim()

    def recover(self, error: BaseException) -> bool:
        """Give every bucket's memory back after an error, whose traceback would keep it; whether there was another one.

        Where there was, the same work may find memory now.
        """
        traceback.clear_frames(error.__traceback__)
        others = len(self._buckets) > 1
        self.clear()
        return others

    def score(
        self, crystals: Crystals, latent: np.ndarray, level: np.ndarray, room: Room | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One evaluation of a bin: `druse._score.Score`.

        Raises:
            OutOfMemoryError: the bin is too large for the device.
        """
        room = room or Room()
        with self.lock:
            self.device.enter()
            bucket = self.bucket(len(crystals), len(crystals.frac), room)
            try:
                bucket.fill(crystals, latent)
                self.device.upload(bucket.level, level.astype(np.int32))
                bucket.evaluate()
                scaled, logits = self.device.download(bucket.scaled), self.device.download(bucket.logits)
                status = bucket.status()[: len(crystals)]
            except MemoryError as error:
                del bucket
                if self.recover(error):
                    return self.score(crystals, latent, level, room)
                raise OutOfMemoryError(str(error)) from error
        if (status & OVERFLOW).any() and not room.is_last:
            return self.score(crystals, latent, level, room.more(status))
        n_atoms = len(crystals.frac)
        return scaled[:n_atoms].copy(), logits[:n_atoms].copy(), status.copy()
