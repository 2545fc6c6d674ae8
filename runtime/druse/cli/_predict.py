"""``druse predict``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from druse.cli._counting import reading
from druse.cli._options import AsJSON, Jobs, Sources, backend_names
from druse.errors import InputError


def predict(
    sources: Sources,
    out: Annotated[
        Path, typer.Option(help="Table to write: .parquet, with the crystals, or .csv, without.", show_default=False)
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Property model, folder or .zip; several times for several."),
    ] = None,
    embedded: Annotated[
        bool,
        typer.Option("--embedded", help="The four models that come with Druse too; without --model always."),
    ] = False,
    backend: Annotated[str, typer.Option(help="auto, ort-cpu or ort-openvino.", autocompletion=backend_names)] = "auto",
    threads: Annotated[int, typer.Option(help="Of the networks; 0: every core.", min=0)] = 0,
    jobs: Jobs = 0,
    as_json: AsJSON = False,
) -> None:
    """Predict properties of crystals by CGCNN, without PyTorch.

    Example: druse predict runs/demo --out properties.parquet
    """
    from druse.candidates import Entries, read_entries, write_entries
    from druse.cli._unfinished import tell_unfinished
    from druse.properties import PropertyModels

    if out.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(f"--out must end with .parquet or .csv, got {out.name}")
    tell_unfinished(sources)
    models = PropertyModels.open(model or (), embedded=embedded or not model, backend=backend, n_threads=threads)
    with reading(wanted=not as_json) as progress:
        parts = [models.add_to(part) for part in read_entries(sources, n_jobs=jobs, progress=progress)]
    entries = Entries.concatenate(parts)
    if out.suffix.lower() == ".csv":
        _write_csv(out, entries)
    else:
        write_entries(out, entries, facts=models.units)
    summary = {name: _summary(entries.columns[name], unit) for name, unit in models.units.items() if len(entries)}
    unread = sum(not ok for ok in entries.ok)
    if as_json:
        content = {"file": str(out), "entries": len(entries), "unread": unread, "columns": summary}
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console()
    _print(summary, console if console.is_terminal else Console(width=160))
    typer.echo(f"{len(entries):,} entries in {out}" + (f", {unread:,} of which could not be read" if unread else ""))


def _summary(values: np.ndarray, unit: str) -> dict[str, Any]:
    """JSON has no NaN: None where no crystal has a value."""
    there = values[np.isfinite(values)]
    found: dict[str, float | None] = {"mean": None, "min": None, "max": None}
    if len(there):
        found = {"mean": float(there.mean()), "min": float(there.min()), "max": float(there.max())}
    return {"unit": unit, "count": len(there), **found}


def _print(summary: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("column", "unit", "count", "mean", "min", "max"):
        number = heading not in ("column", "unit")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for name, one in summary.items():
        numbers = ("" if one[key] is None else f"{one[key]:.4g}" for key in ("mean", "min", "max"))
        if "|" in name and sum(other.startswith(name[: name.index("|") + 1]) for other in summary) == 1:
            continue  # the only model of its property, whose column of the short name is the same
        style = "dim" if "|" in name else "bold"
        table.add_row(Text(name, style=style), Text(one["unit"]), f"{one['count']:,}", *numbers)
    console.print(table)


def _write_csv(path: Path, entries: Any) -> None:
    """A row for each entry; a field is empty where there is no value."""
    import csv

    from druse._files import in_a_table, whole_file
    from druse.elements import formula_of

    def text(value: Any) -> Any:
        return "" if isinstance(value, float) and math.isnan(value) else in_a_table(value)

    columns = {name: column.tolist() for name, column in entries.columns.items()}
    with whole_file(path, newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "file", "failure", "formula", "n_atoms", *map(in_a_table, columns)])
        for k, crystal in enumerate(entries.crystals):
            known = crystal.species.size and crystal.species.min() >= 1
            head = map(in_a_table, (entries.ids[k], entries.files[k], entries.failures[k]))
            formula = formula_of(crystal.species) if known else ""
            writer.writerow([*head, formula, len(crystal.species), *(text(column[k]) for column in columns.values())])
