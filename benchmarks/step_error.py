"""What a precision changes in one evaluation of the score network: the same states, on a device and on the CPU.

Run ``python benchmarks/step_error.py RUN --precisions fp32 tf32 fp16``: the crystals of a finished run with the noise
of a few levels, and the latents that they came from. Scores and logits are compared with float32 on the CPU
(``ort-cpu``): root mean square and largest difference, relative to that of the values, and how many atoms would get
another type by their largest logit.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from druse import Bundle, Crystals, DruseError, Model, Run
from druse._columns import read_columns

LEVELS = (0, 12, 25, 37, 49)


def states(run: Run, model: Model) -> tuple[Crystals, np.ndarray]:
    """The good crystals of a run, and what the decoder takes of their latents."""
    parts = [part.take(np.flatnonzero(part.ok)) for part in run.generated()]
    rows = np.concatenate([part.ids for part in parts]).astype(np.int64)
    columns: dict[str, Any] = read_columns(run.path / "latents.parquet", "make the run again")
    values = {spec.name: columns[f"condition_{spec.name}"][rows] for spec in model.manifest.conditions}
    return Crystals.concatenate(parts), model.project(model.condition(values, columns["z"][rows]))


def noisy(crystals: Crystals, sigma: float) -> Crystals:
    """With noise of a level, in Angstrom."""
    cells = np.repeat(crystals.cells, crystals.n_atoms, axis=0)
    moved = sigma * np.random.default_rng(1).standard_normal(crystals.frac.shape)
    frac = crystals.frac + np.linalg.solve(cells.transpose(0, 2, 1), moved[:, :, None])[:, :, 0]
    return Crystals(frac - np.floor(frac), crystals.cells, crystals.offsets, crystals.species)


def difference(mine: np.ndarray, other: np.ndarray) -> dict[str, float]:
    off, values = np.abs(mine.astype(float) - other), np.abs(other.astype(float))
    return {
        "rms": float(np.sqrt(np.mean(off**2) / np.mean(values**2))),
        "largest": float(off.max() / values.max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--bundle", type=Path, help="of the run; the one that comes with Druse")
    parser.add_argument("--backend", default="ort-cuda")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "fp16"])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle) if options.bundle else Bundle.embedded()
    plain = Model.open(bundle, backend="ort-cpu", precision="fp32")
    crystals, latent = states(Run.open(options.run), plain)
    batches = {level: noisy(crystals, plain.manifest.sigmas[level]) for level in LEVELS}
    wanted = {level: plain.score(batch, None, level, latent=latent) for level, batch in batches.items()}
    rows, failed = [], False
    for precision in options.precisions:
        try:
            model = Model.open(bundle, backend=options.backend, precision=precision)
            found = {level: model.score(batch, None, level, latent=latent) for level, batch in batches.items()}
        except DruseError as error:
            failed = True
            print(f"{precision}: {error}", file=sys.stderr)
            continue
        for level in LEVELS:
            mine, other = found[level], wanted[level]
            types = float(np.mean(mine.logits.argmax(axis=1) != other.logits.argmax(axis=1)))
            row = {
                "precision": precision, "level": level, "sigma": plain.manifest.sigmas[level],
                "score": difference(mine.scaled, other.scaled), "logits": difference(mine.logits, other.logits),
                "other_types": types, "finite": bool(np.isfinite(mine.scaled).all()),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{precision:>5}, sigma {row['sigma']:7.3f} A: score {row['score']['rms']:.1e} rms, "
                f"{row['score']['largest']:.1e} at most; logits {row['logits']['rms']:.1e}, "
                f"{row['logits']['largest']:.1e}; {types:.2%} other types",
                flush=True,
            )
    if options.json:
        what = {"backend": options.backend, "crystals": len(crystals), "atoms": len(crystals.frac), "rows": rows}
        options.json.write_text(json.dumps(what, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
