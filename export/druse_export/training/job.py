"""A training as one text: data, settings and machine, from a TOML file and overrides, and back to TOML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import tomli_w

from druse._files import whole_file
from druse.conditions import Property
from druse.errors import InputError
from druse_export.data import CrystalTable
from druse_export.training.properties import FULL, resolve
from druse_export.training.settings import CGCNNSettings, Machine, PriorSettings, Settings, VAESettings

SettingsType = TypeVar("SettingsType", bound=Settings)


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Data sets and the filters of section 3; None lets everything pass.

    Attributes:
        train: file or folder, see `druse_export.data.load_table`.
        validation: another; empty: a tenth of ``train``, by the paper's split 8 : 1 : 1 with ``split_seed``.
        split_seed: of that split.
        weights: of step one, for the priors of step two: a file, or the folder of the run.
        classes: columns to make of others, by name: ``COLUMN>THRESHOLD``, 1 above it, else 0.
        max_atoms, max_hull, max_gap, min_density: see `druse_export.data.CrystalTable.filtered`.
    """

    train: str
    validation: str = ""
    split_seed: int = 0
    weights: str = ""
    classes: dict[str, str] = {}
    max_atoms: int | None = None
    max_hull: float | None = None
    max_gap: float | None = None
    min_density: float | None = None


class Job(msgspec.Struct, Generic[SettingsType], frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training in full."""

    data: Data
    settings: SettingsType
    machine: Machine = Machine()


def job(content: Mapping[str, Any], kind: type[SettingsType]) -> Job[SettingsType]:
    """The typed form of a TOML file's content, properties resolved.

    Raises:
        InputError: a field is unknown, missing or of a wrong type; says which.
    """
    try:
        return msgspec.convert(content, Job[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise InputError(f"these settings cannot be used: {error}") from error


def with_properties(content: dict[str, Any], kind: type[Settings], table: CrystalTable) -> dict[str, Any]:
    """Replaces names of properties by their descriptions; ranges of unknown columns come from ``table``.

    A VAE predicts its conditions unless told otherwise (compositions apart, which the heads give). Conditions of a
    prior can be ``full`` for those of the released full prior.
    """
    result: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(content))
    settings = _table_of(result, "settings")
    if kind is VAESettings:
        place, names = _table_of(settings, "model"), ["conditions", "predicted"]
        if "predicted" not in place and isinstance(place.get("conditions"), list):
            place["predicted"] = [name for name in place["conditions"] if name != "formula"]
    elif kind is PriorSettings:
        place, names = _table_of(settings, "prior"), ["conditions"]
        if place.get("conditions") == "full":
            place["conditions"] = list(FULL)
    else:
        return result
    for name in names:
        if isinstance(place.get(name), list):
            place[name] = msgspec.to_builtins(resolve([_property(p, name) for p in place[name]], table))
    return result


def _table_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    place = content.setdefault(name, {})
    if not isinstance(place, dict):
        raise InputError(f"these settings cannot be used: `{name}` must be a table of settings, got {place!r}")
    return place


def _property(given: Any, name: str) -> str | Property:
    try:
        return msgspec.convert(given, str | Property)
    except msgspec.ValidationError as error:
        raise InputError(f"these settings cannot be used: `{name}`: {error}") from error


def as_toml(job: Job[Any]) -> str:
    """A job as TOML, every setting written out."""
    return tomli_w.dumps(_without_none(msgspec.to_builtins(job)))


def _without_none(value: Any) -> Any:
    """TOML has no null; what is None is left out, and read back as None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def store(job: Job[Any], folder: Path) -> None:
    """Write ``job.toml``, from which `druse train` goes on."""
    with whole_file(folder / "job.toml") as file:
        file.write(as_toml(job))


KINDS: dict[str, type[Settings]] = {"vae": VAESettings, "prior": PriorSettings, "cgcnn": CGCNNSettings}
