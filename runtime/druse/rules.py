"""Rules of a screening, as values and as TOML.

A rule judges crystals one by one (`GeometryRule`, `CompositionRule`, `PropertyRule`, `SymmetryRule`), or all together
that have passed those (`UniqueRule`, `NovelRule`, `TopKRule`). Cheap ones come before dear ones, and those that judge
crystals together come last, whatever their order in a file; rules of one kind keep theirs. So each crystal is judged by
the first rule that refuses it, and what survives does not depend on the order.
"""

import math
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from druse._files import read_small
from druse._manifest import in_one_line
from druse.conditions import CRYSTAL_SYSTEMS
from druse.elements import SYMBOLS
from druse.errors import InputError
from druse.symmetry import ANGLE_TOLERANCE, SYMPREC, Method

__all__ = [
    "MODELS",
    "READ",
    "CompositionRule",
    "GeometryRule",
    "NovelRule",
    "PropertyRule",
    "Rule",
    "RuleSet",
    "ScoreTerm",
    "SymmetryRule",
    "TopKRule",
    "UniqueRule",
    "default_rules",
    "default_rules_text",
    "is_collective",
    "read_rules",
]


READ, MODELS = "read", "property models"
"""Names of what is no rule, in counts and times; no rule can have them."""


class _Base(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", omit_defaults=True
):
    """What every rule has.

    Attributes:
        name: in results; empty: the kind, numbered where there are several.
    """

    name: str = ""


class GeometryRule(_Base, frozen=True, tag="geometry"):
    """Distances, volume, and the shape of the cell as it is given. None asks nothing.

    Attributes:
        min_distance: that atoms keep from one another, images included, in Angstrom.
        max_isolation: distance in Angstrom within which each atom has a neighbour; at most 10.
        min_volume, max_volume: for each atom, in cubic Angstrom.
        min_angle, max_angle: between the edges of the cell, in degrees.
        min_height: of the cell, between opposite faces, in Angstrom.
        max_aspect: longest edge over shortest.
    """

    min_distance: float | None = 0.5
    max_isolation: float | None = None
    min_volume: float | None = None
    max_volume: float | None = None
    min_angle: float | None = None
    max_angle: float | None = None
    min_height: float | None = None
    max_aspect: float | None = None

    def __post_init__(self) -> None:
        _positive(self, "min_distance", "max_isolation", "min_volume", "max_volume", "min_height", "max_aspect")
        _positive(self, "min_angle", "max_angle")
        _window(self, "min_volume", "max_volume")
        _window(self, "min_angle", "max_angle")
        for name in ("min_distance", "max_isolation"):
            if (value := getattr(self, name)) is not None and value > LONGEST:
                raise ValueError(f"`{name}` must be at most {LONGEST:g} Å, got {value:g}")


LONGEST = 10.0
"""Angstrom: nearest neighbours are looked for within it."""


class CompositionRule(_Base, frozen=True, tag="composition"):
    """Elements, atoms, and charges.

    Attributes:
        allowed: elements; empty: all.
        required: elements, all of them.
        excluded: elements.
        min_elements, max_elements: different ones.
        min_atoms, max_atoms: in the cell.
        neutral: charge neutrality and electronegativity by SMACT; see `druse.validity.compositional_faults`.
    """

    allowed: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    min_elements: int | None = None
    max_elements: int | None = None
    min_atoms: int | None = None
    max_atoms: int | None = None
    neutral: bool = False

    def __post_init__(self) -> None:
        for field in ("allowed", "required", "excluded"):
            for symbol in getattr(self, field):
                if symbol not in SYMBOLS:
                    raise ValueError(f"`{field}` must hold symbols of elements, got {symbol!r}")
        if self.allowed and (odd := set(self.required) - set(self.allowed)):
            raise ValueError(f"`required` has {', '.join(sorted(odd))}, which `allowed` lacks")
        if odd := set(self.required) & set(self.excluded):
            raise ValueError(f"`required` has {', '.join(sorted(odd))}, which `excluded` has too; nothing can pass")
        if self.allowed and set(self.allowed) <= set(self.excluded):
            raise ValueError("`excluded` has all that `allowed` has; nothing can pass")
        _positive(self, "min_elements", "max_elements", "min_atoms", "max_atoms")
        _window(self, "min_elements", "max_elements")
        _window(self, "min_atoms", "max_atoms")


class PropertyRule(_Base, frozen=True, tag="property"):
    """A window for a number that is known of a crystal: by a property model, or by its source.

    A crystal for which the number is missing is refused.

    Attributes:
        column: its name: a property of a model (``band_gap``), or a column of the source (``e_above_hull``).
        min, max: bounds, both included.
        target: a number, or the column that holds it: ``target_band_gap`` of a generated run.
        tolerance: greatest distance from the target.
        max_std: greatest standard deviation between models; refuses where there is only one model.
    """

    column: str
    min: float | None = None
    max: float | None = None
    target: float | str | None = None
    tolerance: float | None = None
    max_std: float | None = None

    def __post_init__(self) -> None:
        if not self.column:
            raise ValueError("`column` must be the name of a property or column")
        _finite(self, "min", "max", "tolerance", "max_std")
        _aim(self)
        _window(self, "min", "max")
        if (self.target is None) != (self.tolerance is None):
            raise ValueError("`target` and `tolerance` go together")
        _positive(self, "tolerance", "max_std")


class SymmetryRule(_Base, frozen=True, tag="symmetry"):
    """Space groups; the columns ``spacegroup`` and ``crystal_system`` come with it, also where nothing is asked.

    Attributes:
        method: see `druse.symmetry.space_groups`.
        symprec: in Angstrom.
        angle_tolerance: in degrees, of pymatgen; moyo derives its own from ``symprec``.
        space_groups: allowed numbers; empty: all.
        crystal_systems: allowed ones; empty: all.
        min_space_group: lowest number; 2 refuses what has no symmetry.
    """

    method: Method = "pymatgen"
    symprec: float = SYMPREC
    angle_tolerance: float = ANGLE_TOLERANCE
    space_groups: tuple[int, ...] = ()
    crystal_systems: tuple[str, ...] = ()
    min_space_group: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "symprec", "angle_tolerance", "min_space_group")
        if self.method == "moyo" and self.angle_tolerance != ANGLE_TOLERANCE:
            raise ValueError("`angle_tolerance` is of pymatgen, moyo takes none; leave it out")
        for number in (*self.space_groups, *([self.min_space_group] if self.min_space_group else [])):
            if not 1 <= number <= 230:
                raise ValueError(f"space groups are numbered from 1 to 230, got {number}")
        for system in self.crystal_systems:
            if system not in CRYSTAL_SYSTEMS:
                raise ValueError(f"`crystal_systems` must be of {', '.join(CRYSTAL_SYSTEMS)}, got {system!r}")


class UniqueRule(_Base, frozen=True, tag="unique"):
    """Of crystals that are the same, the first one stays; see `druse.duplicates.duplicates`."""


class NovelRule(_Base, frozen=True, tag="novel"):
    """Crystals that are in the reference are refused; see `druse.novelty.known`.

    Attributes:
        reference: file or folder of crystals; of a rules file, relative to it.
    """

    reference: str

    def __post_init__(self) -> None:
        if not self.reference:
            raise ValueError("`reference` must be a file or folder of crystals")


class ScoreTerm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One part of a score: ``weight`` times minus |x - target| / scale, or plus or minus x / scale.

    Attributes:
        column: see `PropertyRule`.
        weight: above 0.
        scale: what counts as one, in the column's unit.
        goal: ``target``, ``max`` or ``min``.
        target: a number or a column, for the goal ``target``.
    """

    column: str
    weight: float = 1.0
    scale: float = 1.0
    goal: Literal["target", "max", "min"] = "target"
    target: float | str | None = None

    def __post_init__(self) -> None:
        if not self.column:
            raise ValueError("`column` must be the name of a property or column")
        _positive(self, "weight", "scale")
        _aim(self)
        if (self.goal == "target") != (self.target is not None):
            raise ValueError("`target` belongs to the goal 'target', which needs it")


class TopKRule(_Base, frozen=True, tag="top_k"):
    """The best by a weighted score, best first; the column ``score`` comes with it.

    Attributes:
        k: how many.
        score: its terms. Where a number is missing the crystal is refused.
        per_formula: at most so many of one reduced formula.
    """

    k: int
    score: tuple[ScoreTerm, ...]
    per_formula: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "k", "per_formula")
        if not self.score:
            raise ValueError("`score` must have at least one term, such as {column = 'band_gap', target = 3.0}")


Rule: TypeAlias = GeometryRule | CompositionRule | PropertyRule | SymmetryRule | UniqueRule | NovelRule | TopKRule
_ORDER: tuple[type, ...] = typing.get_args(Rule)
_COLLECTIVE = (UniqueRule, NovelRule, TopKRule)
_LARGEST, _MOST = 1 << 20, 200  # bytes of a file of rules, and rules of a set


class RuleSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Rules in the order in which they are applied, each with a name of its own.

    Attributes:
        rules: at most one ``top_k``.
        models: bundles of property models beside those that come with Druse; of a rules file, relative to it.
        embedded: whether the models that come with Druse are used.
    """

    rules: tuple[Rule, ...] = ()
    models: tuple[str, ...] = ()
    embedded: bool = True

    def __post_init__(self) -> None:
        if len(self.rules) > _MOST:
            raise ValueError(f"{len(self.rules):,} rules, more than {_MOST}")
        ordered = sorted(self.rules, key=lambda rule: _ORDER.index(type(rule)))
        if sum(isinstance(rule, TopKRule) for rule in ordered) > 1:
            raise ValueError("there can be one rule of kind 'top_k'")
        msgspec.structs.force_setattr(self, "rules", tuple(_named(ordered)))

    @property
    def single(self) -> tuple[Rule, ...]:
        """Those that judge crystals one by one."""
        return tuple(rule for rule in self.rules if not is_collective(rule))

    @property
    def collective(self) -> tuple[Rule, ...]:
        """Those that judge crystals together."""
        return tuple(rule for rule in self.rules if is_collective(rule))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of columns that the rules ask for; a target may be one."""
        found: list[str] = []
        for rule in self.rules:
            for term in rule.score if isinstance(rule, TopKRule) else (rule,) if isinstance(rule, PropertyRule) else ():
                found += [term.column, *([term.target] if isinstance(term.target, str) else [])]
        return tuple(dict.fromkeys(found))


def is_collective(rule: Rule) -> bool:
    """Whether a rule judges crystals together."""
    return isinstance(rule, _COLLECTIVE)


def kind_of(rule: Rule) -> str:
    """Its kind, as in TOML."""
    return str(rule.__struct_config__.tag)


def read_rules(path: Any) -> RuleSet:
    """Rules of a TOML file: ``[[rules]]`` tables with a ``kind``, and ``models``; see `default_rules_text`.

    Raises:
        InputError: the file is missing, no TOML, or something in it is not as it should be; says where.
    """
    place = Path(path)
    try:
        content = read_small(place, _LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{place} does not exist; druse screen --example prints a file to begin with") from None
    except IsADirectoryError:
        raise InputError(f"{place} is a folder; give a file of rules (druse screen --example prints one)") from None
    found = _decode(content, str(place))

    def beside(name: str) -> str:
        if not name.isprintable():
            raise InputError(f"{place} cannot be used: {name[:40]!r} is the name of no file")
        return str((place.parent / name).resolve())

    return msgspec.structs.replace(
        found,
        models=tuple(beside(name) for name in found.models),
        rules=tuple(
            msgspec.structs.replace(rule, reference=beside(rule.reference)) if isinstance(rule, NovelRule) else rule
            for rule in found.rules
        ),
    )


def default_rules_text() -> str:
    """A TOML file of rules, with comments: what `default_rules` are, and what else there is."""
    return resources.files("druse").joinpath("data", "rules.toml").read_text("utf-8")


def default_rules() -> RuleSet:
    """Rules where none are given: no atoms on top of one another, charges that balance, nothing twice."""
    return _decode(default_rules_text().encode(), "rules.toml")


def _decode(content: bytes, name: str) -> RuleSet:
    try:
        return msgspec.toml.decode(content, type=RuleSet)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise InputError(
            f"{name} cannot be used: {in_one_line(error)}; druse screen --example shows every kind and field"
        ) from error


def _named(rules: Sequence[Rule]) -> list[Rule]:
    """With names, each of which is there once.

    Raises:
        ValueError: a name is given twice, or is one that results use otherwise.
    """
    given = [rule.name for rule in rules if rule.name]
    for name in given:
        if given.count(name) > 1 or name in (READ, MODELS):
            raise ValueError(
                f"the name {name!r} is {'taken' if name in (READ, MODELS) else 'given twice'}; choose another"
            )
    natural = [rule.column if isinstance(rule, PropertyRule) else kind_of(rule) for rule in rules]
    seen = dict.fromkeys(given, 0)
    found: list[Rule] = []
    for rule, name in zip(rules, natural, strict=True):
        if not rule.name:
            n, free = 1, name
            while free in seen or free in (READ, MODELS):
                n += 1
                free = f"{name} {n}"
            seen[free] = 0
            rule = msgspec.structs.replace(rule, name=free)
        if not rule.name.isprintable() or len(rule.name) > 200:
            raise ValueError(f"the name {rule.name[:40]!r} cannot be shown; give the rule another `name`")
        found.append(rule)
    return found


def _finite(rule: Any, *names: str) -> None:
    for name in names:
        if (value := getattr(rule, name)) is not None and not abs(value) < math.inf:
            raise ValueError(f"`{name}` must be a finite number, got {str(value)[:20]}")


def _aim(rule: Any) -> None:
    """A target is a number or the name of a column."""
    if rule.target == "":
        raise ValueError("`target` must be a number or the name of a column, got ''")
    if not isinstance(rule.target, str):
        _finite(rule, "target")


def _positive(rule: Any, *names: str) -> None:
    _finite(rule, *names)
    for name in names:
        if (value := getattr(rule, name)) is not None and not value > 0:
            raise ValueError(f"`{name}` must be above 0, got {value}")


def _window(rule: Any, low: str, high: str) -> None:
    a, b = getattr(rule, low), getattr(rule, high)
    if a is not None and b is not None and a > b:
        raise ValueError(f"`{low}` is {a}, above `{high}`, which is {b}; nothing can pass")
