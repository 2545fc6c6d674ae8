"""A report in words: its tiles, its funnel, and where its numbers are from."""

from collections.abc import Sequence
from typing import Any

from druse._changes import Change, Parity
from druse._figures import Hit
from druse._manifest import in_one_line
from druse._page import Candidates, percent
from druse._population import Population, Property, measured
from druse._reported import Stage, formula_of_crystal

_REASONS = 30
_TILES = 6
_BY_PREDICTOR = "as the latent's Predictor says, which has not seen the crystal."


def mean_change(row: Change, name: str) -> tuple[float | None, int | None]:
    """A mean, and of how many crystals where it is not of all."""
    n = row.counts.get(name)
    return row.means.get(name), None if n == max(row.counts.values(), default=0) else n


def tiles(
    stages: Sequence[Stage],
    population: Population,
    hits: Sequence[Hit],
    changes: Sequence[Change],
    parities: Sequence[Parity],
    found: Candidates,
) -> list[dict[str, str]]:
    """The largest numbers of the page, at most six."""
    n = len(population.group)
    entered = sum(stage.n_entries for stage in stages if stage.kind == "screen")
    shown = [(f"{n:,}", "crystals" if not population.screened else "entries judged")]
    if population.screened and entered:
        shown.append((f"{int(population.survived.sum()):,}", "survive the rules"))
    if len(population.groups) > 1:
        shown.append((f"{len(population.groups)}", "groups by what was asked"))
    single = [hit for hit in hits if hit.window]
    if single:
        count, total = sum(hit.count for hit in single), sum(hit.total for hit in single)
        judges = {source(stages, population, spec) for spec in population.properties if is_asked(population, spec)}
        by = ", by the Predictor's word" if judges == {_BY_PREDICTOR} else ", within their windows"
        shown.append((percent(count / total), f"of the targets met{by}"))
    shown += [
        (f"{measured(row.means['rmsd_angstrom'])} Å", f"mean RMSD of {row.stage}")
        for row in changes
        if "rmsd_angstrom" in row.means
    ]
    shown += [
        (f"{measured(one.mae)} {one.unit}".strip(), f"mean error of {one.label.lower()} against DFT")
        for one in parities
    ]
    compositions = set(map(formula_of_crystal, found.entries.crystals))
    shown.append((f"{len(compositions):,}", "compositions among candidates"))
    parts = [(*figure.partition(" ")[::2], what) for figure, what in shown[:_TILES]]
    return [{"figure": figure, "unit": unit, "what": what} for figure, unit, what in parts]


def about(population: Population) -> str:
    """Whose properties are told."""
    names = ", ".join(dict.fromkeys(population.stages))
    if population.screened:
        return f"Of all entries of {names} whose property is known, survivors and refused ones."
    return f"Of all crystals of {names}."


def source(stages: Sequence[Stage], population: Population, spec: Property) -> str:
    """Where the numbers of a property are from, in a sentence."""
    told = [stage for stage in stages if stage.name in population.stages]
    models = sorted({
        in_one_line(" ".join(name.split("|")[1:3]))
        for stage in told
        for name in stage.rows
        if name.startswith(f"{spec.key}|") and name.count("|") == 3
    })  # fmt: skip
    if models:
        return f"by {', '.join(models)}."
    if any(spec.key in stage.rows for stage in told):
        return "as the folder has it."
    return _BY_PREDICTOR


def is_asked(population: Population, spec: Property) -> bool:
    """Whether it is a target of any group."""
    return any(spec.key in group.targets for group in population.groups)


def judges(stages: Sequence[Stage], population: Population) -> str:
    """Who says of each property that was asked for what it is."""
    asked = [spec for spec in population.properties if is_asked(population, spec)]
    return " ".join(f"{spec.label}: {source(stages, population, spec)}" for spec in asked)


def funnel(stage: Stage) -> dict[str, Any]:
    """The rules of a screening, as the template shows them."""
    entries = max(stage.n_entries, 1)
    others = {name: spent for name, spent in stage.seconds.items() if name not in {rule.name for rule in stage.funnel}}
    return {
        "name": stage.name,
        "entries": stage.n_entries,
        "survivors": stage.funnel[-1].passed,
        "seconds": sum(stage.seconds.values()) if stage.seconds else None,
        "others": list(others.items()),
        "rules": [
            {
                "name": rule.name if rule.kind in ("", rule.name) else f"{rule.name} ({rule.kind})",
                "entered": rule.entered,
                "refused": rule.refused,
                "passed": rule.passed,
                "share": rule.passed / entries,
                "lost": rule.refused / entries,
                "seconds": rule.seconds,
                "reasons": rule.reasons[:_REASONS],
                "n_reasons": len(rule.reasons),
            }
            for rule in stage.funnel
        ],
    }
