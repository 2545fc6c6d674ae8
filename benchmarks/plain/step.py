"""One training step of Con-CDVAE's first part around the plain networks, its loss written out term by term.

The small dense networks (conditions, heads, predictor) are the same modules on both sides.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from druse import Crystals, Graph, radius_graph
from druse_export.models.con_cdvae import ConCDVAE, HeadOutputs
from druse_export.models.dimenet import DimeNetConfig
from druse_export.models.gemnet import GemNetConfig
from druse_export.training.batches import CrystalBatch
from druse_export.training.losses import minimum_image, noisy_types
from druse_export.training.vae import Draws
from plain.dimenet import load_dimenet, path_graph
from plain.gemnet import load_gemnet, triplet_graph


def plain_model(ours: ConCDVAE) -> ConCDVAE:
    """A copy with the plain encoder and decoder, and the same weights."""
    encoder: Any = load_dimenet(ours.encoder)
    decoder: Any = load_gemnet(ours.decoder)
    plain = copy.deepcopy(ours)
    plain.encoder, plain.decoder = encoder, decoder
    return plain


def edge_list(crystals: Crystals, config: GemNetConfig | DimeNetConfig) -> Graph:
    """The native graph of half edges, without the tables that our networks need."""
    return radius_graph(
        crystals.frac,
        crystals.cells,
        crystals.offsets,
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors,
        symmetrise="union",
        incidence=False,
    )


def plain_losses(model: ConCDVAE, batch: CrystalBatch, draws: Draws) -> dict[str, Tensor]:
    """Every term of eq. 12, unweighted; draws come in the order of `druse_export.training.vae.joint_loss`."""
    config, crystals, crystal = model.config, batch.crystals, batch.crystal
    cells, cart = torch.tensor(batch.cells).float(), torch.tensor(crystals.cart).float()

    condition = model.condition(batch.values)
    paths: Any = path_graph(edge_list(crystals, config.encoder), cart, cells, config.encoder)
    mu, log_var = (x.float() for x in model.encode(batch.atom_types, paths))
    z = mu + torch.exp(0.5 * log_var) * draws.normal(*mu.shape)
    predicted = model.predictor.losses(z, batch.values)
    heads = HeadOutputs(*(x.float() for x in model.heads(model.mix_latent(z, condition))))

    level = draws.levels(len(cells), config.n_levels)
    sigma, type_sigma = model.sigmas[level][crystal], model.type_sigmas[level][crystal]
    types = noisy_types(batch.atom_types, heads.composition.detach()[crystal], type_sigma, draws.uniform(len(sigma)))
    noise = (draws.normal(len(sigma), 3) * sigma[:, None]).numpy().astype(np.float64)
    frac = batch.frac + np.einsum("ni,nij->nj", noise, np.linalg.inv(batch.cells)[crystal.numpy()])
    noisy = Crystals(frac, batch.cells, batch.offsets, batch.species)
    noisy_cart = torch.tensor(noisy.cart).float()
    triplets: Any = triplet_graph(edge_list(noisy, config.decoder), noisy_cart, cells, config.decoder)
    score, logits = model.score(model.mix_latent(z.detach(), condition), level, types, triplets)

    difference = minimum_image(torch.tensor(batch.frac - frac), torch.tensor(batch.cells)[crystal]).float()
    target = difference / sigma[:, None] ** 2
    weight = 0.5 * sigma**2
    scaled = model.heads.scaled_lattice(batch.lengths, batch.angles, batch.n_atoms)
    element = batch.atom_types - 1

    def averaged(per_atom: Tensor) -> Tensor:
        return (per_atom / batch.n_atoms[crystal]).sum() / len(cells)

    return {
        "n_atoms": functional.cross_entropy(heads.n_atoms, batch.n_atoms),
        "lattice": functional.mse_loss(heads.lattice, scaled),
        "composition": averaged(functional.cross_entropy(heads.composition[crystal], element, reduction="none")),
        "coordinates": averaged(weight * torch.sum((target - score.float() / sigma[:, None]) ** 2, dim=1)),
        "types": averaged(functional.cross_entropy(logits.float(), element, reduction="none") / type_sigma),
        "kl": -0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1).mean(),
        "property": sum(predicted.values(), torch.zeros(())),
    }
