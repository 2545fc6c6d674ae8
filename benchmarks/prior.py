"""The prior's 300 steps for 20,000 latents and their ranking by the Predictor, with two threads.

Run ``python benchmarks/prior.py``. Sides: ``ort-cpu`` with the native network; the same with products of ONNX Runtime
only; and PyTorch as the authors' code does it, every layer fed [x, condition, time], all latents at each step. Sides
take turns on a part of the latents, and the first one then does them all.
"""

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from environment import begin_anew

if __name__ == "__main__":
    begin_anew()

import numpy as np
import torch
from measure import Clock, cpu_name, gemm_rate

from druse.backends import open_backend
from druse.bundle import Bundle, Provenance
from druse.conditions import ScalarProperty
from druse.model import Model
from druse.noise import Purpose, normal
from druse.schedules import ddpm_schedule
from druse_export.bundles.build import build_con_cdvae
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig
from druse_export.models.prior import Prior, PriorConfig

ENERGY = ScalarProperty("formation_energy_per_atom", -4.5, 1.5, 0.1, "eV/atom")
TARGET = -2.0
Rank = Callable[[int], np.ndarray]


def ranked(predicted: np.ndarray) -> np.ndarray:
    return np.argsort(np.abs(predicted - TARGET), kind="stable")


def ours(model: Model) -> Rank:
    def work(n: int) -> np.ndarray:
        ids = np.arange(n, dtype=np.uint64)
        z = normal(7, Purpose.LATENT_START, 0, ids, width=model.manifest.latent, n_threads=2)
        terms = model.prior_terms({ENERGY.name: TARGET}, n)
        z, status = model.denoise(z, terms, seed=7, crystal_ids=ids)
        assert not status.any()
        return ranked(model.predict(z)[ENERGY.name])

    return work


def plain(model: ConCDVAE, prior: Prior) -> Rank:
    schedule = ddpm_schedule(prior.betas.tolist())

    @torch.inference_mode()
    def work(n: int) -> np.ndarray:
        condition = prior.condition({ENERGY.name: torch.full((n,), TARGET)})
        z = torch.randn(n, prior.config.latent)
        for t in range(len(schedule.alpha) - 1, -1, -1):
            alpha, alpha_bar, sigma = (float(values[t]) for values in schedule)
            eps = prior.predict_noise(z, condition, torch.full((n,), t))
            z = (z - (1 - alpha) / (1 - alpha_bar) ** 0.5 * eps) / alpha**0.5 + sigma * torch.randn_like(z)
        return ranked(model.predictor(z)[ENERGY.name].numpy())

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--latents", type=int, default=20_000)
    parser.add_argument("--part", type=int, default=1920, help="latents of the sides' turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="of the best side with all latents")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, prior = (
        ConCDVAE(ConCDVAEConfig(conditions=(ENERGY,), predicted=(ENERGY,))).eval(),
        Prior(PriorConfig(conditions=(ENERGY,))).eval(),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        made = Provenance(source="trained", note="random weights, for a benchmark")
        bundle: Bundle = build_con_cdvae(model, {"default": prior}, path, name="prior", licence="MIT", provenance=made)
    fused, products = (open_backend("ort-cpu", n_threads=2) for _ in range(2))
    products.fused = False
    sides: dict[str, Rank] = {
        "ort-cpu": ours(Model(bundle, fused)),
        "ort-cpu, products of ONNX Runtime": ours(Model(bundle, products)),
        "PyTorch as the authors": plain(model, prior),
    }
    widths = [
        layer.weight[:, : -128 - 64].numel()
        for layer in (*prior.network.down, prior.network.middle, *prior.network.up, prior.network.out)
    ]
    flops = 2 * sum(widths) * len(prior.betas)
    print(f"{cpu_name()}; Python {platform.python_version()}, torch {torch.__version__}, two threads")
    print(f"{1e-12 * flops * options.latents:.2f} TFLOP for {options.latents:,} latents, and the noise")
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(-1, options.rounds):
        for name, work in sides.items():
            start = time.perf_counter()
            work(options.part)
            if k >= 0:
                spent[name].append(time.perf_counter() - start)
    for name, values in spent.items():
        middle = float(np.median(values)) * options.latents / options.part
        ratio = float(np.median(np.divide(spent["PyTorch as the authors"], values)))
        print(f"{name}: {middle:.1f} s for all at the rate of {options.part:,}; PyTorch / this {ratio:.2f}")
    for _ in range(options.repeats):
        peak, clock = gemm_rate(torch.float32, seconds=1.0), Clock()
        start = time.perf_counter()
        sides["ort-cpu"](options.latents)
        seconds = time.perf_counter() - start
        rate = 1e-9 * flops * options.latents / seconds
        print(
            f"ort-cpu, all {options.latents:,}: {seconds:.1f} s, {rate:.0f} GFLOP/s of {peak:.0f} for 2048^3 just "
            f"before; others took {clock.read()[1]:.0%} of the cores"
        )


if __name__ == "__main__":
    main()
