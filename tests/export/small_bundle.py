"""A small Con-CDVAE of random weights, and the bundle of it."""

from pathlib import Path

import torch

from druse.bundle import Bundle, Precision, Provenance
from druse.conditions import ClassProperty, ScalarProperty
from druse_export.bundles.build import build_con_cdvae
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.gemnet import GemNetConfig
from druse_export.models.prior import Prior, PriorConfig

GAP = ScalarProperty("band_gap", 0.0, 8.0, 0.2, "eV")
SYSTEM = ClassProperty("crystal_system", 3, ("cubic", "hexagonal", "triclinic"))


def small_model(latent: int = 128) -> ConCDVAE:
    torch.manual_seed(0)
    decoder = GemNetConfig(latent=latent, n_blocks=1, n_after_skip=1, n_atom=1, max_neighbors=12, cutoff=7.0)
    config = ConCDVAEConfig(
        conditions=(GAP, SYSTEM), predicted=(GAP, SYSTEM), max_atoms=8, latent=latent, hidden=64, decoder=decoder
    )
    return ConCDVAE(config).eval()


def small_prior(latent: int = 128) -> Prior:
    torch.manual_seed(1)
    return Prior(PriorConfig(conditions=(GAP,), latent=latent, n_steps=20, beta_last=0.3)).eval()


def make(folder: Path, latent: int = 128, precisions: tuple[Precision, ...] = ()) -> Bundle:
    """Latents of 128 are too narrow for whole panels at the bottom of the prior's network; 256 fit."""
    priors = {"default": small_prior(latent), "wide": small_prior(latent)}
    made = Provenance(source="trained", note="random weights")
    return build_con_cdvae(
        small_model(latent), priors, folder, name="small", licence="MIT", provenance=made, precisions=precisions
    )
