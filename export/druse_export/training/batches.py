"""What a training step takes: crystals, their properties, and an order that depends on the seed alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.crystals import Crystals
from druse.elements import element_features
from druse.errors import InputError
from druse.lattice import parameters_from_cells
from druse_export.data import CrystalTable
from druse_export.models.con_cdvae import ConCDVAEConfig
from druse_export.models.dimenet import EncoderGeometry
from druse_export.models.geometry import crystal_of_atom, encoder_geometry, encoder_graph
from druse_export.training.settings import Settings


class CrystalBatch(NamedTuple):
    """Crystals of one step. Arrays stay on the host, where graphs are made; tensors follow the model.

    Attributes:
        frac, cells, offsets, species: of the crystals, as in `druse.Crystals`.
        atom_types: ``[N]`` atomic numbers.
        crystal: ``[N]`` the crystal of each atom.
        n_atoms: ``[B]``.
        lengths, angles: ``[B, 3]`` Angstrom and degrees.
        values: of the properties, by name: scalars and class numbers ``[B]``, compositions ``[B, 92]``.
        encoder: the encoder's view of the crystals.
    """

    frac: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray
    species: np.ndarray
    atom_types: Tensor
    crystal: Tensor
    n_atoms: Tensor
    lengths: Tensor
    angles: Tensor
    values: dict[str, Tensor]
    encoder: EncoderGeometry

    @property
    def crystals(self) -> Crystals:
        """The crystals, as the runtime knows them."""
        return Crystals(self.frac, self.cells, self.offsets, self.species)


def left_out(table: CrystalTable, properties: Sequence[Property], config: ConCDVAEConfig) -> dict[str, np.ndarray]:
    """Which crystals a model cannot take: masks ``[crystals]`` by reason, each crystal under its first one.

    Raises:
        InputError: the table lacks a property altogether, or a class property has values that are no whole numbers.
    """
    crystals = table.crystals
    n_known = min(config.encoder.n_elements - 1, config.decoder.n_species, len(element_features()) - 1)
    owner = np.repeat(np.arange(len(table)), crystals.n_atoms)
    wrong = {
        f"with more than {config.max_atoms} atoms": crystals.n_atoms > config.max_atoms,
        f"with elements beyond number {n_known}": np.isin(
            np.arange(len(table)), owner[(crystals.species < 1) | (crystals.species > n_known)]
        ),
    }
    for spec in properties:
        if isinstance(spec, CompositionProperty):
            continue
        if spec.name not in table.properties:
            known = ", ".join(sorted(table.properties))
            raise InputError(f"the data set has no property {spec.name!r}; it has {known}")
        values = table.properties[spec.name]
        wrong[f"without {spec.name}"] = ~np.isfinite(values)
        if isinstance(spec, ClassProperty):
            known = values[np.isfinite(values)]
            if len(broken := known[known != np.round(known)]):
                raise InputError(
                    f"the class property {spec.name!r} must have whole numbers, got {broken[0]:g}; data.classes makes "
                    "classes of a column and a threshold"
                )
            wrong[f"of no class of {spec.name}"] = (values < 0) | (values >= spec.n_classes)
    before = np.zeros(len(table), bool)
    for reason, mask in wrong.items():
        wrong[reason] = mask & ~before
        before = before | mask
    return {reason: mask for reason, mask in wrong.items() if mask.any()}


def usable(table: CrystalTable, properties: Sequence[Property], config: ConCDVAEConfig) -> CrystalTable:
    """The crystals that a model can take: all but those that are `left_out`.

    Raises:
        InputError: see there, or no crystal is left.
    """
    wrong = left_out(table, properties, config)
    keep = ~np.any([np.zeros(len(table), bool), *wrong.values()], axis=0)
    if not keep.any():
        names = ", ".join(spec.name for spec in properties)
        reasons = ", ".join(f"{mask.sum():,} {reason}" for reason, mask in wrong.items()) or "it is empty"
        raise InputError(f"no crystal of at most {config.max_atoms} atoms has all of the properties {names}: {reasons}")
    return table.select(keep)


def property_values(table: CrystalTable, properties: Sequence[Property]) -> dict[str, Tensor]:
    """Values as the networks take them: float32 scalars, int64 classes, averaged element features (eq. 13)."""
    values = {}
    for spec in properties:
        if isinstance(spec, ScalarProperty):
            values[spec.name] = torch.from_numpy(table.properties[spec.name].astype(np.float32))
        elif isinstance(spec, ClassProperty):
            values[spec.name] = torch.from_numpy(table.properties[spec.name].astype(np.int64))
        else:
            sums = np.add.reduceat(
                element_features()[table.crystals.species].astype(np.float64), table.crystals.offsets[:-1], axis=0
            )
            values[spec.name] = torch.from_numpy((sums / table.crystals.n_atoms[:, None]).astype(np.float32))
    return values


class CrystalBatches(Dataset[CrystalBatch]):
    """A data set whose items are batches, asked for by lists of indices."""

    def __init__(self, table: CrystalTable, properties: Sequence[Property], config: ConCDVAEConfig) -> None:
        self.table = usable(table, properties, config)
        self.config = config
        self.values = property_values(self.table, properties)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, indices: Sequence[int]) -> CrystalBatch:
        crystals = self.table.crystals.take(np.asarray(indices))
        graph = encoder_graph(crystals, self.config.encoder, mode=self.config.graph_mode)
        lengths, angles = parameters_from_cells(crystals.cells)
        return CrystalBatch(
            crystals.frac,
            crystals.cells,
            crystals.offsets,
            crystals.species,
            atom_types=torch.from_numpy(crystals.species.astype(np.int64)),
            crystal=crystal_of_atom(crystals.offsets),
            n_atoms=torch.from_numpy(crystals.n_atoms),
            lengths=torch.from_numpy(lengths.astype(np.float32)),
            angles=torch.from_numpy(angles.astype(np.float32)),
            values={name: values[torch.as_tensor(indices)] for name, values in self.values.items()},
            encoder=encoder_geometry(graph, self.config.encoder),
        )


class Stream(Sampler[list[int]]):
    """Batches of a shuffled data set, again and again; what epoch e holds depends on seed and e alone.

    An epoch is ``steps`` batches, which need not be a pass over the data. In a run on several devices each takes every
    ``world``-th batch. A resumed run therefore sees what an undisturbed one does.
    """

    def __init__(self, size: int, batch_size: int, seed: int, *, steps: int = 0, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.seed = size, min(batch_size, size), seed
        self.rank, self.world = rank, world
        self.per_pass = size // self.batch_size
        self.steps = steps or max(1, self.per_pass // world)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        order, order_of = np.empty(0, np.int64), -1
        for step in range(self.steps):
            number = (self.epoch * self.steps + step) * self.world + self.rank
            turn, place = divmod(number, self.per_pass)
            if turn != order_of:
                order, order_of = np.random.default_rng((self.seed, turn)).permutation(self.size), turn
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class InOrder(Sampler[list[int]]):
    """Every crystal once, in order; several devices share the batches, smaller ones where some would have none."""

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if math.ceil(size / batch_size) < world:
            batch_size = max(1, size // world)
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    def __len__(self) -> int:
        return len(range(self.rank, math.ceil(self.size / self.batch_size), self.world))

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.rank, math.ceil(self.size / self.batch_size), self.world):
            yield list(range(number * self.batch_size, min((number + 1) * self.batch_size, self.size)))


def loaders(
    trained: Dataset[Any], held: Dataset[Any], settings: Settings, *, rank: int, world: int, workers: int = 0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of training and validation data; an index of either data set is the list of a batch's members.

    ``workers`` processes prepare batches beside the one that trains.
    """
    sizes = [len(data) for data in (trained, held)]  # type: ignore[arg-type]
    if sizes[1] < world:
        raise InputError(f"{world} devices need {world} crystals of validation data or more, got {sizes[1]}")
    options: dict[str, Any] = {
        "batch_size": None,
        "collate_fn": _as_it_is,  # the default would make tensors of the host's arrays
        "num_workers": workers,
        "persistent_workers": workers > 0,
        # a fork would inherit the native library's threads without their work
        "multiprocessing_context": "spawn" if workers else None,
    }
    stream = Stream(
        sizes[0], settings.batch_size, settings.seed, steps=settings.steps_per_epoch, rank=rank, world=world
    )
    order = InOrder(sizes[1], settings.batch_size, rank=rank, world=world)
    return DataLoader(trained, sampler=stream, **options), DataLoader(held, sampler=order, **options)


def _as_it_is(batch: Any) -> Any:
    return batch
