"""One HTML page on what generation, screening, relaxation and DFT came to: to look at rather than read.

The page holds all that it shows; it loads nothing from a network, and its bytes depend on the folders alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from druse import __version__
from druse import _changes as changed
from druse import _figures as figures
from druse import _page as page
from druse import _wording as wording
from druse._arrays import number as checked
from druse._files import whole_file
from druse._population import CLASSES, Population, Property, populate
from druse._processes import Processes
from druse._reported import KINDS, Stage, read_stage
from druse._rows import read_rows
from druse.conditions import crystal_system
from druse.crystals import Crystals
from druse.errors import InputError
from druse.properties import PropertyModels
from druse.symmetry import ANGLE_TOLERANCE, SYMPREC, space_groups

__all__ = ["Reported", "build_report", "write_report"]

TOP = 24

_SYMMETRY = 2000
"""Crystals of a run whose space groups are looked for: pymatgen takes ten milliseconds for each."""

_PIECE = 64

_SECTIONS = (
    ("asked", "Asked", "stages"),
    ("funnel", "Funnel", "funnels"),
    ("properties", "Properties", "histograms"),
    ("pairs", "Pairs", "points"),
    ("hits", "Hit rates", "has_hits"),
    ("symmetry", "Symmetry", "crystal_systems"),
    ("relaxation", "Relaxation", "changes"),
    ("dft", "DFT", "parities"),
    ("candidates", "Top candidates", "cards"),
    ("table", "All candidates", "cards"),
)


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """What a page says, in numbers.

    Attributes:
        file: of the page; empty where it was not written.
        bytes: of it.
        folders: name and kind of each.
        groups: of crystals of which the same was asked.
        entries, survivors: of all groups.
        hits: how many of each group have what was asked.
        systems: crystal systems of each group, in the order of `druse._population.SYSTEMS`.
        changes: of relaxations.
        candidates: crystals that could be shown.
    """

    file: str
    bytes: int
    folders: list[tuple[str, str]]
    groups: list[str]
    entries: int
    survivors: int
    hits: list[dict[str, Any]]
    systems: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    candidates: int


def build_report(
    folders: Sequence[Any],
    *,
    top: int = TOP,
    windows: Mapping[str, float] | None = None,
    reference: Any = None,
    models: bool = True,
    symmetry: bool = True,
    n_jobs: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """The page, see `write_report`."""
    return _build(folders, top, windows or {}, reference, models, symmetry, n_jobs, progress)[0]


def write_report(
    path: Any,
    folders: Sequence[Any],
    *,
    top: int = TOP,
    windows: Mapping[str, float] | None = None,
    reference: Any = None,
    models: bool = True,
    symmetry: bool = True,
    n_jobs: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> Reported:
    """Write a page on folders of `druse.runs`, screenings, relaxations and DFT, which appears whole or not at all.

    Args:
        path: of the page.
        folders: any of these; of several, each section shows what they have of it.
        top: candidates that get a card with a view of the crystal.
        windows: by property, the distance from a target within which it is met, for others than the usual ones.
        reference: table of other crystals (see `druse._rows`) whose properties histograms show in grey.
        models: whether to ask the property models of the crystals of a run, where there is no screening, which has
            done so; else what the latent's Predictor said.
        symmetry: the same for space groups (of 2,000 crystals of a run, evenly taken).
        n_jobs: processes and threads for that; 0 for every core.
        progress: called with what is done, and how many crystals of how many.

    Raises:
        InputError: a folder is none of these, or holds nothing yet; a window is not above 0, or is of no property; the
            reference cannot be read.
        MissingDependencyError: Jinja, ASE or pymatgen is not installed.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give the name of the page, such as {path}/report.html")
    text, said = _build(folders, top, windows or {}, reference, models, symmetry, n_jobs, progress)
    content = text.encode()
    with whole_file(Path(path), "wb") as file:
        file.write(content)
    return msgspec.structs.replace(said, file=str(path), bytes=len(content))


def _build(
    folders: Sequence[Any],
    top: int,
    windows: Mapping[str, float],
    reference: Any,
    models: bool,
    symmetry: bool,
    n_jobs: int,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[str, Reported]:
    if not folders:
        raise InputError("a report needs at least one folder of a run, a screening, a relaxation or DFT; none is given")
    top = checked("top", top, "a whole number from 0 to 500", lambda n: 0 <= n <= 500, integer=True)
    for name, window in windows.items():
        if not (isinstance(window, int | float) and 0 < window < math.inf):
            raise InputError(f"`windows` must be numbers above 0, got {window!r} for {name}")
    notes: list[str] = []
    stages = [read_stage(folder) for folder in folders]
    screened = any(stage.kind == "screen" for stage in stages)
    stages = [
        _described(stage, models, symmetry, n_jobs, progress, notes) if stage.kind == "run" and not screened else stage
        for stage in stages
    ]
    population = populate(stages)
    properties = [spec.key for spec in population.properties]
    if unknown := [name for name in windows if name not in properties]:
        raise InputError(
            f"`windows` has {unknown[0]!r}, which is no property here; there are {', '.join(properties) or 'none'}"
        )
    others = {} if reference is None else _reference(Path(reference), population.properties)
    found = page.candidates(stages, population, windows)
    context, data = _shown(stages, population, found, windows, others, top, notes)
    said = Reported(
        file="",
        bytes=0,
        folders=[(stage.name, stage.kind) for stage in stages],
        groups=[group.label for group in population.groups],
        entries=len(population.group),
        survivors=int(population.survived.sum()),
        hits=[{**msgspec.to_builtins(hit), "share": hit.share} for hit in context["hits"]],
        systems=[msgspec.to_builtins(row) for row in context["crystal_systems"]],
        changes=[
            {key: value for key, value in row.items() if key not in ("cells", "failures")} for row in context["changes"]
        ],
        candidates=found.total,
    )
    return page.render(context, data), said


def _shown(
    stages: Sequence[Stage],
    population: Population,
    found: page.Candidates,
    windows: Mapping[str, float],
    others: Mapping[str, np.ndarray],
    top: int,
    notes: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template shows, and what its script draws."""
    histograms = [
        made
        for spec in population.properties
        if (
            made := figures.histogram(
                spec,
                population.of(spec.key),
                population.group,
                population.groups,
                survived=population.survived if population.screened else None,
                reference=others.get(spec.key),
            )
        )
    ]
    points, hits, systems = figures.points(population), figures.hits(population, windows), figures.systems(population)
    changes = [change for stage in stages if (change := changed.change(stage))]
    parities = [parity for stage in stages if stage.kind == "dft" for parity in changed.parity(stage)]
    displacements, displaced = changed.displacements(stages)
    table = page.table(found, population)
    structures, elements = page.structures(found.entries)
    cards = page.cards(found, population, top)
    classes = [
        {"group": g, "what": CLASSES.get(name, name), "total": share.total, "share": share.value}
        for name, rows in figures.classes(population).items()
        for g, share in rows
    ]
    columns = [name for name in changed.CHANGES if any(name in row.means for row in changes)]
    keys = [column["key"] for column in table.columns]
    example = "formation_energy_per_atom<0" if "formation_energy_per_atom" in keys else "n_atoms<8"
    context: dict[str, Any] = {
        "version": __version__,
        "title": " · ".join(dict.fromkeys(stage.name for stage in stages)),
        "tiles": wording.tiles(stages, population, hits, changes, parities, found),
        "stages": [{"kind": KINDS[stage.kind], "name": stage.name, "facts": stage.facts} for stage in stages],
        "notes": notes,
        "funnels": [wording.funnel(stage) for stage in stages if stage.funnel],
        "histograms": histograms,
        "sources": {spec.key: f"Values {wording.source(stages, population, spec)}" for spec in population.properties},
        "screened": population.screened,
        "population_note": wording.about(population),
        "groups": population.groups,
        "points": points,
        "hits": hits,
        "hit_note": wording.judges(stages, population),
        "classes": classes,
        "has_hits": hits or classes,
        "crystal_systems": systems,
        "symmetry_note": f"pymatgen, symprec {SYMPREC:g} Å, angle_tolerance {ANGLE_TOLERANCE:g}°, unless the folder "
        "says otherwise",
        "changes": [
            {**msgspec.to_builtins(row), "cells": [wording.mean_change(row, name) for name in columns]}
            for row in changes
        ],
        "change_columns": [changed.CHANGES[name] for name in columns],
        "paper_cells": [changed.PAPER_CHANGES.get(name) for name in columns],
        "change_histograms": displacements,
        "parities": parities,
        "cards": cards,
        "many_folders": len(set(found.entries.files)) > 1,
        "n_candidates": found.total,
        "n_rows": len(table.rows),
        "order": found.order,
        "filter_example": example,
    }
    context["sections"] = [(key, label) for key, label, needs in _SECTIONS if context[needs]]
    data = {
        "groups": msgspec.to_builtins(population.groups),
        "histograms": msgspec.to_builtins(histograms),
        "points": msgspec.to_builtins(points),
        "changes": msgspec.to_builtins(displacements),
        "change_names": displaced,
        "parities": msgspec.to_builtins(parities),
        "table": {"columns": table.columns, "rows": table.rows},
        "structures": structures,
        "elements": elements,
    }
    return context, data


def _described(
    stage: Stage,
    models: bool,
    symmetry: bool,
    n_jobs: int,
    progress: Callable[[str, int, int], None] | None,
    notes: list[str],
) -> Stage:
    """The crystals of a run with what property models and the search for space groups say of them."""
    rows, n = dict(stage.rows), len(stage.crystals)
    crystals = stage.crystals.crystals
    if models:
        rows |= PropertyModels.open(n_threads=n_jobs).columns(crystals)
    if symmetry and n:
        chosen = np.arange(n) if n <= _SYMMETRY else np.linspace(0, n - 1, _SYMMETRY).astype(np.int64)
        if len(chosen) < n:
            notes.append(f"Space groups of {stage.name} were looked for in {len(chosen):,} of its {n:,} crystals.")
        numbers = np.full(n, np.nan)
        parts = [chosen[k : k + _PIECE] for k in range(0, len(chosen), _PIECE)]
        with Processes(n_jobs, purpose="looking for space groups") as processes:
            done = 0
            for part, some in zip(parts, processes.map(_groups_of, (crystals.take(p) for p in parts)), strict=True):
                numbers[part], done = some, done + len(part)
                if progress is not None:
                    progress("space groups", done, len(chosen))
        rows["spacegroup"] = numbers
        rows["crystal_system"] = np.array([crystal_system(int(v)) if v >= 1 else "" for v in numbers.tolist()], str)
    return dataclasses.replace(stage, rows=rows)


def _groups_of(crystals: Crystals) -> np.ndarray:
    return np.asarray(space_groups(crystals).numbers, np.float64)


def _reference(path: Path, properties: Sequence[Property]) -> dict[str, np.ndarray]:
    """The properties of a table of other crystals, whose structures are not looked at."""
    wanted = [spec.key for spec in properties]
    values: dict[str, list[float]] = {key: [] for key in wanted}
    for row in read_rows(path):
        for key in wanted:
            try:
                values[key].append(float(row.columns.get(key, "nan")))
            except (TypeError, ValueError):
                values[key].append(math.nan)
    if not any(np.isfinite(column).any() for column in values.values()):
        raise InputError(
            f"{path} has no numbers in the columns {', '.join(wanted) or '(none)'}; give another reference"
        )
    return {key: np.array(column, np.float64) for key, column in values.items()}
