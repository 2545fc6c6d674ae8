"""Moving weights between naming schemes, with every gap reported at once."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from druse.errors import InputError


class Rule(NamedTuple):
    """One tensor of ours, from one of theirs."""

    ours: str
    theirs: str
    change: Callable[[Tensor], Tensor] | None = None


def same(names: Iterable[tuple[str, str]], suffixes: tuple[str, ...] = ("weight", "bias")) -> list[Rule]:
    """Rules for modules whose tensors have the same names in both schemes."""
    return [Rule(f"{ours}.{suffix}", f"{theirs}.{suffix}") for ours, theirs in names for suffix in suffixes]


def mlp_rules(ours: str, theirs: str, n_linear: int, *, batch_norm: bool = False) -> list[Rule]:
    """Rules for `druse_export.models.blocks.mlp`: linear layers at places 0, 2, ...; with batch-norm 0, 3, 5, ..."""
    places = [0, *range(3, 2 * n_linear + 1, 2)] if batch_norm else list(range(0, 2 * n_linear, 2))
    rules = same((f"{ours}.{k}", f"{theirs}.{k}") for k in places)
    if batch_norm:
        statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        rules += same([(f"{ours}.1", f"{theirs}.1")], statistics)
    return rules


def load_weights(
    module: nn.Module, rules: Iterable[Rule], theirs: Mapping[str, Tensor], *, unused: Iterable[str] = (), source: str
) -> None:
    """Fill ``module`` by the rules.

    Args:
        module: to be filled; every parameter and buffer must be named by a rule.
        rules: which tensor of ours comes from which of theirs.
        theirs: the checkpoint's tensors.
        unused: prefixes of their names that are known to have no use here.
        source: the file's name, for the error.

    Raises:
        InputError: lists every weight that is missing, has another shape, or is left over.
    """
    wanted = module.state_dict()
    filled: dict[str, Tensor] = {}
    used, problems = set(), []
    for rule in rules:
        if rule.theirs not in theirs:
            problems.append(f"missing {rule.theirs}")
            continue
        used.add(rule.theirs)
        value = theirs[rule.theirs]
        value = rule.change(value) if rule.change else value
        if rule.ours in wanted and value.shape != wanted[rule.ours].shape:
            problems.append(f"{rule.theirs} has shape {list(value.shape)}, wanted {list(wanted[rule.ours].shape)}")
            continue
        filled[rule.ours] = value.contiguous().clone()
    problems += [f"nothing fills {name}" for name in wanted if name not in filled and not problems]
    skipped = tuple(unused)
    problems += [f"unused {name}" for name in theirs if name not in used and not name.startswith(skipped)]
    if problems:
        shown = "; ".join(problems[:40]) + (f"; and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise InputError(f"{source} does not fit this model: {shown}")
    with torch.no_grad():
        module.load_state_dict(filled)
