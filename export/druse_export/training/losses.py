"""The terms of the joint loss (eq. 12) and the noise that the decoder learns to remove (eqs 5, 6).

======================  =====================================================================================
paper                   here
======================  =====================================================================================
L_coord                 ``coordinate_loss``: sigma^2 / 2 |target - score|^2, target = minimum image / sigma^2
L_type                  ``type_loss``: cross-entropy / sigma_A
L_KL                    ``kl_loss``
p(A~ | A), eq. 6        ``noisy_types``: onehot(A) + sigma_A softmax(composition)
======================  =====================================================================================

Losses of atoms are averaged over each crystal, then over crystals.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional


def mean_over_crystals(per_atom: Tensor, crystal: Tensor, n_atoms: Tensor) -> Tensor:
    """The mean over crystals ``[B]`` of means over their atoms ``[N]``."""
    return torch.sum(per_atom / n_atoms[crystal]) / len(n_atoms)


def minimum_image(frac: Tensor, cells: Tensor) -> Tensor:
    """The shortest Cartesian vector ``[N, 3]`` among the images of a fractional difference ``[N, 3]``.

    Exact for reduced cells ``[N, 3, 3]`` (one for each atom): the shortest lies within one image of the wrapped one.
    """
    wrapped = frac - torch.round(frac)
    images = torch.tensor(list(itertools.product((0, -1, 1), repeat=3)), dtype=frac.dtype, device=frac.device)
    candidates = torch.matmul(wrapped[:, None] + images, cells)  # [N, 27, 3]
    nearest = candidates.square().sum(-1).argmin(1)
    return candidates[torch.arange(len(frac), device=frac.device), nearest]


def coordinate_loss(score: Tensor, difference: Tensor, sigma: Tensor) -> Tensor:
    """Losses of atoms ``[N]``.

    Args:
        score: ``[N, 3]`` what the decoder returns: sigma times the Cartesian score.
        difference: ``[N, 3]`` Angstrom, from the noisy to the true position, minimum image.
        sigma: ``[N]`` Angstrom.
    """
    return 0.5 * torch.sum((difference / sigma[:, None] - score) ** 2, dim=1)


def type_loss(logits: Tensor, atom_types: Tensor, type_sigma: Tensor) -> Tensor:
    """Losses of atoms ``[N]`` from logits ``[N, species]`` and atomic numbers ``[N]``."""
    return functional.cross_entropy(logits.float(), atom_types - 1, reduction="none") / type_sigma


def kl_loss(mu: Tensor, log_var: Tensor) -> Tensor:
    """Divergence of N(mu, var) ``[B, latent]`` from N(0, 1), summed over the latent, averaged over crystals."""
    return -0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1).mean()


def noisy_types(atom_types: Tensor, composition: Tensor, type_sigma: Tensor, uniform: Tensor) -> Tensor:
    """Atomic numbers ``[N]`` drawn from onehot(true) + type_sigma * softmax(composition), by inversion.

    Args:
        atom_types: ``[N]`` true atomic numbers.
        composition: ``[N, species]`` predicted logits.
        type_sigma: ``[N]``.
        uniform: ``[N]`` draws in [0, 1).
    """
    weights = type_sigma[:, None] * torch.softmax(composition.float(), dim=-1)
    weights = weights.scatter_add(1, atom_types[:, None] - 1, torch.ones_like(weights[:, :1]))
    cumulative = torch.cumsum(weights, dim=1)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp(max=weights.shape[1] - 1) + 1
