"""Predicted formation energies over those of DFT, drawn as figure 6 of the paper; matplotlib does it where it is."""

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from druse._files import whole_file

_MARKS = "osD^vP*X"
_SHAPE = "target_formation_energy_per_atom"


def draw(path: Path, columns: Mapping[str, np.ndarray], predicted: str, failed: np.ndarray) -> bool:
    """A picture of a column of predictions over DFT's formation energies; False where matplotlib is not installed.

    The shape of a point is its target, where there were several. Structures that failed to relax stand on the right, at
    "Err".

    Args:
        path: ``.svg`` or ``.png``; it appears whole or not at all.
        columns: by name, ``[entries]``.
        predicted: name of the column.
        failed: ``[entries]``: whose relaxation failed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib as mpl
    from matplotlib.figure import Figure

    x, y = columns["formation_energy_per_atom_dft"], columns[predicted]
    both, lost = np.isfinite(x) & np.isfinite(y) & ~failed, np.isfinite(y) & failed
    shown = np.concatenate([x[both], y[both], y[lost]])
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (-1.0, 1.0)
    margin = 0.06 * max(high - low, 0.1)
    low, high = low - margin, high + margin
    err = high + 0.1 * (high - low)
    with mpl.rc_context({"svg.hashsalt": "druse", "font.size": 10}):
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        axes: Any = figure.add_subplot()
        axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=1)
        axes.axvline(high, color="0.85", linewidth=1, zorder=1)
        for mark, (label, chosen) in zip(_MARKS, _groups(columns, len(x)).items(), strict=False):
            colour = f"C{_MARKS.index(mark)}"
            axes.scatter(x[both & chosen], y[both & chosen], marker=mark, s=28, color=colour, label=label, zorder=3)
            n = int(np.sum(lost & chosen))
            axes.scatter([err] * n, y[lost & chosen], marker=mark, s=28, facecolors="none", edgecolors=colour, zorder=3)
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        axes.set_xticks([*ticks, err], [*(f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks), "Err"])
        axes.set_xlim(low, err + 0.06 * (high - low))
        axes.set_ylim(low, high)
        axes.set_xlabel("formation energy by DFT (eV/atom)")
        axes.set_ylabel("predicted formation energy (eV/atom)")
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False)
        picture = io.BytesIO()
        kind = path.suffix.lstrip(".")
        figure.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    with whole_file(path, "wb") as file:
        file.write(picture.getbuffer())
    return True


def _groups(columns: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Entries by their target, where there are two or more and not too many of them."""
    targets = columns.get(_SHAPE)
    if targets is None or targets.dtype.kind != "f":
        return {"": np.ones(n, bool)}
    values = np.unique(targets[np.isfinite(targets)])
    if not 1 < len(values) < len(_MARKS):
        return {"": np.ones(n, bool)}
    found = {f"target {value:g}": targets == value for value in values}
    rest = ~np.isfinite(targets)
    return {**found, "no target": rest} if rest.any() else found


def first_prediction(columns: Mapping[str, np.ndarray]) -> str:
    """The column to draw: a property model's mean, else what the latent's predictor says; empty for none."""
    for name in ("formation_energy_per_atom", "predicted_formation_energy_per_atom"):
        if name in columns and columns[name].dtype.kind == "f" and np.isfinite(columns[name]).any():
            return name
    return ""
