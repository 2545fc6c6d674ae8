"""``druse evaluate``."""

import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from druse.cli._counting import counting
from druse.cli._options import Jobs
from druse.errors import InputError

_REASONS_SHOWN = 10
_MEANINGS = {
    "structural": ("structures valid", "no two atoms closer than 0.5 Å"),
    "compositional": ("compositions valid", "charges balance, cations less electronegative than anions (SMACT)"),
    "valid": ("valid", "both, and a fingerprint"),
    "recall": ("coverage, recall", "reference crystals with generated ones near in structure and in composition"),
    "precision": ("coverage, precision", "generated crystals with reference ones near in structure and in composition"),
    "unique": ("unique", "different crystals, supercells being the same (StructureMatcher)"),
    "density": ("density", "Wasserstein distance of valid crystals from the reference, g/cm³"),
    "elements": ("number of elements", "the same for the number of different elements"),
}

CutoffsOf = enum.StrEnum("CutoffsOf", ["mp20", "perov5", "carbon24"])


def evaluate(
    crystals: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Folder of another command; file or folder of crystals of any kind."),
    ],
    reference: Annotated[
        Path,
        typer.Option(
            help="Real crystals, such as a test set: a table with CIF, or any text of structures.", show_default=False
        ),
    ],
    cutoffs: Annotated[CutoffsOf, typer.Option(help="Of coverage: CDVAE's for this data set.")] = CutoffsOf.mp20,
    coverage: Annotated[
        int | None, typer.Option(help="At most so many crystals are looked at for coverage; all.", min=1)
    ] = None,
    unique: Annotated[bool, typer.Option(help="Whether to look for duplicates.")] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what is known of the reference; your cache folder.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor keep that.")] = False,
    jobs: Jobs = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON, with every invalid crystal.")] = False,
) -> None:
    """Say how good generated crystals are: validity, coverage, distances from real crystals, uniqueness.

    Example: druse evaluate runs/demo --reference mp_20/test.csv
    """
    from druse.cli._unfinished import tell_unfinished
    from druse.evaluate import CUTOFFS
    from druse.evaluate import evaluate as measure
    from druse.tables import default_cache, load_table

    tell_unfinished([crystals])
    folder = None if no_cache else cache or default_cache()
    with counting(wanted=not as_json) as progress:
        made, ids, rejected = _read(crystals, jobs, lambda *n: progress("reading", *n))
        real = load_table(
            reference, niggli=False, n_jobs=jobs, cache=folder, progress=lambda *n: progress("reading reference", *n)
        )
        found = measure(
            made, real.crystals, rejected=rejected, cutoffs=CUTOFFS[cutoffs], n_coverage=coverage, unique=unique,
            n_jobs=jobs, cache=None if folder is None else folder / "fingerprints", progress=progress,
        )  # fmt: skip
    if as_json:
        content = found.to_dict()
        content["invalid"] = [{"id": ids[one["crystal"]], "reason": one["reason"]} for one in content["invalid"]]
        content["n_reference_rejected"] = len(real.rejected)
        typer.echo(json.dumps({"crystals": str(crystals), "reference": str(reference), **content}, indent=2))
        return
    console = Console()
    _print(found, console if console.is_terminal else Console(width=160))
    if real.rejected:
        Console(stderr=True).print(
            f"rows of the reference that could not be read: {len(real.rejected):,}", style="yellow"
        )


def _read(path: Path, jobs: int, progress: Callable[[int, int], None]) -> tuple[Any, list[str], list[Any]]:
    """Generated crystals, the names of all, and those that are no crystals, whose names come last."""
    from druse.candidates import Entries, read_entries
    from druse.crystals import Crystals
    from druse.graphs import STOPPED, describe_status
    from druse.runs import Run
    from druse.tables import Rejected

    if (path / "run.json").is_file():
        parts = list(Run.open(path).generated())
        if not parts:
            raise InputError(f"no crystal of {path} is finished; go on with druse resume {path}")
        good = [str(number) for part in parts for number in part.ids[part.ok]]
        failed = [
            Rejected(str(number), describe_status(int(status) & STOPPED)[0])
            for part in parts
            for number, status in zip(part.ids[~part.ok], part.status[~part.ok], strict=True)
        ]
        made = Crystals.concatenate(part.take(np.flatnonzero(part.ok)) for part in parts)
        return made, [*good, *(row.id for row in failed)], failed
    entries = Entries.concatenate(read_entries([path], n_jobs=jobs, progress=lambda done: progress(done, done)))
    bad = np.flatnonzero(~entries.ok)
    if len(bad) == len(entries):
        first = f"; the first, {entries.ids[0]}: {entries.failures[0]}" if len(bad) else ""
        raise InputError(f"none of {len(bad)} entries of {path} could be read{first}")
    rejected = [Rejected(entries.ids[k], f"could not be read: {entries.failures[k]}") for k in bad]
    read = entries.take(np.flatnonzero(entries.ok))
    return read.crystals, [*read.ids, *(row.id for row in rejected)], rejected


def _print(found: Any, console: Console) -> None:
    console.print(f"[bold]{found.n_crystals:,}[/] crystals beside {found.n_reference:,} real ones\n", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", style="dim")
    for name in ("structural", "compositional", "valid", "recall", "precision", "unique"):
        share = getattr(found, name)
        if share is not None:
            title, meaning = _MEANINGS[name]
            low, high = share.interval()
            interval = "" if name == "unique" else f"{100 * low:.1f} to {100 * high:.1f}"
            table.add_row(title, f"{100 * share.value:.1f} %", interval, meaning)
    for name in ("density", "elements"):
        distance = getattr(found, name)
        title, meaning = _MEANINGS[name]
        table.add_row(title, "none valid" if math.isnan(distance) else f"{distance:.3f}", "", meaning)
    console.print(table)
    if reasons := found.reasons:
        console.print(f"\n[bold]{len(found.invalid):,}[/] are not valid", highlight=False)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right")
        grid.add_column(overflow="fold")
        for reason, count in list(reasons.items())[:_REASONS_SHOWN]:
            grid.add_row(f"{count:,}", Text("".join(c if c.isprintable() else "?" for c in reason)))
        console.print(grid)
        if (more := len(reasons) - _REASONS_SHOWN) > 0:
            console.print(f"and {more:,} reasons more; --json lists them all", highlight=False)
