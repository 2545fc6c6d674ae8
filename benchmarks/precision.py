"""Whether a precision changes what crystals come out: distributions beside those of fp32, from the same latents.

Run ``python benchmarks/precision.py RESULTS`` on what ``benchmarks/gpu.sh`` left: runs of at least 500 crystals that
differ in their precision alone, the errors of one evaluation, and times. For density, nearest distance, number of
elements and formation energy (by CGCNN) it gives the two-sample Kolmogorov-Smirnov p-value, and the mean of the
differences between crystals from the same latent with its 95 % interval (bootstrap). The sampling is chaotic, so such
two are other crystals, as if noise were drawn anew; their cells and atom counts are the same. That makes the p-value
larger than of independent samples, and the interval narrower: both are to be looked at.

A precision passes where no p-value is below 0.05 divided by the number of tests, every one of them in every precision,
and as many crystals are good but for chance. The fastest that passes belongs first in `druse.backends.PREFERRED`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table
from schedules import Estimate, bootstrapped, crystals_of, property_model, shortest_distances
from scipy.stats import fisher_exact, ks_2samp

from druse import Run
from druse.evaluate import densities
from druse.properties import PropertyModel

LEAST, LEVEL = 500, 0.05
QUANTITIES = {
    "density, g/cm³": 3,
    "nearest distance, Å": 3,
    "elements": 3,
    "formation energy, eV/atom": 3,
}
"""And the digits that are shown of each."""


class Sample(NamedTuple):
    """Of a run: numbers of its good crystals, how many there should be, and what was measured of each."""

    ids: np.ndarray
    count: int
    values: dict[str, np.ndarray]


class Comparison(NamedTuple):
    quantity: str
    mean: float
    difference: Estimate
    p_value: float


def runs_in(folder: Path) -> dict[str, Run]:
    """By precision; they must be of one request and one bundle."""
    found: dict[str, Run] = {}
    for path in sorted(folder.rglob("run.json")):
        run = Run.open(path.parent)
        if run.file.precision in found:
            sys.exit(f"{folder} holds two runs in {run.file.precision}: {found[run.file.precision].path}, {run.path}")
        found[run.file.precision] = run
    asked = {repr((run.request, run.file.backend, run.file.bundle.sha256)) for run in found.values()}
    if len(asked) > 1:
        sys.exit(f"the runs below {folder} differ in more than their precision: {asked}")
    return found


def sample(run: Run, energy: PropertyModel) -> Sample:
    crystals, ids, _ = crystals_of(run)
    owners = zip(crystals.offsets[:-1], crystals.offsets[1:], strict=True)
    elements = np.array([len(np.unique(crystals.species[a:b])) for a, b in owners], float)
    measured = (densities(crystals), shortest_distances(crystals), elements, energy.predict(crystals).astype(float))
    return Sample(ids, run.request.count, dict(zip(QUANTITIES, measured, strict=True)))


def compared(mine: Sample, reference: Sample) -> list[Comparison]:
    _, here, there = np.intersect1d(mine.ids, reference.ids, return_indices=True)
    rows = []
    for quantity in QUANTITIES:
        a, b = mine.values[quantity], reference.values[quantity]
        difference = bootstrapped(np.mean, a[here] - b[there])
        p_value = float(ks_2samp(a[np.isfinite(a)], b[np.isfinite(b)], method="asymp").pvalue)
        rows.append(Comparison(quantity, float(np.nanmean(a)), difference, p_value))
    return rows


def failures(mine: Sample, reference: Sample) -> float:
    """The p-value of as many failed crystals (Fisher's exact test)."""
    table = [[len(s.ids), s.count - len(s.ids)] for s in (mine, reference)]
    return float(fisher_exact(table).pvalue)


def milliseconds(results: Path, precision: str) -> float | None:
    """Of a step of the most crystals that were measured."""
    path = results / f"bench_{precision}.json"
    if not path.is_file() or not path.stat().st_size:
        return None
    return float(json.loads(path.read_text())["steps"][-1]["milliseconds"]["step"])


def table_of(headings: list[str], rows: list[list[str]], first: int = 0) -> None:
    table = rich.table.Table(box=rich.box.MARKDOWN)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k > first else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    rich.console.Console(width=220).print(table)


def show_step_errors(path: Path) -> None:
    rows = json.loads(path.read_text())["rows"]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    headings = ["sigma, Å", *(f"{p}: {what}" for p in precisions for what in ("score", "logits", "other types"))]
    lines = []
    for level in sorted({row["level"] for row in rows}):
        at = {row["precision"]: row for row in rows if row["level"] == level}
        cells = [f"{next(iter(at.values()))['sigma']:.3g}"]
        for p in precisions:
            cells += [f"{at[p]['score']['rms']:.1e}", f"{at[p]['logits']['rms']:.1e}", f"{at[p]['other_types']:.2%}"]
        lines.append(cells)
    print("\nOne evaluation beside float32 on the CPU, rms of the difference over rms of the values:\n")
    table_of(headings, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="folder of benchmarks/gpu.sh, or of runs")
    parser.add_argument("--reference", default="fp32", help="precision to compare with")
    parser.add_argument("--json", type=Path, help="write everything compared to this file")
    options = parser.parse_args()
    runs = runs_in(options.results)
    if options.reference not in runs:
        sys.exit(f"{options.results} has no run in {options.reference}, only {', '.join(runs) or 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        energy = property_model(Path(folder) / "cgcnn")
    samples = {precision: sample(run, energy) for precision, run in runs.items()}
    reference = samples.pop(options.reference)
    fewest = min(len(each.ids) for each in (reference, *samples.values()))
    print(f"{reference.count} crystals in each precision, {fewest} or more of them good, beside {options.reference}:\n")
    if fewest < LEAST * 0.95:
        print(f"too few to say anything: at least {LEAST} are wanted")
    found = {precision: compared(each, reference) for precision, each in samples.items()}
    limit = LEVEL / max(1, len(found) * len(QUANTITIES))

    rows, verdicts = [], {}
    for precision, comparisons in found.items():
        alike = failures(samples[precision], reference)
        verdicts[precision] = alike >= limit and all(each.p_value >= limit for each in comparisons)
        for each in comparisons:
            digits = QUANTITIES[each.quantity]
            before = float(np.nanmean(reference.values[each.quantity]))
            rows.append(
                [
                    precision,
                    each.quantity,
                    f"{before:.{digits}f}",
                    f"{each.mean:.{digits}f}",
                    each.difference.text(1.0, digits),
                    f"{each.p_value:.2f}",
                ]
            )
    table_of(["precision", "of", options.reference, "mean", "difference (95 %)", "KS p"], rows, 1)
    if (options.results / "step_error.json").is_file():
        show_step_errors(options.results / "step_error.json")
    times = {precision: milliseconds(options.results, precision) for precision in runs}
    print(f"\nA p-value below {limit:.4f} refuses a precision.")
    for precision, passes in verdicts.items():
        good = f"{len(samples[precision].ids)} good ({options.reference}: {len(reference.ids)})"
        taken = times[precision]
        speed = "" if taken is None else f", {taken:.2f} ms a step"
        print(f"* {precision}: {'passes' if passes else 'is refused'}; {good}{speed}")
    usable = {p: ms for p, ms in times.items() if ms is not None and (p == options.reference or verdicts.get(p, False))}
    if usable:
        print(f"* the fastest that passes: {min(usable, key=lambda p: usable[p])}")
    if options.json:
        content = {
            p: {"passes": verdicts[p], "of": {each.quantity: each._asdict() for each in found[p]}} for p in found
        }
        options.json.write_text(json.dumps({"limit": limit, "precisions": content}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
