"""What the rules that look at crystals together say: unique, novel, the best."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._entries import numbers_of
from druse._judge import MISSING, Verdict
from druse._processes import Processes
from druse.candidates import Entries
from druse.duplicates import duplicates
from druse.novelty import Reference, known
from druse.rules import NovelRule, Rule, ScoreTerm, TopKRule, UniqueRule

Progress = Callable[[int, int], None]
CANNOT = "it cannot be compared with others"


class Outcome(NamedTuple):
    """Of one rule.

    Attributes:
        verdicts: by the place of a crystal that is refused.
        scores: by the place of one that is not, best first; of `TopKRule` only.
    """

    verdicts: Mapping[int, Verdict]
    scores: Mapping[int, float]


def apply(
    rule: Rule, entries: Entries, numbers: np.ndarray, processes: Processes, progress: Progress, cache: Path | None
) -> Outcome:
    """What a rule says of those that are still in.

    Args:
        rule: one that judges crystals together.
        entries: those that are still in.
        numbers: ``[entries]`` of each in the whole screening.
        processes: that do the work.
        progress: called with crystals done and in all.
        cache: folder for what is known of a reference.
    """
    if isinstance(rule, UniqueRule):
        return _unique(entries, numbers, processes, progress)
    if isinstance(rule, NovelRule):
        return _novel(rule, entries, processes, progress, cache)
    if isinstance(rule, TopKRule):
        return _top_k(rule, entries)
    raise TypeError(f"{rule.name} judges crystals one by one")


def narrowed(entries: Entries, numbers: np.ndarray, rule: Rule, outcome: Outcome) -> tuple[Entries, np.ndarray]:
    """Those that are still in after a rule, and their numbers; in the order of their score if it gave one."""
    if not isinstance(rule, TopKRule):
        stay = np.array([place for place in range(len(entries)) if place not in outcome.verdicts], np.int64)
        return entries.take(stay), numbers[stay]
    stay = np.array(list(outcome.scores), np.int64)
    left, score = entries.take(stay), np.array(list(outcome.scores.values()), np.float64)
    return dataclasses.replace(left, columns={"score": score, **left.columns}), numbers[stay]


def _unique(entries: Entries, numbers: np.ndarray, processes: Processes, progress: Progress) -> Outcome:
    """Refuses what is the same as an earlier one; the number of a verdict is that one's."""
    first = duplicates(entries.crystals, processes=processes, progress=progress)
    found = {}
    for b, place in enumerate(first.tolist()):
        if place < 0:
            found[b] = Verdict(CANNOT, math.nan)
        elif place != b:
            found[b] = Verdict(f"the same as {entries.ids[place]}", float(numbers[place]))
    return Outcome(found, {})


def _novel(rule: NovelRule, entries: Entries, processes: Processes, progress: Progress, cache: Path | None) -> Outcome:
    """Refuses what the reference has; the number of a verdict is its place there."""
    reference = Reference.open(rule.reference, cache=cache)
    match = known(entries.crystals, reference, processes=processes, progress=progress).match
    found = {}
    for b, place in enumerate(match.tolist()):
        if place >= 0:
            found[b] = Verdict(f"known: {reference.names[place]}", float(place))
        elif place < -1:
            found[b] = Verdict(CANNOT, math.nan)
    return Outcome(found, {})


def _top_k(rule: TopKRule, entries: Entries) -> Outcome:
    """Refuses all but the best; of equal ones the earlier is better."""
    parts = [_term(term, entries) for term in rule.score]
    with np.errstate(all="ignore"):
        total = functools.reduce(np.add, parts)
    found = {}
    for b in np.flatnonzero(np.isnan(total)).tolist():
        missing = (term.column for term, part in zip(rule.score, parts, strict=True) if math.isnan(part[b]))
        name = next(missing, "score")  # where no term is missing, two are infinite and against each other
        found[b] = Verdict(MISSING.format(name), math.nan)
    formulas = _reduced(entries) if rule.per_formula is not None else []
    order = [int(b) for b in np.argsort(-total, kind="stable") if b not in found]
    chosen: dict[int, float] = {}
    of_formula: collections.Counter[Any] = collections.Counter()
    for b in order:
        score = float(total[b])
        if rule.per_formula is not None and of_formula[formulas[b]] >= rule.per_formula:
            found[b] = Verdict(f"{rule.per_formula} of its formula are better", score)
        elif len(chosen) == rule.k:
            found[b] = Verdict(f"not among the best {rule.k:,}", score)
        else:
            chosen[b] = score
            of_formula.update(formulas[b : b + 1])
    return Outcome(found, chosen)


def _number(entries: Entries, name: str) -> np.ndarray:
    """A column as numbers; NaN where nothing is known, or it is no number."""
    column = entries.columns.get(name)
    return np.full(len(entries), math.nan) if column is None else numbers_of(column)


def _term(term: ScoreTerm, entries: Entries) -> np.ndarray:
    values = _number(entries, term.column)
    if term.goal == "target":
        aim = _number(entries, term.target) if isinstance(term.target, str) else np.float64(term.target or 0.0)
        with np.errstate(invalid="ignore"):  # infinity is as far from itself as nothing is known
            values = -np.abs(values - aim)
    with np.errstate(all="ignore"):
        found: np.ndarray = term.weight * (-values if term.goal == "min" else values) / term.scale
    return found


def _reduced(entries: Entries) -> list[Any]:
    found: list[Any] = []
    for crystal in entries.crystals:
        numbers, counts = np.unique(crystal.species, return_counts=True)
        found.append((*numbers.tolist(), *(counts // (math.gcd(*counts.tolist()) or 1)).tolist()))
    return found
