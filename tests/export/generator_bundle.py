"""A bundle that generates: random weights, believable lattices, both priors, and rows to draw conditions from."""

from pathlib import Path

import numpy as np
import torch
from small_bundle import GAP, SYSTEM

from druse.bundle import Bundle, Provenance
from druse.conditions import ScalarProperty
from druse_export.bundles.build import build_con_cdvae
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.gemnet import GemNetConfig
from druse_export.models.prior import Prior, PriorConfig

N_ATOM = ScalarProperty("n_atom", 1.0, 8.0, 1.0)
SIGMAS = 8
"""Noise levels."""


def make(folder: Path) -> Bundle:
    torch.manual_seed(0)
    decoder = GemNetConfig(latent=256, n_blocks=1, n_after_skip=1, n_atom=1, max_neighbors=12, cutoff=6.0)
    config = ConCDVAEConfig(
        conditions=(GAP,), predicted=(GAP, SYSTEM), max_atoms=8, latent=256, hidden=64, decoder=decoder,
        n_levels=SIGMAS,
    )  # fmt: skip
    model = ConCDVAE(config).eval()
    with torch.no_grad():
        model.heads.lattice_mean.copy_(torch.tensor([3.0, 3.2, 3.6, 80.0, 90.0, 100.0]))
        # an untrained network says about the same of every latent; these make its answers differ as a trained one's do
        model.heads.lattice_std.copy_(torch.tensor([4.0, 4.0, 4.0, 160.0, 160.0, 160.0]))
        for head in (model.heads.n_atoms, model.heads.composition):
            head[-1].weight.mul_(50.0)
            head[-1].bias.zero_()
    priors = {
        "default": Prior(PriorConfig(conditions=(GAP,), latent=256, n_steps=20, beta_last=0.02)).eval(),
        "full": Prior(PriorConfig(conditions=(GAP, SYSTEM, N_ATOM), latent=256, n_steps=20, beta_last=0.02)).eval(),
    }
    rng = np.random.default_rng(0)
    n = 600
    values = {
        "band_gap": rng.uniform(0, 8, n),
        "crystal_system": rng.integers(0, 3, n).astype(np.float64),
        "n_atom": rng.integers(1, 9, n).astype(np.float64),
    }
    values["n_atom"][:50] = np.nan
    made = Provenance(source="trained", note="random weights")
    return build_con_cdvae(model, priors, folder, name="random", licence="MIT", provenance=made, values=values)
