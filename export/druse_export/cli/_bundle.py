"""``druse bundle build`` and ``druse bundle import``: bundles from weights that were trained here or by others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from druse_export.cli._show import counting

if TYPE_CHECKING:
    from druse.bundle import Bundle, Precision

Name = Annotated[str | None, typer.Option(help="Of the model, for the manifest; the folder's name if not given.")]
Licence = Annotated[str, typer.Option(help="SPDX identifier or text, for the manifest.")]
Version = Annotated[
    str | None, typer.Option("--version", help="Of a CGCNN, for the names of its columns; 1 if not given.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no bars.")]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="fp16|bf16",
        help="Write decoder and priors in this precision too, for backends that take it from the graph.",
    ),
]
Archive = Annotated[bool, typer.Option("--zip", help="Write a .zip beside the folder too.")]


def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run or weights of `druse train vae` or `cgcnn`.")],
    out: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to make.")],
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RUN", help="Run or weights of `druse train prior`. Several times, such as default=RUN."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Training data, whose properties the bundle keeps for drawing conditions from.")
    ] = None,
    property_: Annotated[
        str | None,
        typer.Option("--property", help="Range of what a CGCNN predicts, if not known: NAME=LOW:HIGH:SPACING:UNIT."),
    ] = None,
    name: Name = None,
    version: Version = None,
    licence: Licence = "MIT",
    precision: Precisions = None,
    note: Annotated[str, typer.Option(help="What users should know of the training.")] = "",
    archive: Archive = False,
    as_json: AsJSON = False,
) -> None:
    """Export trained weights to a bundle, and check it against PyTorch."""
    from druse._dependencies import require

    require("torch", "onnxscript", purpose="export to ONNX")
    require("onnxruntime", purpose="checking a bundle", extra="cpu")
    from druse_export.bundles.trained import build_bundle

    priors = _assignments(prior or [])
    with counting("exporting", wanted=not as_json) as progress:
        bundle = build_bundle(
            model, out, priors=priors, data=data, property_=property_, name=name or out.name, version=version,
            licence=licence, precisions=_precisions(precision), note=note, progress=_bar(progress),
        )  # fmt: skip
    _done(bundle, out, archive=archive, as_json=as_json)


def import_(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory of Con-CDVAE's authors, or a CGCNN checkpoint (.pth.tar)."),
    ],
    out: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to make.")],
    property_: Annotated[
        str | None,
        typer.Option("--property", help="What a CGCNN predicts, such as band_gap or NAME=LOW:HIGH:SPACING:UNIT."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Above which a classifying CGCNN says True.")] = None,
    below: Annotated[
        bool,
        typer.Option(
            "--below", help="Its class 1 is what is not above, as in the authors' models of formation energy."
        ),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Crystals with properties, for the strategy less to draw from.")
    ] = None,
    name: Name = None,
    version: Version = None,
    licence: Licence = "MIT",
    precision: Precisions = None,
    archive: Archive = False,
    as_json: AsJSON = False,
) -> None:
    """Turn a checkpoint of the authors' code into a bundle. Nothing in it is executed."""
    from druse._dependencies import require

    require("torch", "onnxscript", purpose="export to ONNX")
    require("onnxruntime", purpose="checking a bundle", extra="cpu")
    from druse_export.bundles.imported import import_bundle

    with counting("exporting", wanted=not as_json) as progress:
        bundle = import_bundle(
            run, out, property_=property_, threshold=threshold, below=below, data=data, name=name or out.name,
            version=version, licence=licence, precisions=_precisions(precision), progress=_bar(progress),
        )  # fmt: skip
    _done(bundle, out, archive=archive, as_json=as_json)


def _precisions(names: list[str] | None) -> list["Precision"]:
    from druse.errors import InputError

    wrong = set(names or []) - {"bf16", "fp16"}
    if wrong:
        raise InputError(f"`--precision` must be fp16 or bf16 (fp32 is always there), got {min(wrong)}")
    return sorted(set(names or []))  # type: ignore[arg-type]


def _assignments(texts: list[str]) -> dict[str, Path]:
    from druse.errors import InputError

    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise InputError(f"cannot read the prior {text!r}; write NAME=RUN, such as default=runs/prior_default")
        if name in found:
            raise InputError(f"two priors have the name {name!r}; give each its own")
        found[name] = Path(path)
    return found


def _bar(progress: Callable[[int, int], None]) -> Callable[[str, int, int], None]:
    return lambda _, done, total: progress(done, total)


def _done(bundle: "Bundle", out: Path, *, archive: bool, as_json: bool) -> None:
    written: dict[str, Any] = {"bundle": str(out), "sha256": bundle.digest}
    if archive:
        bundle.write_zip(out.with_name(f"{out.name}.zip"))
        written["zip"] = str(out.with_name(f"{out.name}.zip"))
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    for path in (written["bundle"], written.get("zip")):
        if path:
            typer.echo(path)
    typer.echo(f"next: druse bundle show {out}; druse bundle verify {out}")
