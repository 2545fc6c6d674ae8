"""``run.json``: what a run is of."""

import datetime as dt

import msgspec

from druse._folders import versions_of
from druse._request import Request
from druse.generate import Generator

SCHEMA = 1
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "pyarrow")


class UsedBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which bundle a run is of.

    Attributes:
        name: of the file or folder.
        sha256: of its manifest, and through that of every file.
        path: where it was; empty for the one that comes with Druse.
    """

    name: str
    sha256: str
    path: str = ""


class RunFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``run.json``.

    Attributes:
        schema: version of the folder's format.
        request: what was asked for.
        bundle: of the generator.
        n_levels: noise levels of the model.
        backend, precision: that made the crystals.
        versions: of what took part, by name.
        created: when, UTC.
    """

    schema: int
    request: Request
    bundle: UsedBundle
    n_levels: int
    backend: str
    precision: str
    versions: dict[str, str]
    created: str

    def __post_init__(self) -> None:
        if self.n_levels < 1:
            raise ValueError(f"`n_levels` must be at least 1, got {self.n_levels}")


def run_file(generator: Generator, request: Request) -> RunFile:
    """What ``run.json`` shall say; raises where the request cannot be met."""
    generator.check(request)
    bundle, backend = generator.bundle, generator.model.backend
    return RunFile(
        schema=SCHEMA,
        request=request,
        bundle=UsedBundle(name=bundle.name, sha256=bundle.digest, path=bundle.path),
        n_levels=len(generator.model.manifest.sigmas),
        backend=backend.name,
        precision=backend.precision,
        versions=versions_of(*PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def differences(old: RunFile, new: RunFile) -> str:
    """What was asked for otherwise, in words; empty if it is the same."""
    before, after = (
        {**msgspec.to_builtins(file.request), "bundle": file.bundle.sha256[:12], "backend": file.backend,
         "precision": file.precision}
        for file in (old, new)
    )  # fmt: skip
    return ", ".join(f"{name} {before[name]}, not {after[name]}" for name in before if before[name] != after[name])
