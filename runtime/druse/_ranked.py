"""Ranked latents as Parquet, and back: all of a run's, or the best of those that are drawn so far."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from druse._columns import read_columns, read_facts, write_columns
from druse._request import Ranked, Ranking
from druse.errors import InputError

_DRAWN = "drawn"


def write_ranked(path: Path, ranked: Ranked, facts: Mapping[str, str]) -> None:
    """A file that appears whole or not at all."""
    columns = {"latent": ranked.latent_ids, "z": ranked.z, "cost": ranked.cost}
    columns |= {f"condition_{name}": value for name, value in ranked.values.items()}
    columns |= {f"predicted_{name}": value for name, value in ranked.predicted.items()}
    write_columns(path, columns, facts)


def read_ranked(path: Path, advice: str) -> Ranked:
    """What `write_ranked` wrote.

    Args:
        path: of the file.
        advice: what to do where it cannot be read.

    Raises:
        InputError: it is damaged, or another file.
    """
    columns = read_columns(path, advice)
    try:
        latent, z, cost = columns["latent"], columns["z"], columns["cost"]
    except KeyError as error:
        raise InputError(f"{path} has no column {error}; {advice}") from error
    if fault := column_fault(columns) or ("" if z.ndim == 2 and latent.ndim == cost.ndim == 1 else "z is no table"):
        raise InputError(f"{path} is not this run's ({fault}); {advice}")
    return Ranked(latent, z, cost, grouped_columns(columns, "condition_"), grouped_columns(columns, "predicted_"))


def column_fault(columns: Mapping[str, Any]) -> str:
    """Why columns are none of a run: they are numbers, and text only where a condition may be; empty if they are."""
    for name, column in columns.items():
        kinds = "biufU" if name.startswith("condition_") else "biuf"
        if not isinstance(column, np.ndarray) or column.dtype.kind not in kinds:
            return f"the column {name} holds something else"
    return ""


def write_ranking(path: Path, ranking: Ranking, facts: Mapping[str, str]) -> None:
    """A file that appears whole or not at all, and takes the place of an earlier one."""
    write_ranked(path, ranking.best, {**facts, _DRAWN: str(ranking.drawn)})


def read_ranking(path: Path, count: int, total: int, advice: str) -> Ranking:
    """What `write_ranking` wrote, of a run of ``count`` crystals that has not drawn all its ``total`` latents yet.

    Raises:
        InputError: it is damaged, or of another run.
    """
    best, drawn = read_ranked(path, advice), read_facts(path, advice).get(_DRAWN, "")
    if not (drawn.isdecimal() and 0 < int(drawn) < total and len(best.cost) == min(int(drawn), count)):
        raise InputError(f"{path} is not this run's; {advice}")
    return Ranking(int(drawn), best)


def grouped_columns(columns: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}
