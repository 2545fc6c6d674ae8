"""What relaxation and DFT did to crystals: the paper's table 3, displacements, predictions against DFT (figure 6)."""

from collections.abc import Sequence

import msgspec
import numpy as np

from druse._figures import Histogram, histogram, sample, short
from druse._manifest import in_one_line
from druse._population import KNOWN, Group, Property, groups_of, numbers_of, texts_of, value_of, words
from druse._reported import KINDS, Stage

CHANGES = {
    "delta_a": ("Δa", "Å"),
    "delta_b": ("Δb", "Å"),
    "delta_c": ("Δc", "Å"),
    "delta_alpha": ("Δα", "°"),
    "delta_beta": ("Δβ", "°"),
    "delta_gamma": ("Δγ", "°"),
    "rmsd_angstrom": ("RMSD", "Å"),
    "rmsd": ("RMSD, normalised", ""),
    "volume_change": ("ΔV/V", ""),
}
"""Columns of the paper's table 3, and two more: name and unit."""

PAPER_CHANGES = {
    "delta_a": 0.376,
    "delta_b": 0.397,
    "delta_c": 0.740,
    "delta_alpha": 4.694,
    "delta_beta": 4.727,
    "delta_gamma": 3.818,
    "rmsd": 0.307,
}
"""The paper's table 3: 127 generated crystals relaxed by DFT; its RMSD is StructureMatcher's, which has no unit."""


class Change(msgspec.Struct, frozen=True):
    """Mean absolute changes of a relaxation by column, with the number of crystals that have one."""

    stage: str
    means: dict[str, float]
    counts: dict[str, int]
    total: int
    failed: int
    converged: int | None
    failures: list[tuple[str, int]]


class Parity(msgspec.Struct, frozen=True):
    """Predictions against DFT; ``measured`` is None where it failed."""

    key: str
    label: str
    unit: str
    measured: list[float | None]
    predicted: list[float]
    group: list[int]
    groups: list[str]
    ids: list[str]
    n: int
    failed: int
    mae: float
    rmse: float


def change(stage: Stage) -> Change | None:
    """Changes of a relaxation or of DFT, as the paper's table 3; None for what is neither, or has none yet."""
    if stage.kind not in ("relax", "dft"):  # a screening of relaxed crystals has their columns too
        return None
    values = {name: numbers_of(stage.rows.get(name), len(stage.survived)) for name in CHANGES}
    failure = np.where(failed_of(stage), texts_of(stage.rows.get("failure"), len(stage.survived)), "")
    converged = stage.rows.get("converged" if stage.kind == "relax" else "converged_ionic")
    done = ended_of(stage)
    if converged is not None and converged.dtype.kind != "U":
        done = done & (converged == 1)
    means, counts = {}, {}
    for name, column in values.items():
        finite = column[done & np.isfinite(column)]
        if len(finite):
            means[name], counts[name] = float(np.abs(finite).mean()), len(finite)
    if not means and stage.kind != "relax":
        return None
    reasons, how_many = np.unique(failure[failure != ""], return_counts=True)
    return Change(
        _told(stage),
        means,
        counts,
        int((failed_of(stage) | ended_of(stage)).sum()),
        int((failure != "").sum()),
        None if converged is None or converged.dtype.kind == "U" else int((converged == 1).sum()),
        sorted(((in_one_line(r), int(n)) for r, n in zip(reasons, how_many, strict=True)), key=lambda p: -p[1])[:10],
    )


def _told(stage: Stage) -> str:
    """A folder's name, and what was done in it: folders of one chain are often called the same."""
    return f"{KINDS[stage.kind]} {stage.name}"


def failed_of(stage: Stage) -> np.ndarray:
    """``[rows]`` which failed: by their status where there is one, else those with a reason."""
    n = len(stage.survived)
    if "status" in stage.rows and stage.kind == "dft":
        return np.asarray(texts_of(stage.rows["status"], n) == "failed")
    return np.asarray(texts_of(stage.rows.get("failure"), n) != "")


def ended_of(stage: Stage) -> np.ndarray:
    """``[rows]`` which are done without a failure."""
    n = len(stage.survived)
    if "status" in stage.rows and stage.kind == "dft":
        return np.asarray(texts_of(stage.rows["status"], n) == "finished")
    return ~failed_of(stage)


def parity(stage: Stage) -> list[Parity]:
    """Predictions against DFT, as figure 6, for every property that has both.

    What is not finished is left out, and what failed has no measured value.
    """
    found = []
    n = len(stage.survived)
    groups, group = groups_of([stage])
    for name in stage.rows:
        key = name.removesuffix("_dft")
        if name == key or stage.rows[name].dtype.kind == "U":
            continue
        measured, predicted = numbers_of(stage.rows[name], n), value_of(stage, key)
        shown = np.isfinite(predicted) & (np.isfinite(measured) | failed_of(stage))
        both = shown & np.isfinite(measured)
        if not both.any():
            continue
        error = predicted[both] - measured[both]
        spec = KNOWN.get(key, Property(in_one_line(key), words(key), "", 0.0))
        chosen = sample(np.flatnonzero(shown))
        found.append(
            Parity(
                spec.key,
                spec.label,
                spec.unit,
                [short(v) for v in measured[chosen]],
                [float(f"{v:.5g}") for v in predicted[chosen]],
                group[chosen].tolist(),
                [one.label for one in groups],
                [in_one_line(text) for text in stage.rows["id"][chosen].tolist()],
                int(both.sum()),
                int((shown & ~both).sum()),
                float(np.abs(error).mean()),
                float(np.sqrt((error**2).mean())),
            )
        )
    return found


def displacements(stages: Sequence[Stage]) -> tuple[list[Histogram], list[str]]:
    """A histogram of the displacement in relaxations, a series for each folder that has it, and their names."""
    for name in ("rmsd_angstrom", "rmsd"):
        label, unit = CHANGES[name]
        found = [
            (_told(stage), numbers_of(stage.rows.get(name), len(stage.survived)))
            for stage in stages
            if stage.kind in ("relax", "dft")
        ]
        found = [(folder, values) for folder, values in found if np.isfinite(values).any()]
        if not found:
            continue
        made = histogram(
            Property(name, label, unit, 0.0),
            np.concatenate([values for _, values in found]),
            np.repeat(np.arange(len(found)), [len(values) for _, values in found]),
            [Group(folder, {}) for folder, _ in found],
        )
        return ([] if made is None else [made]), [folder for folder, _ in found]
    return [], []
