"""Step one: the joint loss of encoder, heads, Predictor and decoder (eq. 12), with teacher forcing of the lattice."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse.crystals import Crystals
from druse.lattice import cells_from_parameters
from druse_export.models.con_cdvae import ConCDVAE, HeadOutputs
from druse_export.models.gemnet import Scale, ScoreGeometry
from druse_export.models.geometry import score_geometry, score_graph
from druse_export.training.batches import CrystalBatch
from druse_export.training.losses import (
    coordinate_loss,
    kl_loss,
    mean_over_crystals,
    minimum_image,
    noisy_types,
    type_loss,
)
from druse_export.training.module import TrainingModule
from druse_export.training.settings import VAESettings


class Draws:
    """Random numbers of one step, from its seed alone: the same on every device."""

    def __init__(self, seed: tuple[int, ...], device: torch.device) -> None:
        self.generator, self.device = np.random.default_rng(seed), device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws."""
        return torch.from_numpy(self.generator.standard_normal(shape, np.float32)).to(self.device)

    def uniform(self, n: int) -> Tensor:
        """Draws in [0, 1)."""
        return torch.from_numpy(self.generator.random(n, np.float32)).to(self.device)

    def levels(self, n: int, n_levels: int) -> Tensor:
        """``n`` noise levels, each uniform, spread evenly over the ladder."""
        places = (self.generator.permutation(n) + self.generator.random(n)) / n
        return torch.from_numpy(np.minimum((places * n_levels).astype(np.int64), n_levels - 1)).to(self.device)


class NoisyCrystals(NamedTuple):
    """What the decoder sees and what it should say.

    Attributes:
        atom_types: ``[N]`` noisy atomic numbers.
        geometry: of the noisy crystals.
        difference: ``[N, 3]`` Angstrom, from the noisy to the true positions.
    """

    atom_types: Tensor
    geometry: ScoreGeometry
    difference: Tensor


def decoder_cells(lengths: Tensor, angles: Tensor, true: np.ndarray) -> np.ndarray:
    """Cells of predicted lengths and angles ``[B, 3]``; the true one where a prediction describes none.

    A prediction counts if it has positive lengths below 1,000 Angstrom and more than a fiftieth of a box's volume.
    """
    parameters = torch.cat([lengths, angles], dim=1).detach().cpu().numpy().astype(np.float64)
    cosine = np.cos(np.radians(parameters[:, 3:]))
    gram = 1 - np.sum(cosine**2, axis=1) + 2 * np.prod(cosine, axis=1)
    with np.errstate(invalid="ignore"):
        good = np.all((parameters[:, :3] > 0.5) & (parameters[:, :3] < 1000), axis=1) & (gram > 0.02**2)
        good &= np.all((parameters[:, 3:] > 5) & (parameters[:, 3:] < 175), axis=1)
    cells = true.copy()
    if good.any():
        cells[good] = cells_from_parameters(parameters[good, :3], parameters[good, 3:])
    return cells


def noisy_crystals(
    model: ConCDVAE, batch: CrystalBatch, composition: Tensor, cells: np.ndarray, level: Tensor, draws: Draws
) -> NoisyCrystals:
    """Crystals with noise at ``level`` ``[B]``: Gaussian on positions, types drawn by eq. 6.

    The graph is of the cells given (predicted ones, without teacher forcing); the difference is in the true ones.
    A crystal that has no graph in the cell given gets one in its true cell.
    """
    sigma = model.sigmas[level][batch.crystal]
    atom_types = noisy_types(
        batch.atom_types, composition[batch.crystal], model.type_sigmas[level][batch.crystal], draws.uniform(len(sigma))
    )
    noise = (draws.normal(len(sigma), 3) * sigma[:, None]).cpu().numpy().astype(np.float64)
    atoms = batch.crystal.cpu().numpy()

    def noisy(cells: np.ndarray) -> np.ndarray:
        return batch.frac + np.einsum("ni,nij->nj", noise, np.linalg.inv(cells)[atoms])

    frac, config = noisy(cells), model.config
    graph = score_graph(Crystals(frac, cells, batch.offsets, batch.species), config.decoder, mode=config.graph_mode)
    if not graph.ok.all():
        cells = np.where(graph.ok[:, None, None], cells, batch.cells)
        frac = noisy(cells)
        graph = score_graph(Crystals(frac, cells, batch.offsets, batch.species), config.decoder, mode=config.graph_mode)
    geometry = score_geometry(graph, config.decoder, sigma.device)
    frac_difference = torch.from_numpy(batch.frac - frac)
    difference = minimum_image(frac_difference, torch.from_numpy(batch.cells[atoms])).float()
    return NoisyCrystals(atom_types, geometry, difference.to(sigma.device))


def repeated(batch: CrystalBatch, n: int) -> CrystalBatch:
    """The batch, ``n`` times over, for as many noise levels; the encoder's view stays as it is."""
    if n == 1:
        return batch
    crystals = batch.crystals.take(np.tile(np.arange(len(batch.n_atoms)), n))
    n_crystals = len(batch.n_atoms)
    return batch._replace(
        frac=crystals.frac,
        cells=crystals.cells,
        offsets=crystals.offsets,
        species=crystals.species,
        atom_types=batch.atom_types.repeat(n),
        crystal=torch.cat([batch.crystal + k * n_crystals for k in range(n)]),
        n_atoms=batch.n_atoms.repeat(n),
    )


class Outputs(NamedTuple):
    """Losses by term, and what metrics are made of."""

    losses: dict[str, Tensor]
    heads: HeadOutputs
    logits: Tensor
    noisy_batch: CrystalBatch


def joint_loss(
    model: ConCDVAE, batch: CrystalBatch, draws: Draws, *, teacher_forcing: bool, n_draws: int = 1
) -> Outputs:
    """Every term of eq. 12, unweighted. The decoder's gradient reaches the condition and z_con, not the encoder."""
    condition = model.condition(batch.values)
    mu, log_var = model.encode(batch.atom_types, batch.encoder)
    mu, log_var = mu.float(), log_var.float()
    z = mu + torch.exp(0.5 * log_var) * draws.normal(*mu.shape)
    predicted = model.predictor.losses(z, batch.values)
    heads = HeadOutputs(*(output.float() for output in model.heads(model.mix_latent(z, condition))))
    z_con = model.mix_latent(z.detach(), condition)
    lengths, angles = model.heads.lengths_and_angles(heads.lattice, batch.n_atoms)

    cells = batch.cells if teacher_forcing else decoder_cells(lengths, angles, batch.cells)
    noisy_batch = repeated(batch, n_draws)
    level = draws.levels(len(noisy_batch.n_atoms), model.config.n_levels)
    composition = heads.composition.detach().repeat(n_draws, 1)
    noisy = noisy_crystals(model, noisy_batch, composition, np.tile(cells, (n_draws, 1, 1)), level, draws)
    score, logits = model.score(z_con.repeat(n_draws, 1), level, noisy.atom_types, noisy.geometry)

    def averaged(per_atom: Tensor, of: CrystalBatch) -> Tensor:
        return mean_over_crystals(per_atom, of.crystal, of.n_atoms)

    sigma = model.sigmas[level][noisy_batch.crystal]
    type_sigma = model.type_sigmas[level][noisy_batch.crystal]
    scaled = model.heads.scaled_lattice(batch.lengths, batch.angles, batch.n_atoms)
    per_atom = functional.cross_entropy(heads.composition[batch.crystal], batch.atom_types - 1, reduction="none")
    losses = {
        "n_atoms": functional.cross_entropy(heads.n_atoms, batch.n_atoms),
        "lattice": functional.mse_loss(heads.lattice, scaled),
        "composition": averaged(per_atom, batch),
        "coordinates": averaged(coordinate_loss(score.float(), noisy.difference, sigma), noisy_batch),
        "types": averaged(type_loss(logits, noisy_batch.atom_types, type_sigma), noisy_batch),
        "kl": kl_loss(mu, log_var),
        "property": sum(predicted.values(), torch.zeros((), device=mu.device)),
    }
    return Outputs(losses, heads, logits, noisy_batch)


def metrics(model: ConCDVAE, batch: CrystalBatch, outputs: Outputs) -> dict[str, Tensor]:
    """Accuracies of atom count and types; mean absolute errors of lengths (relative), angles (degrees), volume."""
    lengths, angles = model.heads.lengths_and_angles(outputs.heads.lattice, batch.n_atoms)
    correct = (outputs.logits.argmax(1) + 1 == outputs.noisy_batch.atom_types).float()

    def volume(lengths: Tensor, angles: Tensor) -> Tensor:
        cosine = torch.cos(torch.deg2rad(angles))
        gram = 1 - cosine.square().sum(1) + 2 * cosine.prod(1)
        return lengths.prod(1) * gram.clamp(min=0).sqrt()

    true_volume = volume(batch.lengths, batch.angles)
    return {
        "n_atoms_accuracy": (outputs.heads.n_atoms.argmax(1) == batch.n_atoms).float().mean(),
        "type_accuracy": mean_over_crystals(correct, outputs.noisy_batch.crystal, outputs.noisy_batch.n_atoms),
        "lengths_error": torch.mean(torch.abs(lengths - batch.lengths) / batch.lengths),
        "angles_error": torch.mean(torch.abs(angles - batch.angles)),
        "volume_error": torch.mean(torch.abs(volume(lengths, angles) - true_volume) / true_volume),
    }


@torch.no_grad()
def fit_scales(model: ConCDVAE, batch: CrystalBatch, seed: int) -> None:
    """Set GemNet's scale factors so that every scaled sum or product has a mean square of 1 on a batch.

    The factors of the force heads act on weights; theirs make the score of the untrained network a tenth in size.
    Reference: Gasteiger, Becker, Guennemann, NeurIPS 2021, section 6 (scaling factors fitted on data).
    """
    device = model.sigmas.device
    draws = Draws((seed, 2), device)
    level = draws.levels(len(batch.n_atoms), model.config.n_levels)
    composition = torch.zeros(len(batch.n_atoms), model.config.decoder.n_species, device=device)
    noisy = noisy_crystals(model, batch, composition, batch.cells, level, draws)
    z_con = draws.normal(len(batch.n_atoms), model.config.latent)
    scales = [m for name, m in model.decoder.named_modules() if isinstance(m, Scale) and not name.startswith("forces")]

    def fit(scale: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scale.factor.fill_(float(inputs[0].float().square().mean().rsqrt()))  # type: ignore[operator]

    hooks = [scale.register_forward_pre_hook(fit) for scale in scales]
    try:
        score, _ = model.score(z_con, level, noisy.atom_types, noisy.geometry)
    finally:
        for hook in hooks:
            hook.remove()
    size = float(score.square().mean().sqrt())
    for name, module in model.decoder.named_modules():
        if isinstance(module, Scale) and name.startswith("forces"):
            module.factor.mul_(0.1 / size)


class VAEModule(TrainingModule):
    """Losses, metrics and optimiser of step one."""

    settings: VAESettings
    model: ConCDVAE

    def __init__(self, settings: VAESettings, model: ConCDVAE, n_crystals: int) -> None:
        super().__init__(settings, model)
        self.n_crystals = n_crystals

    @property
    def teacher_forcing(self) -> bool:
        """Whether the decoder still sees true lattices."""
        seen = self.global_step * self.settings.batch_size * self.trainer.world_size
        return seen < self.settings.teacher_forcing * self.n_crystals

    def training_step(self, batch: CrystalBatch, _index: int) -> Tensor:
        """The weighted sum of all terms."""
        with self.seeded(self.global_step):
            draws = Draws((self.settings.seed, 0, self.global_step, self.global_rank), self.device)
            outputs = joint_loss(
                self.model, batch, draws, teacher_forcing=self.teacher_forcing, n_draws=self.settings.draws
            )
        total = self._total(outputs.losses)
        self.require_finite(total, outputs.losses)
        self._log("train", {"loss": total.detach(), **outputs.losses}, len(batch.n_atoms))
        return total

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        weights = self.settings.loss
        return sum(
            (getattr(weights, name) * value for name, value in losses.items()), torch.zeros((), device=self.device)
        )

    def validation_step(self, batch: CrystalBatch, index: int) -> None:
        """Losses and metrics of the averaged weights, with predicted lattices; the same noise each time.

        ``val_loss``, which steers the schedule, is the decoder's part (coordinates and types), as in the authors' code.
        """
        model: Any = self.averaged.model
        draws = Draws((self.settings.seed, 1, index, self.global_rank), self.device)
        outputs = joint_loss(model, batch, draws, teacher_forcing=False)
        weights, losses = self.settings.loss, outputs.losses
        loss = weights.coordinates * losses["coordinates"] + weights.types * losses["types"]
        self._log("val", {"loss": loss, **losses, **metrics(model, batch, outputs)}, len(batch.n_atoms))
