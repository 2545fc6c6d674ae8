"""``druse bundle``: looking at bundles and checking them. `build` and `import` come from `druse_export`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from druse.cli._options import PrecisionName, backend_names

app = typer.Typer(help="Build, import, show and verify bundles.", no_args_is_help=True)

Path_ = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="Folder or .zip; the generator that comes with Druse.")
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command()
def show(bundle: Path_ = None, as_json: AsJSON = False) -> None:
    """What a bundle holds: properties, ranges and units, provenance, licence."""
    from druse.bundle import Bundle

    opened = Bundle.embedded() if bundle is None else Bundle.open(bundle)
    content = {"bundle": opened.name, "sha256": opened.digest, **msgspec.to_builtins(opened.manifest)}
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    console = _page()
    console.print(_facts(content))
    for title, properties in _properties(content):
        console.print(Text(f"\n{title}", style="bold"))
        console.print(_table(properties))
    figures = content["provenance"]["figures"]
    if figures:
        console.print("\n[bold]on validation data[/]")
        grid = Table.grid(padding=(0, 2))
        for name, value in figures.items():
            grid.add_row(_plain(name.replace("_", " ")), f"{value:.4g}")
        console.print(grid)


def _page() -> Console:
    """As wide as the terminal, or wide enough for any table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _plain(text: str) -> Text:
    """Text from a bundle: nothing in it is markup, and no control character reaches the terminal."""
    return Text("".join(c if c.isprintable() else "?" for c in text))


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither NaN nor infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _facts(content: dict[str, Any]) -> Table:
    made, version = content["provenance"], content.get("version")
    size = sum(file["bytes"] for file in content["files"].values())
    facts = {
        "name": f"{content['name']} ({content['kind']})" + (f", version {version}" if version else ""),
        "licence": content["licence"],
        "sha256": content["sha256"],
        "files": f"{len(content['files'])}, {size / 1e6:.1f} MB",
        "source": made["source"] + (f", {made['note']}" if made["note"] else ""),
        "trained on": made["data"] or "not said",
        "steps": f"{made['steps']:,}" if made["steps"] is not None else "not said",
        "built by": made["created_by"],
    }
    if content["kind"] == "con-cdvae":
        graph, sigmas = content["graph"], content["sigmas"]
        facts["crystals"] = f"up to {content['max_atoms']} atoms, elements 1 to {content['n_species']}"
        facts["graph"] = f"{graph['mode']}, {graph['max_neighbors']} neighbours within {graph['cutoff']:g} Å"
        facts["noise"] = f"{len(sigmas)} levels, {sigmas[0]:g} to {sigmas[-1]:.3g} Å"
    else:
        facts["graph"] = f"{content['max_neighbors']} neighbours within {content['cutoff']:g} Å"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, _plain(value))
    return grid


def _properties(content: dict[str, Any]) -> list[tuple[str, Sequence[dict[str, Any]]]]:
    if content["kind"] == "cgcnn":
        task, threshold = content["task"], content["threshold"]
        above = f": above {threshold:g} or not" if threshold is not None else ""
        return [(f"predicts ({task}{above})", [content["target"]])]
    parts = [("conditions", content["conditions"])]
    if content["predicted"]:
        parts.append(("predicts from latents", content["predicted"]))
    return parts + [
        (f"prior {name}: {len(prior['betas'])} steps, conditions", prior["conditions"])
        for name, prior in content["priors"].items()
    ]


def _table(properties: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("property", "kind", "range or classes", "unit"):
        table.add_column(heading, overflow="fold")
    for spec in properties:
        if spec["type"] == "scalar":
            values = f"{spec['minimum']:g} to {spec['maximum']:g}"
        elif spec["type"] == "class":
            values = ", ".join(spec["labels"]) or f"0 to {spec['n_classes'] - 1}"
        else:
            values = "a formula"
        table.add_row(_plain(spec["name"]), spec["type"], _plain(values), _plain(spec.get("unit", "")))
    return table


@app.command()
def verify(
    bundle: Path_ = None,
    backend: Annotated[str, typer.Option(help="auto, ort-cpu or ort-openvino.", autocompletion=backend_names)] = "auto",
    precision: PrecisionName = "auto",
    threads: Annotated[int, typer.Option(help="0: every core.", min=0)] = 0,
    as_json: AsJSON = False,
) -> None:
    """Replay the recorded inputs of a bundle on a backend, and say how far each output is from float64."""
    from druse.backends import open_backend
    from druse.bundle import Bundle
    from druse.verify import verify as replay

    opened = Bundle.embedded() if bundle is None else Bundle.open(bundle)
    decoder = getattr(opened.manifest, "decoder", None)
    stated = decoder.precisions if decoder is not None else ()
    engine = open_backend(backend, precision=precision, n_threads=threads, stated=stated)
    deviations = list(replay(opened, engine))
    good = all(deviation.ok for deviation in deviations)
    if as_json:
        rows = [{**_numbers(deviation._asdict()), "ok": deviation.ok} for deviation in deviations]
        content = {
            "bundle": opened.name,
            "backend": engine.name,
            "precision": engine.precision,
            "ok": good,
            "outputs": rows,
        }
        typer.echo(json.dumps(content, indent=2))
        raise typer.Exit(0 if good else 1)
    console = _page()
    how = f" on {engine.name}, {engine.precision}: {engine.describe()}"
    console.print(Text.assemble((_plain(opened.name).plain, "bold"), how))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("output", "largest", "rms", "tolerance", "", "one crystal alone"):
        number = heading in ("largest", "rms", "tolerance")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for deviation in deviations:
        mark = "[green]good[/]" if deviation.ok else "[bold red]too far[/]"
        alone = {None: "", True: "the same bytes", False: "other bytes"}[deviation.alone]
        tolerance = "none" if deviation.tolerance is None else f"{deviation.tolerance:.0e}"
        numbers = (f"{deviation.largest:.1e}", f"{deviation.rms:.1e}", tolerance)
        table.add_row(_plain(deviation.output), *numbers, mark, alone)
    console.print(table)
    console.print("[dim]relative to the largest recorded value, and to the recorded rms[/]")
    if not good:
        raise typer.Exit(1)
