"""Properties by name: the ones that databases have, with units and ranges, and any other column."""

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from druse.conditions import CRYSTAL_SYSTEMS, ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.errors import InputError
from druse_export.data import CrystalTable

KNOWN: dict[str, Property] = {
    spec.name: spec
    for spec in (
        ScalarProperty("formation_energy_per_atom", -4.5, 1.5, 0.1, "eV/atom"),
        ScalarProperty("band_gap", 0.0, 8.0, 0.2, "eV"),
        ScalarProperty("e_above_hull", 0.0, 0.5, 0.01, "eV/atom"),
        ScalarProperty("n_atom", 1.0, 20.0, 1.0),
        ClassProperty("crystal_system", len(CRYSTAL_SYSTEMS), CRYSTAL_SYSTEMS),
        ClassProperty("spacegroup", 231),
        CompositionProperty("formula"),
    )
}
"""Ranges cover the Materials Project after the filters of section 3; class 0 of ``spacegroup`` is not used."""

FULL = ("crystal_system", "spacegroup", "formation_energy_per_atom", "band_gap", "e_above_hull", "n_atom")
"""What the released ``full`` prior is conditioned on."""


def resolve(names: Sequence[str | Property], table: CrystalTable) -> tuple[Property, ...]:
    """Descriptions of properties given by name; a column that is not `KNOWN` becomes a scalar over its own range.

    ``name=classes`` makes a column a class property of so many classes, ``name=label,label,...`` one whose classes have
    names, ``name=low:high:spacing[:unit]`` a scalar.

    Raises:
        InputError: a name is no column, or its text cannot be understood.
    """
    return tuple(name if not isinstance(name, str) else _resolve(name, table) for name in names)


def scalar(text: str, *, unit: str = "") -> ScalarProperty:
    """The scalar of a known name, or of ``NAME=LOW:HIGH:SPACING[:UNIT]``; for what a property model gives.

    Raises:
        InputError: the name is not known, or no scalar's.
    """
    name, _, given = text.partition("=")
    found = _described(name, given) if given else KNOWN.get(name)
    if not isinstance(found, ScalarProperty):
        raise InputError(f"cannot tell the range of {text!r}; write {name}=LOW:HIGH:SPACING and perhaps :UNIT")
    return found if found.unit or not unit else msgspec.structs.replace(found, unit=unit)


def _resolve(text: str, table: CrystalTable) -> Property:
    name, _, given = text.partition("=")
    if given:
        return _described(name, given)
    if name in KNOWN:
        return KNOWN[name]
    if name not in table.properties:
        known = ", ".join(sorted({*KNOWN, *table.properties}))
        raise InputError(f"there is no property {name!r}; known here are {known}")
    values = table.properties[name][np.isfinite(table.properties[name])]
    low, high = float(values.min()), float(values.max())
    if high <= low:
        raise InputError(f"the property {name!r} has the one value {low:g}; nothing can be learnt from it")
    return ScalarProperty(name, low, high, (high - low) / 40)


def _described(name: str, given: str) -> Property:
    parts = given.split(":")
    labels = tuple(label.strip() for label in given.split(","))
    try:
        if len(labels) > 1:
            return ClassProperty(name, len(labels), labels)
        if len(parts) == 1:
            return ClassProperty(name, int(parts[0]))
        if len(parts) in (3, 4):
            low, high, spacing = map(float, parts[:3])
            return ScalarProperty(name, low, high, spacing, parts[3] if len(parts) == 4 else "")
    except InputError:
        raise
    except ValueError:
        pass
    raise InputError(
        f"cannot read the property {name}={given}; write {name}=CLASSES, {name}=LABEL,LABEL,..., or "
        f"{name}=LOW:HIGH:SPACING and perhaps :UNIT"
    )


def with_classes(table: CrystalTable, classes: Mapping[str, str]) -> CrystalTable:
    """The table with a column of 0 and 1 for each ``name: "column>threshold"``; no value stays none.

    Raises:
        InputError: a rule cannot be read, its column is not there, or its name is taken.
    """
    added = {}
    for name, rule in classes.items():
        column, _, text = (part.strip() for part in rule.partition(">"))
        try:
            threshold = float(text)
        except ValueError:
            raise InputError(f"cannot read the class {name} = {rule!r}; write COLUMN>THRESHOLD") from None
        if column not in table.properties or name in table.properties:
            known = ", ".join(sorted(table.properties))
            raise InputError(
                f"the class {name} = {rule!r} must have a new name and a column of the data; it has {known}"
            )
        values = table.properties[column]
        added[name] = np.where(np.isfinite(values), values > threshold, np.nan).astype(np.float64)
    return dataclasses.replace(table, properties={**table.properties, **added})
