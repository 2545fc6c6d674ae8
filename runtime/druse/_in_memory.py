"""Screening of crystals that are in memory."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from druse._array_sources import Arrays
from druse._arrays import Int64
from druse._entries import checked, column_of
from druse._judge import Judge, Verdict
from druse._processes import Processes
from druse._together import apply, narrowed
from druse.candidates import LIMITS
from druse.crystals import Crystals
from druse.errors import InputError
from druse.rules import RuleSet


@dataclasses.dataclass(frozen=True, eq=False)
class Screened:
    """What rules say of crystals in memory.

    Attributes:
        rules: for each crystal the name of the rule that refused it; empty where it survived.
        verdicts: of that rule: a reason and a number.
        columns: what was found of each crystal, by name; NaN or empty where it was refused before.
        survivors: places in the batch, best first where there is a score.
    """

    rules: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    columns: Mapping[str, np.ndarray]
    survivors: Int64[np.ndarray, "survivors"]


def screen(
    crystals: Crystals,
    rules: RuleSet,
    *,
    columns: Mapping[str, Any] | None = None,
    n_jobs: int = 1,
    cache: Path | None = None,
) -> Screened:
    """Judge crystals that are in memory; `Screening` does it for any number, in a folder.

    Args:
        crystals: any batch.
        rules: to judge by.
        columns: what is known of each crystal, by name: ``[crystals]`` numbers or text.
        n_jobs: processes for `UniqueRule` and `NovelRule`; 0 for every core.
        cache: see `Screening.finish`.

    Raises:
        InputError: a model or reference cannot be used, or columns are not as long as the batch.
    """
    given = {name: np.asarray(column) for name, column in (columns or {}).items()}
    for name, column in given.items():
        if column.shape != (len(crystals),):
            raise InputError(
                f"`columns` must have {len(crystals)} values each, {name!r} has shape {list(column.shape)}"
            )
    n = len(crystals)
    arrays = Arrays(
        tuple(map(str, range(n))), ("",) * n, crystals.cells, crystals.offsets, crystals.frac, crystals.species, ()
    )
    said = {name: column if column.dtype.kind == "U" else column_of(column.tolist()) for name, column in given.items()}
    entries = dataclasses.replace(checked(arrays, ("",) * n, LIMITS), columns=said)
    judged = Judge(rules, n_threads=0)(entries)
    names, verdicts = list(judged.rules), list(judged.verdicts)
    left, numbers = judged.entries.take(judged.alive), judged.alive
    with Processes(n_jobs, purpose="screening") as processes:
        for rule in rules.collective:
            outcome = apply(rule, left, numbers, processes, lambda *_: None, cache)
            for place, verdict in outcome.verdicts.items():
                names[numbers[place]], verdicts[numbers[place]] = rule.name, verdict
            left, numbers = narrowed(left, numbers, rule, outcome)
    found = dict(judged.entries.columns)
    if "score" in left.columns:
        found["score"] = np.full(n, math.nan)
        found["score"][numbers] = left.columns["score"]
    return Screened(tuple(names), tuple(verdicts), found, numbers.astype(np.int64))
