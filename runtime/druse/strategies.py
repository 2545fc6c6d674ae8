"""Strategies: what every latent is conditioned on (section 2.2 of the paper).

===========  ==========  ==================================================================================
strategy     prior       properties that are not given
===========  ==========  ==================================================================================
``default``  `default`   there must be none
``full``     `full`      there must be none
``less``     `full`      drawn, for each latent, from rows of the training data that are near the given ones
``auto``                 the first of the three that what is given is enough for
===========  ==========  ==================================================================================
"""

import contextlib
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from druse._arrays import CrystalIds
from druse._columns import columns_in
from druse.bundle import CONDITIONS, Bundle
from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty, encode
from druse.control import Control
from druse.errors import InputError
from druse.noise import Purpose, uniform

__all__ = ["Conditions", "RangeWarning", "Strategy", "conditions_for"]

Strategy = Literal["auto", "default", "full", "less"]

NEAR = 256
"""Training rows that `less` draws from: so many nearest to the given properties, and all as near as the last one."""


class RangeWarning(UserWarning):
    """A target lies outside of what the model was trained for."""


class Conditions(NamedTuple):
    """What latents are conditioned on.

    Attributes:
        strategy: ``default``, ``full`` or ``less``.
        prior: its name in the bundle.
        specs: every property that the prior and the model take.
        given: by name, checked: numbers, class numbers, formulas.
        rows: by name the values, one for each near row of the training data, of the properties that are drawn.
        independent: whether each property is drawn from a row of its own.
    """

    strategy: str
    prior: str
    specs: tuple[Property, ...]
    given: dict[str, Any]
    rows: dict[str, np.ndarray]
    independent: bool

    def values(self, seed: int, latent_ids: CrystalIds) -> dict[str, np.ndarray]:
        """By name ``[latents]``: the given values, and draws named by run and latent."""
        n = len(latent_ids)
        values = {name: np.full(n, value) for name, value in self.given.items()}
        if self.rows:
            width = len(self.rows) if self.independent else 1
            draws = uniform(seed, Purpose.CONDITION, 0, latent_ids, width=width)
            for place, (name, column) in enumerate(self.rows.items()):
                values[name] = column[(draws[:, place % width] * len(column)).astype(np.int64)]
        return values


def conditions_for(
    bundle: Bundle,
    targets: Mapping[str, Any],
    *,
    strategy: str = "auto",
    control: Control | None = None,
    independent: bool = False,
) -> Conditions:
    """What a run is conditioned on.

    Args:
        bundle: of the generator.
        targets: numbers, class numbers or labels, formulas, by property.
        strategy: see above.
        control: of which an atom count, a composition and a crystal system are given as properties too, where the
            model has them and no target says otherwise.
        independent: for ``less``: draw every property from a row of its own, not all from one row.

    Raises:
        InputError: a property is unknown, a value is none of its values, or the strategy wants more than is given.

    Warns:
        RangeWarning: a number lies outside the range that the model was trained for.
    """
    manifest = bundle.con_cdvae
    if strategy not in get_args(Strategy):
        raise InputError(f"`strategy` must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")
    every = {spec.name: spec for prior in manifest.priors.values() for spec in prior.conditions}
    every |= {spec.name: spec for spec in manifest.conditions}
    given = {name: _checked(every, name, value) for name, value in targets.items()}
    implied = {}
    for name, value in _implied(control or Control(), every).items():
        with contextlib.suppress(InputError):  # no value of this model's property: the masks hold without it
            implied[name] = _checked(every, name, value)
    reasons = []
    for name in ("default", "full", "less") if strategy == "auto" else (strategy,):
        prior = "default" if name == "default" else "full"
        if prior not in manifest.priors:
            known = ", ".join(manifest.priors) or "none"
            reasons.append(f"{name}: the bundle has no prior {prior!r}, only {known}")
            continue
        specs = {spec.name: spec for spec in (*manifest.priors[prior].conditions, *manifest.conditions)}
        unused = sorted(given.keys() - specs)
        if unused:
            reasons.append(f"{name}: it does not take {', '.join(unused)}, only {', '.join(specs)}")
            continue
        known_values = {key: value for key, value in {**implied, **given}.items() if key in specs}
        missing = [key for key in specs if key not in known_values]
        if missing and name != "less":
            reasons.append(f"{name}: it needs {', '.join(missing)} too")
            continue
        rows = _near(bundle, specs, known_values, missing) if missing else {}
        return Conditions(name, prior, tuple(specs.values()), known_values, rows, independent)
    raise InputError(
        f"no strategy fits the targets ({'; '.join(reasons)}); give what is missing as targets, or a bundle that has it"
    )


def _implied(control: Control, every: Mapping[str, Property]) -> dict[str, Any]:
    """Properties that a control fixes, of those that the model has."""
    found: dict[str, Any] = {}
    if control.crystal_system:
        found["crystal_system"] = control.crystal_system
    if control.n_atoms is not None and control.n_atoms[0] == control.n_atoms[1]:
        found["n_atom"] = control.n_atoms[0]
    if control.formula:
        found |= {spec.name: control.formula for spec in every.values() if isinstance(spec, CompositionProperty)}
    return {name: value for name, value in found.items() if name in every}


def _checked(every: Mapping[str, Property], name: str, value: Any) -> Any:
    """One value of a property, as number, class number or formula."""
    spec = every.get(name)
    if spec is None:
        raise InputError(f"no target {name!r}; this model knows {', '.join(map(describe, every.values()))}")
    if isinstance(spec, ScalarProperty) and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"`{name}` must be a number, got {value!r}; write {name}={spec.minimum:g}") from None
    if isinstance(spec, ClassProperty) and isinstance(value, str) and value not in spec.labels and value.isdecimal():
        value = int(value)
    if np.ndim(value):
        raise InputError(f"`{name}` must be one value, got {value!r}")
    encoded = encode([spec], {name: value}, 1)[name][0]
    if isinstance(spec, CompositionProperty):
        return value
    if isinstance(spec, ClassProperty):
        return int(encoded)
    if not spec.minimum <= float(value) <= spec.maximum:
        warnings.warn(
            f"the model was trained for {name} from {spec.minimum:g} to {spec.maximum:g} {spec.unit}".rstrip()
            + f"; {float(value):g} is outside",
            RangeWarning,
            stacklevel=4,
        )
    return float(value)


def describe(spec: Property) -> str:
    """A property in a few words, for errors and tables."""
    if isinstance(spec, ScalarProperty):
        return f"{spec.name} ({spec.minimum:g} to {spec.maximum:g}{f' {spec.unit}' if spec.unit else ''})"
    if isinstance(spec, ClassProperty):
        labels = "|".join(spec.labels) if 0 < len(spec.labels) <= 10 else f"0 to {spec.n_classes - 1}"
        return f"{spec.name} ({labels})"
    return f"{spec.name} (a formula)"


def _near(
    bundle: Bundle, specs: Mapping[str, Property], given: Mapping[str, Any], missing: list[str]
) -> dict[str, np.ndarray]:
    """Of the properties that are missing, the values in the training rows nearest to those that are given."""
    table = _training_rows(bundle, specs)
    absent = [name for name in missing if name not in table]
    if absent:
        raise InputError(
            f"the strategy less draws {', '.join(absent)} from training data, which {bundle.name} does not have; give "
            "them as targets, or build the bundle with --data"
        )
    n = len(next(iter(table.values())))
    distance = np.zeros(n)
    for name, value in given.items():
        spec = specs[name]
        if name not in table or isinstance(spec, CompositionProperty):
            continue
        if isinstance(spec, ClassProperty):
            distance[table[name] != value] = math.inf
        else:
            distance += np.abs(table[name] - value) / (spec.maximum - spec.minimum)
    for name in missing:
        if table[name].dtype.kind == "f":
            distance[~np.isfinite(table[name])] = math.inf
    order = np.argsort(distance, kind="stable")
    order = order[np.isfinite(distance[order])]
    if len(order) and any(name in table for name in given):
        order = order[distance[order] <= distance[order[min(NEAR, len(order)) - 1]]]  # and what ties with the last
    if not len(order):
        raise InputError(f"no training row has {', '.join(f'{k}={v}' for k, v in given.items())}; give all properties")
    return {name: table[name][order] for name in missing}


def _training_rows(bundle: Bundle, specs: Mapping[str, Property]) -> dict[str, np.ndarray]:
    """By name the values of properties in the training data: numbers, and text of a formula."""
    if CONDITIONS not in bundle.manifest.files:
        return {}
    place = f"{bundle.name}: {CONDITIONS}"
    table = columns_in(bundle.read(CONDITIONS), place, "build the bundle again")
    for name, column in table.items():
        kinds, what = ("U", "formulas") if isinstance(specs.get(name), CompositionProperty) else ("iuf", "numbers")
        if name in specs and not (isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in kinds):
            raise InputError(f"{place} must have {what} in the column {name}; build the bundle again")
    return {name: column for name, column in table.items() if name in specs}
