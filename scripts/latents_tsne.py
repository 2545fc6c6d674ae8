"""Figure 5 of the paper: latents of a data set in two dimensions, coloured by a property.

    druse train latents RUN val.csv --out with.parquet
    druse train latents RUN_WITHOUT_PREDICTOR val.csv --out without.parquet
    python scripts/latents_tsne.py with.parquet without.parquet --property formation_energy_per_atom --out figure5.png

Each file is a panel. Needs scikit-learn besides Druse's extra `export`.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pyarrow import parquet
from scipy.spatial import cKDTree
from sklearn.manifold import TSNE


def read(path: Path, name: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Means ``[n, latent]`` and property values of a file, at most ``limit`` rows that have the property."""
    table = parquet.read_table(path)
    if name not in table.column_names:
        raise SystemExit(f"{path.name} has no column {name}; it has {', '.join(table.column_names)}")
    values = table[name].to_numpy()
    chosen = np.flatnonzero(np.isfinite(values))[:limit]
    mu = np.stack(table["mu"].to_numpy()[chosen])
    return mu, values[chosen]


def neighbourliness(mu: np.ndarray, values: np.ndarray, k: int = 10) -> float:
    """How much a crystal's property differs from that of its k nearest latents, as a share of that of random pairs."""
    _, nearest = cKDTree(mu).query(mu, k + 1)
    near = np.abs(values[nearest[:, 1:]] - values[:, None]).mean()
    return float(near / np.abs(values[:, None] - values).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--property", default="formation_energy_per_atom")
    parser.add_argument("--out", type=Path, default=Path("figure5.png"))
    parser.add_argument("--limit", type=int, default=3000, help="crystals a panel")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    panels = [read(path, options.property, options.limit) for path in options.files]
    low, high = np.quantile(np.concatenate([values for _, values in panels]), [0.01, 0.99])
    figure = Figure(figsize=(5.2 * len(panels) + 0.9, 4.9), layout="constrained", dpi=150)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, path, (mu, values) in zip(axes, options.files, panels, strict=True):
        perplexity = min(30.0, (len(mu) - 1) / 3)
        flat = TSNE(random_state=options.seed, init="pca", perplexity=perplexity).fit_transform(mu)
        points = axis.scatter(*flat.T, c=values, s=5, linewidths=0, cmap="viridis", vmin=low, vmax=high)
        ratio = neighbourliness(mu, values)
        axis.set_title(f"{path.stem}: {len(mu):,} crystals\nneighbours differ {ratio:.2f} of random pairs", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_aspect("equal")
    figure.colorbar(points, ax=axes, label=options.property.replace("_", " "), extend="both")
    figure.savefig(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
