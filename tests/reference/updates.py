"""The samplers' updates in float64, as the equations read."""

import numpy as np


def langevin(
    frac: np.ndarray, cell: np.ndarray, score: np.ndarray, noise: np.ndarray, drift: float, diffusion: float
) -> np.ndarray:
    """x' = x + drift * score + diffusion * noise in Cartesian space (eqs 2 and 7), back to unwrapped fractions."""
    cart = frac @ cell + drift * score.astype(np.float64) + diffusion * noise.astype(np.float64)
    return np.linalg.solve(cell.T, cart.T).T


def ddpm(
    z: np.ndarray, eps: np.ndarray, noise: np.ndarray, alpha: float, alpha_bar: float, noise_scale: float
) -> np.ndarray:
    """Eq. 4: z' = (z - (1 - alpha) / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + noise_scale noise."""
    z, eps, noise = (x.astype(np.float64) for x in (z, eps, noise))
    return (z - (1 - alpha) / np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha) + noise_scale * noise


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far fractional coordinates are apart, whatever their wrapping."""
    difference = first - second
    return np.abs(difference - np.round(difference))
