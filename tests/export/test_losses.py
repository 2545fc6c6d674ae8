"""The terms of the joint loss, against slow twins and distributions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs PyTorch")
pytest.importorskip("lightning", reason="training needs Lightning")

from training_data import SMALL, rock_salts  # noqa: E402

from druse.conditions import ClassProperty, ScalarProperty  # noqa: E402
from druse.lattice import cells_from_parameters  # noqa: E402
from druse_export.models.con_cdvae import ConCDVAE, Predictor  # noqa: E402
from druse_export.models.gemnet import Scale  # noqa: E402
from druse_export.training.batches import CrystalBatches  # noqa: E402
from druse_export.training.losses import (  # noqa: E402
    coordinate_loss,
    kl_loss,
    mean_over_crystals,
    minimum_image,
    noisy_types,
    type_loss,
)
from druse_export.training.vae import (  # noqa: E402
    Draws,
    decoder_cells,
    fit_scales,
    joint_loss,
    noisy_crystals,
    repeated,
)


def draws() -> Draws:
    return Draws((0,), torch.device("cpu"))


@pytest.fixture
def model() -> ConCDVAE:
    torch.manual_seed(0)
    return ConCDVAE(SMALL)


@pytest.fixture
def batches() -> CrystalBatches:
    return CrystalBatches(rock_salts(40, 0), SMALL.conditions, SMALL)


@given(seed=st.integers(0, 10**6), angle=st.floats(62, 118), stretch=st.floats(1.0, 3.0))
def test_minimum_image_is_the_nearest_of_all(seed: int, angle: float, stretch: float) -> None:
    from pymatgen.core import Lattice

    rng = np.random.default_rng(seed)
    cell = cells_from_parameters(np.array([[3.0, 3.0 * stretch, 4.0]]), np.array([[90.0, angle, 90.0]]))[0]
    reduced = Lattice(cell).get_niggli_reduced_lattice().matrix
    frac = rng.normal(size=(20, 3)) * 3
    found = minimum_image(torch.from_numpy(frac), torch.from_numpy(np.tile(reduced, (20, 1, 1)))).numpy()
    wrapped = frac - np.round(frac)
    images = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    lengths = np.linalg.norm((wrapped[:, None] + images) @ reduced, axis=2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths.min(1), atol=1e-10)
    whole = np.linalg.solve(reduced.T, found.T).T - frac  # it is an image of the difference
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-8)


def test_losses_of_atoms_and_their_mean() -> None:
    rng = torch.Generator().manual_seed(0)
    difference, score = torch.randn(5, 3, generator=rng), torch.randn(5, 3, generator=rng)
    sigma, crystal, n_atoms = (
        torch.tensor([0.1, 0.1, 2.0, 2.0, 2.0]),
        torch.tensor([0, 0, 1, 1, 1]),
        torch.tensor([2, 3]),
    )
    per_atom = coordinate_loss(score, difference, sigma)
    target = difference / sigma[:, None] ** 2  # the paper's form: sigma^2 / 2 |target - score / sigma|^2
    twin = [0.5 * s**2 * ((t - c / s) ** 2).sum() for s, t, c in zip(sigma, target, score, strict=True)]
    torch.testing.assert_close(per_atom, torch.stack(twin))
    expected = (per_atom[:2].mean() + per_atom[2:].mean()) / 2
    torch.testing.assert_close(mean_over_crystals(per_atom, crystal, n_atoms), expected)
    assert coordinate_loss(difference / sigma[:, None], difference, sigma).abs().max() < 1e-10
    logits, types = torch.randn(5, 100, generator=rng), torch.tensor([1, 8, 100, 26, 3])
    twin = [-torch.log_softmax(x, 0)[z - 1] / s for x, z, s in zip(logits, types, sigma, strict=True)]
    torch.testing.assert_close(type_loss(logits, types, sigma), torch.stack(twin))


def test_divergence_is_the_known_one() -> None:
    mu, log_var = torch.randn(7, 16), torch.randn(7, 16)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * log_var))
    p = torch.distributions.Normal(torch.zeros(16), torch.ones(16))
    expected = torch.distributions.kl_divergence(q, p).sum(1).mean()
    torch.testing.assert_close(kl_loss(mu, log_var), expected)


@pytest.mark.parametrize("type_sigma", [0.01, 0.5, 5.0])
def test_noisy_types_have_the_papers_distribution(type_sigma: float) -> None:
    composition = torch.full((100,), -20.0)
    composition[[2, 7, 25]] = torch.tensor([0.0, 1.0, 2.0])
    n = 40_000
    uniform = (torch.arange(n) + 0.5) / n
    drawn = noisy_types(torch.full((n,), 8), composition.expand(n, -1), torch.full((n,), type_sigma), uniform)
    weights = torch.nn.functional.one_hot(torch.tensor(7), 100) + type_sigma * torch.softmax(composition, 0)
    share = torch.bincount(drawn, minlength=101)[1:] / n
    torch.testing.assert_close(share, weights / weights.sum(), atol=2e-4, rtol=0)


def test_ends_of_the_draw_stay_elements() -> None:
    uniform = torch.tensor([1e-6, 1.0 - 2**-24])
    for element in (1, 100):
        drawn = noisy_types(torch.tensor([element] * 2), torch.zeros(2, 100), torch.full((2,), 1e-9), uniform)
        assert drawn.tolist() == [element] * 2
    ends = noisy_types(
        torch.tensor([8, 8]), torch.zeros(2, 100), torch.full((2,), 5.0), torch.tensor([0.0, 1.0 - 2**-24])
    )
    assert ends.tolist() == [1, 100]


def test_levels_are_spread_and_every_one_as_likely() -> None:
    counts = np.zeros(10, int)
    for k in range(300):
        levels = Draws((k,), torch.device("cpu")).levels(20, 10).numpy()
        assert (np.bincount(levels, minlength=10) == 2).all()
        counts += np.bincount(Draws((k, 1), torch.device("cpu")).levels(7, 10).numpy(), minlength=10)
    assert abs(counts / counts.sum() - 0.1).max() < 0.012  # 2,100 draws, more evenly spread than independent ones


def test_predicted_lattices_that_are_none_give_way_to_the_true_ones() -> None:
    true = np.tile(np.eye(3) * 5, (5, 1, 1))
    lengths = torch.tensor(
        [[3.0, 4.0, 5.0], [-1.0, 4.0, 5.0], [3.0, 4.0, float("nan")], [3.0, 4.0, 5.0], [3.0, 4.0, 5.0]]
    )
    angles = torch.tensor([[90.0, 90.0, 90.0]] * 3 + [[10.0, 20.0, 170.0], [60.0, 60.0, 119.99]])
    cells = decoder_cells(lengths, angles, true)
    np.testing.assert_allclose(cells[0], np.diag([3.0, 4.0, 5.0]), atol=1e-6)
    np.testing.assert_array_equal(cells[1:], true[1:])


def test_noise_moves_atoms_by_sigma_and_the_target_leads_back(model: ConCDVAE, batches: CrystalBatches) -> None:
    batch = batches[list(range(40))]
    level = torch.full((40,), 9)
    composition = torch.zeros(40, 100)
    noisy = noisy_crystals(model, batch, composition, batch.cells, level, draws())
    sigma = float(model.sigmas[9])
    assert 0.85 < float(noisy.difference.std()) / sigma < 1.15  # 240 numbers
    assert float(noisy.geometry.radial.max()) > 0
    assert (noisy.atom_types == batch.atom_types).float().mean() > 0.95
    far = noisy_crystals(model, batch, composition, batch.cells, torch.zeros(40, dtype=torch.int64), draws())
    assert (
        float(far.difference.norm(dim=1).max()) < 7.0 * 3**0.5 / 2 + 1e-3
    )  # never further than half the cell's diagonal


def test_the_target_is_in_the_true_cell_whatever_cell_the_decoder_sees(
    model: ConCDVAE, batches: CrystalBatches
) -> None:
    batch, level = batches[list(range(8))], torch.full((8,), 6)
    seen = noisy_crystals(model, batch, torch.zeros(8, 100), batch.cells * 1.5, level, draws())
    true = noisy_crystals(model, batch, torch.zeros(8, 100), batch.cells, level, draws())
    # the same Cartesian noise is two thirds of it in fractions of the larger cell, which the true cell gives a length
    small = true.difference.norm(dim=1) < 1.0  # no other image is nearer
    assert small.sum() > 8
    torch.testing.assert_close(seen.difference[small], true.difference[small] / 1.5, atol=1e-5, rtol=1e-5)


def test_the_predictor_learns_values_on_the_scale_of_their_range() -> None:
    torch.manual_seed(0)
    gap, parity = ScalarProperty("gap", -2.0, 6.0, 0.5), ClassProperty("parity", 2)
    predictor = Predictor((gap, parity), 4, 8).eval()
    z, values = torch.randn(5, 4), {"gap": torch.tensor([-2.0, 0.0, 2.0, 6.0, 1.0]), "parity": torch.ones(5)}
    outputs, losses = predictor(z), predictor.losses(z, values)
    scaled = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.375])
    torch.testing.assert_close(losses["gap"], ((outputs["gap"] - scaled) ** 2).mean())
    torch.testing.assert_close(losses["parity"], -torch.log_softmax(outputs["parity"], 1)[:, 1].mean())
    predictor.train().losses(z, values)  # one evaluation a step: its statistics move once
    assert int(predictor.state_dict()["heads.0.1.num_batches_tracked"]) == 1


def test_decoder_does_not_teach_the_encoder(model: ConCDVAE, batches: CrystalBatches) -> None:
    outputs = joint_loss(model, batches[list(range(8))], draws(), teacher_forcing=True, n_draws=2)
    names = dict(model.named_parameters())
    loss = outputs.losses["coordinates"] + outputs.losses["types"]
    gradients = dict(zip(names, torch.autograd.grad(loss, list(names.values()), allow_unused=True), strict=True))
    reached = {name.split(".")[0] for name, g in gradients.items() if g is not None and g.abs().max() > 0}
    assert reached == {"condition", "z_condition", "time", "decoder"}


def test_every_parameter_is_taught(model: ConCDVAE, batches: CrystalBatches) -> None:
    outputs = joint_loss(model, batches[list(range(8))], draws(), teacher_forcing=False)
    sum(outputs.losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(bool(torch.isfinite(value)) for value in outputs.losses.values())


def test_several_levels_of_a_batch_are_the_batch_again(batches: CrystalBatches) -> None:
    batch = batches[[3, 1, 2]]
    twice = repeated(batch, 2)
    assert twice.offsets.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert twice.crystal.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    np.testing.assert_array_equal(twice.frac, np.tile(batch.frac, (2, 1)))
    np.testing.assert_array_equal(twice.species, twice.atom_types.numpy())
    assert repeated(batch, 1) is batch


def test_scales_give_sums_a_mean_square_of_one(model: ConCDVAE, batches: CrystalBatches) -> None:
    batch = batches[list(range(16))]
    fit_scales(model, batch, 0)
    seen = []
    for name, scale in model.decoder.named_modules():
        if isinstance(scale, Scale) and not name.startswith("forces"):
            scale.register_forward_hook(lambda _m, _i, out: seen.append(float(out.detach().square().mean())))
    same = Draws((0, 2), torch.device("cpu"))
    level = same.levels(16, SMALL.n_levels)
    noisy = noisy_crystals(model, batch, torch.zeros(16, 100), batch.cells, level, same)
    score, _ = model.score(same.normal(16, SMALL.latent), level, noisy.atom_types, noisy.geometry)
    np.testing.assert_allclose(seen, 1.0, rtol=1e-4)
    assert abs(float(score.detach().square().mean().sqrt()) - 0.1) < 1e-4
