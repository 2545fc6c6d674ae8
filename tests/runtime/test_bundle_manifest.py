"""Manifests: what is read, and what is refused, at any depth."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bundles
import pytest
from bundles import Files, refuse, with_manifest

from druse import InputError
from druse.bundle import MANIFEST, Bundle

FILES = bundles.cgcnn_files()
WHOLE = with_manifest(FILES)
CON_CDVAE = with_manifest(FILES, bundles.con_cdvae_manifest(FILES))
Place = Callable[[Files], Path]


@pytest.fixture(params=bundles.KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Puts files where a bundle is opened from."""
    return functools.partial(bundles.put, request.param, tmp_path)


def with_content(manifest: Any) -> Files:
    return {**FILES, MANIFEST: json.dumps(manifest).encode()}


def content(files: Files = WHOLE) -> Any:
    return json.loads(files[MANIFEST])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "cannot be used"),
        (b"schema = 1", "malformed"),
        (b"null", "Expected `object`"),
        (b"[1]", "Expected `object`"),
        (b"\xef\xbb\xbf" + WHOLE[MANIFEST], "malformed"),
        (WHOLE[MANIFEST] + b"{}", "malformed"),
        (WHOLE[MANIFEST][:-1], "truncated"),
        (WHOLE[MANIFEST].replace(b'"tiny"', b'"\xff\xfe"'), "cannot be used"),
        (WHOLE[MANIFEST].decode().encode("utf-16"), "malformed"),
        (WHOLE[MANIFEST].replace(b'"tiny"', b'"\\ud800"'), "cannot be used"),
        (b'{"schema":1,"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
        (b'{"schema":1,"deep":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "recursion"),
        (WHOLE[MANIFEST] + b" " * 2**24, "larger than 16,777,216 bytes"),
        (WHOLE[MANIFEST].replace(b'"name"', b'"na\\nme"'), r"unknown field `na\?me`"),
        (WHOLE[MANIFEST].replace(b'"name"', b'"' + b"x" * 10**6 + b'"'), "unknown field `xxx"),
        (b'{"schema":' + b"9" * 5000 + b"}", "out of range"),
        (WHOLE[MANIFEST].replace(b"6.0", b"1e999"), "out of range"),
        (WHOLE[MANIFEST].replace(b"6.0", b"NaN"), "malformed"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_not_a_manifest(place: Place, text: bytes, says: str) -> None:
    refuse(place({**FILES, MANIFEST: text}), f"manifest.json .*{says}")


@pytest.mark.parametrize("version", [0, 2, -1, 2**64, 10**400])
def test_another_schema_version(place: Place, version: int) -> None:
    """Is told as such, whatever else such a manifest holds."""
    advice = "update Druse" if version > 1 else "build the bundle again"
    refuse(place(with_content({"schema": version, "other": []})), f"schema version .*, this Druse reads 1; {advice}")


@pytest.mark.parametrize("version", ["1", 1.0, True, None, []], ids=repr)
def test_a_schema_version_that_is_no_number(place: Place, version: Any) -> None:
    refuse(place(with_content({"schema": version})), r"Expected `int`, got .* at `\$.schema`")


MAPS = {"files", "tolerances", "precisions", "priors", "weights", "figures"}
"""Fields whose keys are free."""

OPTIONAL = {"formulation", "precisions", "shell_tolerance", "threshold", "weights", "data", "steps", "epochs",
            "figures", "created_by", "note", "unit", "labels", "version"}  # fmt: skip


def records(value: Any, where: str = "$", free: bool = False) -> Iterator[tuple[str, Any]]:
    """Every object of a manifest that has fields, and where it is."""
    if isinstance(value, dict):
        if not free:
            yield where, value
        for key in list(value):
            yield from records(value[key], f"{where}.{key}", key in MAPS)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from records(item, f"{where}[{place}]")


def damaged(damage: Callable[[Any, str], None], names: Callable[[Any], list[str]]) -> Iterator[tuple[str, bytes]]:
    """Manifests with one field of one object damaged: the field, and the text."""
    for original in (WHOLE, CON_CDVAE):
        for at, (where, record) in enumerate(records(content(original))):
            for name in names(record):
                changed = content(original)
                damage(list(records(changed))[at][1], name)
                yield f"{where}.{name}", json.dumps(changed).encode()


def says_of(text: bytes) -> str:
    try:
        Bundle("tiny", text, {})
    except InputError as error:
        bundles.require_one_sentence(error)
        return str(error)
    return "nothing"


def test_an_unknown_field_at_any_place() -> None:
    cases = list(damaged(lambda record, name: record.update({name: 1}), lambda _: ["surplus"]))
    assert {"$.surplus", "$.graph.surplus", "$.conditions[1].surplus", "$.priors.default.network.outputs[0].surplus",
            "$.files.network.onnx.surplus", "$.target.surplus"} <= {where for where, _ in cases}  # fmt: skip
    for where, text in cases:
        assert "contains unknown field `surplus`" in says_of(text), where


def test_a_missing_field_at_any_place() -> None:
    for where, text in damaged(lambda record, name: record.pop(name), list):
        optional = where.rpartition(".")[2] in OPTIONAL or where in ("$.conditions[2].name", "$.target.type")
        assert ("nothing" if optional else "missing required field") in says_of(text), where


def test_a_wrong_type_at_any_place() -> None:
    for where, text in damaged(lambda record, name: record.update({name: [[]]}), list):
        assert "Expected `" in says_of(text), where


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("kind", "cdvae", "Invalid value 'cdvae'"),
        ("files", {"network.onnx": {"sha256": "0" * 63, "bytes": 1}}, "64 hexadecimal digits"),
        ("files", {"network.onnx": {"sha256": "0" * 64, "bytes": -1}}, "`bytes` must be from 0"),
        ("files", {"network.onnx": {"sha256": "0" * 64, "bytes": 2**40}}, "`bytes` must be from 0"),
        ("files", {n: {"sha256": "0" * 64, "bytes": 2**31} for n in ("network.onnx", "b")}, "larger than .* together"),
        ("files", {}, "names the network network.onnx but lists no such file"),
        ("max_neighbors", 10**9, "`max_neighbors` from 1 to 1000"),
        ("cutoff", -1, "`cutoff` must be up to 100"),
        ("task", "guess", "Invalid enum value 'guess'"),
        ("tolerances", {"fp8": 1.0}, "Invalid enum value 'fp8'"),
        ("target", {"type": "scalar", "name": "e", "minimum": 1, "maximum": 0, "spacing": 1}, "minimum < maximum"),
        ("network", {"file": "../x", "inputs": [], "outputs": []}, r"names the network \.\./x but lists no such file"),
        ("network", {"file": "a", "inputs": [{"name": "x", "dtype": "float32", "shape": [10**9]}], "outputs": []},
         "lengths from 1 to 65,536"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_values_out_of_range(field: str, value: Any, says: str) -> None:
    assert re.search(says, says_of(json.dumps({**content(), field: value}).encode()))


def test_names_of_priors() -> None:
    manifest = content(CON_CDVAE)
    manifest["priors"]["../x"] = manifest["priors"]["default"]
    assert "names of `priors`" in says_of(json.dumps(manifest).encode())
