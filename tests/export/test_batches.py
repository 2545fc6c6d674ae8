"""The order of a run's batches, properties as tensors, and the moving average."""

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs PyTorch")
pytest.importorskip("lightning", reason="training needs Lightning")

from training_data import ENERGY, PARITY, SMALL, rock_salts  # noqa: E402

from druse import InputError  # noqa: E402
from druse.conditions import ClassProperty, CompositionProperty, ScalarProperty  # noqa: E402
from druse.elements import element_features  # noqa: E402
from druse_export.training.average import Average  # noqa: E402
from druse_export.training.batches import (  # noqa: E402
    CrystalBatches,
    InOrder,
    Stream,
    left_out,
    loaders,
    property_values,
    usable,
)
from druse_export.training.properties import FULL, KNOWN, resolve  # noqa: E402
from druse_export.training.settings import Settings  # noqa: E402


@given(
    size=st.integers(1, 60),
    batch=st.integers(1, 20),
    world=st.integers(1, 3),
    steps=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_devices_share_a_stream_that_epochs_cut_anywhere(
    size: int, batch: int, world: int, steps: int, seed: int
) -> None:
    def epoch(e: int, rank: int, world: int, steps: int) -> list[list[int]]:
        stream = Stream(size, batch, seed, steps=steps, rank=rank, world=world)
        stream.set_epoch(e)
        assert len(stream) == steps
        return list(stream)

    whole = epoch(0, 0, 1, steps * world * 3)
    shared = [epoch(e, rank, world, steps) for e in range(3) for rank in range(world)]
    merged = [shared[e * world + rank][k] for e in range(3) for k in range(steps) for rank in range(world)]
    assert merged == whole
    per_pass = size // min(batch, size)
    for turn in range(len(whole) // per_pass):
        seen = [i for indices in whole[turn * per_pass : (turn + 1) * per_pass] for i in indices]
        assert len(seen) == len(set(seen)) == per_pass * min(batch, size)


@given(size=st.integers(1, 50), batch=st.integers(1, 20), world=st.integers(1, 4))
def test_validation_sees_every_crystal_once(size: int, batch: int, world: int) -> None:
    size = max(size, world)
    orders = [InOrder(size, batch, rank=rank, world=world) for rank in range(world)]
    assert sorted(i for order in orders for indices in order for i in indices) == list(range(size))
    assert all(len(list(order)) == len(order) > 0 for order in orders)


def test_values_of_scalars_classes_and_compositions() -> None:
    table = rock_salts(6, 0)
    values = property_values(table, (ENERGY, PARITY, CompositionProperty()))
    assert values["energy"].dtype == torch.float32
    assert values["parity"].dtype == torch.int64
    for b, crystal in enumerate(table.crystals):
        expected = element_features()[crystal.species].mean(0)
        np.testing.assert_allclose(values["formula"][b].numpy(), expected, atol=1e-6)


def test_crystals_without_a_property_are_left_out() -> None:
    table = rock_salts(6, 0)
    table.properties["energy"][2] = np.nan
    table.properties["parity"][4] = 2
    assert usable(table, (ENERGY, PARITY), SMALL).ids == ("0", "1", "3", "5")
    counts = {reason: mask.nonzero()[0].tolist() for reason, mask in left_out(table, (ENERGY, PARITY), SMALL).items()}
    assert counts == {"without energy": [2], "of no class of parity": [4]}
    table.properties["parity"][3] = 0.5
    with pytest.raises(InputError, match=r"class property 'parity' must have whole numbers, got 0\.5"):
        usable(table, (PARITY,), SMALL)
    with pytest.raises(InputError, match="no property 'gap'; it has energy, parity"):
        usable(table, (ScalarProperty("gap", 0.0, 1.0, 0.1),), SMALL)
    with pytest.raises(InputError, match="no crystal of at most 1 atoms"):
        usable(table, (ENERGY,), msgspec.structs.replace(SMALL, max_atoms=1))


def test_elements_that_no_network_has_are_left_out() -> None:
    table = rock_salts(6, 0)
    species = table.crystals.species.copy()
    species[[3, 8]] = 94, 95  # the encoder's table has 95 rows, of which row 0 is no element's
    table = dataclasses.replace(table, crystals=table.crystals.replace(species=species))
    assert usable(table, (ENERGY,), SMALL).ids == ("0", "1", "2", "3", "5")
    wide = msgspec.structs.replace(SMALL, encoder=msgspec.structs.replace(SMALL.encoder, n_elements=119))
    species[8] = 101
    assert list(left_out(table, (ENERGY,), wide)) == ["with elements beyond number 100"]


def test_devices_without_validation_data_are_refused() -> None:
    trained, held = (CrystalBatches(rock_salts(n, 0), (ENERGY,), SMALL) for n in (9, 2))
    with pytest.raises(InputError, match="3 devices need 3 crystals of validation data or more, got 2"):
        loaders(trained, held, Settings(), rank=0, world=3)


def test_a_batch_does_not_depend_on_its_neighbours() -> None:
    batches = CrystalBatches(rock_salts(10, 0), (ENERGY,), SMALL)
    alone, among = batches[[4]], batches[[1, 4, 7]]
    mine = among.encoder.dst // 2 == 1
    np.testing.assert_array_equal(among.encoder.distance[mine], alone.encoder.distance)
    assert among.values["energy"][1] == alone.values["energy"][0]


def test_average_is_the_recursion_written_out() -> None:
    torch.manual_seed(0)
    model = torch.nn.BatchNorm1d(3)
    average = Average(model, 0.9)
    twin = model.weight.detach().double().clone()
    for n in range(40):
        with torch.no_grad():
            model.weight.add_(torch.randn(3))
            model.num_batches_tracked.add_(1)
        average.update(model)
        keep = min(0.9, (1 + n) / (10 + n))
        twin = keep * twin + (1 - keep) * model.weight.detach().double()
    torch.testing.assert_close(average.model.weight.double(), twin, atol=1e-5, rtol=0)
    assert int(average.model.num_batches_tracked) == 40
    assert not average.train().model.training
    assert [name for name, p in average.named_parameters() if p.requires_grad] == []


def test_properties_by_name() -> None:
    table = rock_salts(20, 0)
    energies = table.properties["energy"]
    assert resolve(["band_gap", ENERGY], table) == (KNOWN["band_gap"], ENERGY)
    (column,) = resolve(["energy"], table)
    assert isinstance(column, ScalarProperty)
    assert (column.minimum, column.maximum) == (energies.min(), energies.max())
    assert column.n_gaussians in (41, 42)
    assert resolve(["parity=2", "energy=0:8:0.5:eV"], table) == (
        ClassProperty("parity", 2),
        ScalarProperty("energy", 0.0, 8.0, 0.5, "eV"),
    )
    assert {KNOWN[name].name for name in FULL} == set(FULL)


@pytest.mark.parametrize("text", ["energy=", "energy=a", "energy=1:2", "energy=2:1:0.5", "nothing", "energy=1:2:3:4:5"])
def test_properties_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError):
        resolve([text] if text != "energy=" else ["x="], rock_salts(3, 0))
