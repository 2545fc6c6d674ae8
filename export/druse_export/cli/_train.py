"""``druse train``: the models of Con-CDVAE, and what came out of them."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from druse_export.cli._show import counting, page

if TYPE_CHECKING:
    from druse_export.training.job import Job

app = typer.Typer(help="Train Con-CDVAE (`vae`, then `prior`) and property models (`cgcnn`).", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the run; one that holds a run goes on from its last checkpoint.")]
Train = Annotated[str | None, typer.Option("--data", help="Training data: CSV, Parquet, extended XYZ, folder of CIF.")]
Validation = Annotated[str | None, typer.Option(help="Validation data; a tenth of --data if not given.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings, as `job.toml` in a run's folder.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as settings.loss.property=0. Several times."),
]
Epochs = Annotated[int | None, typer.Option(help="At most.", min=1)]
BatchSize = Annotated[int | None, typer.Option(help="Crystals a step and device.", min=1)]
Seed = Annotated[int | None, typer.Option(help="Of weights, order and noise.", min=0)]
Devices = Annotated[int | None, typer.Option(help="GPUs, or processes on the CPU, that share each step.", min=1)]
Accelerator = Annotated[str | None, typer.Option(help="auto, cpu or gpu.")]
Precision = Annotated[str | None, typer.Option(help="fp32, tf32 or bf16.")]
Show = Annotated[bool, typer.Option("--show", help="Print the settings in full and leave.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for data sets that were read; your cache folder.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no bars.")]


def _overrides(**flags: Any) -> list[str]:
    names = {
        "data": "data.train",
        "validation": "data.validation",
        "weights": "data.weights",
        "property": "settings.property",
        "start": "settings.start",
        "threshold": "settings.threshold",
        "epochs": "settings.epochs",
        "batch_size": "settings.batch_size",
        "seed": "settings.seed",
        "devices": "machine.devices",
        "accelerator": "machine.accelerator",
        "precision": "machine.precision",
    }
    return [f"{names[flag]}={json.dumps(value)}" for flag, value in flags.items() if value is not None]


def _train(
    kind: str, out: Path, config: Path | None, changes: list[str], *, show: bool, cache: Path | None, as_json: bool
) -> None:
    from druse._dependencies import require
    from druse.errors import InputError
    from druse_export.training.toml import override, read_toml

    stored = out / "job.toml"
    content = override(read_toml(config or stored) if config or stored.is_file() else {}, changes)
    data = content.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(data.get(k, ""), str) for k in _PATHS):
        raise InputError(f"these settings cannot be used: `data` must be a table with names of files, got {data!r}")
    if "train" not in data:  # before torch is imported, which takes seconds
        raise InputError(f"{out} holds no run yet, so give --data FILE, or --config FILE, to say what to train on")
    missing = [data[k] for k in _PATHS if data.get(k) and not Path(data[k]).exists()]
    if missing:
        raise InputError(f"{missing[0]} does not exist; give a file or folder that does")
    require("torch", "lightning", purpose="training")
    from druse.tables import default_cache
    from druse_export.training.job import KINDS, Data, job, with_properties
    from druse_export.training.runs import best, left_out, load_tables, run

    content["data"] = {k: str(Path(v).resolve()) if k in _PATHS and v else v for k, v in data.items()}
    with counting("reading", wanted=not as_json) as progress:
        tables = load_tables(_convert(content["data"], Data), cache=cache or default_cache(), progress=progress)
    this = job(with_properties(content, KINDS[kind], tables[0]), KINDS[kind])
    first = not int(os.environ.get("LOCAL_RANK", "0"))  # the others are copies of this command
    if first and not as_json:
        skipped = [_skipped(len(table.rejected), left_out(this, table)) for table in tables]
        sizes = [len(table) - sum(left_out(this, table).values()) for table in tables]
        _print(this, sizes, skipped)
    if show:
        return
    _quiet()
    weights = run(this, out, tables, progress=not as_json and Console(stderr=True).is_terminal)
    figures = {name: value for name, value in best(out).items() if name.startswith("val_")}
    if first and as_json:
        typer.echo(json.dumps({"run": str(out), "weights": str(weights), **figures}, indent=2))
    elif first:
        _print_figures(figures, weights)


_PATHS = ("train", "validation", "weights")


def _convert(content: Any, kind: Any) -> Any:
    import msgspec

    from druse.errors import InputError

    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"these settings cannot be used: data: {error}") from error


def _skipped(n_rejected: int, left_out: dict[str, int]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    return f"{n_rejected:,} rows skipped" + (f"; left out: {reasons}" if reasons else "")


def _print(job: "Job[Any]", sizes: list[int], skipped: list[str]) -> None:
    from druse_export.training.job import as_toml

    console = Console()
    console.print(Syntax(as_toml(job).rstrip(), "toml", background_color="default"))
    console.print(
        f"[bold]{sizes[0]:,}[/] crystals to train on ({escape(skipped[0])}), "
        f"[bold]{sizes[1]:,}[/] to validate on ({escape(skipped[1])})",
        highlight=False,
        soft_wrap=True,
    )


_UNITS = {"mae": "in the property's unit", "kl": "nat", "lengths_error": "of the length", "angles_error": "degrees",
          "volume_error": "of the volume"}  # fmt: skip


def _print_figures(figures: dict[str, float], weights: Path) -> None:
    console = page()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("on the validation data")
    table.add_column("", justify="right")
    table.add_column("")
    for name, value in figures.items():
        name = name.removeprefix("val_")
        shown = f"{value:.1%}" if name == "accuracy" or name.endswith("_accuracy") else f"{value:.4g}"
        table.add_row(name.replace("_", " "), shown, _UNITS.get(name, ""))
    console.print(table)
    console.print(f"averaged weights of that epoch: [bold]{weights}[/]", highlight=False, soft_wrap=True)


def _quiet() -> None:
    """Lightning's advice and advertisements are of no use to those who train."""
    import logging
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|torch")


@app.command()
def vae(
    out: Out,
    data: Train = None,
    validation: Validation = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Property to condition on, and to predict: formation_energy_per_atom, band_gap, e_above_hull, n_atom, "
            "crystal_system, spacegroup, formula, any column, or NAME=LOW:HIGH:SPACING[:UNIT], NAME=CLASSES or "
            "NAME=LABEL,LABEL. "
            "Several times.",
        ),
    ] = None,
    start: Annotated[str | None, typer.Option(help="Begin from the weights of another VAE (.safetensors).")] = None,
    no_predictor: Annotated[
        bool, typer.Option("--no-predictor", help="Weight 0 for the Predictor (the paper's ablation).")
    ] = False,
    config: Config = None,
    set_: Set = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    devices: Devices = None,
    accelerator: Accelerator = None,
    precision: Precision = None,
    show: Show = False,
    cache: Cache = None,
    as_json: AsJSON = False,
) -> None:
    """Step one: encoder, heads, Predictor and decoder together (eq. 12)."""
    start = None if start is None else str(Path(start).resolve())
    changes = _overrides(data=data, validation=validation, start=start, epochs=epochs, batch_size=batch_size, seed=seed,
                         devices=devices, accelerator=accelerator, precision=precision)  # fmt: skip
    if condition:
        changes.append(f"settings.model.conditions={json.dumps(condition)}")
    if no_predictor:
        changes.append("settings.loss.property=0.0")
    _train("vae", out, config, changes + (set_ or []), show=show, cache=cache, as_json=as_json)


@app.command()
def prior(
    out: Out,
    model: Annotated[str | None, typer.Option(help="Run or weights of step one.")] = None,
    data: Train = None,
    validation: Validation = None,
    conditions: Annotated[
        str | None,
        typer.Option(help="`default`: the model's own; `full`: all that the paper's has; or names, with commas."),
    ] = None,
    config: Config = None,
    set_: Set = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    accelerator: Accelerator = None,
    show: Show = False,
    cache: Cache = None,
    as_json: AsJSON = False,
) -> None:
    """Step two: latents of the crystals, given properties (eq. 14)."""
    from druse._dependencies import require

    require("torch", "lightning", purpose="training")
    from druse_export.training.runs import conditions_of, weights_of

    weights = None if model is None else weights_of(Path(model))
    changes = _overrides(weights=None if weights is None else str(weights.resolve()), data=data, validation=validation,
                         epochs=epochs, batch_size=batch_size, seed=seed, accelerator=accelerator)  # fmt: skip
    if weights is not None:
        changes += conditions_of(weights, conditions or "default")
    _train("prior", out, config, changes + (set_ or []), show=show, cache=cache, as_json=as_json)


@app.command()
def cgcnn(
    out: Out,
    data: Train = None,
    validation: Validation = None,
    property_: Annotated[str | None, typer.Option("--property", help="Column of the data.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Learn whether the property is above this, instead of its value.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    accelerator: Accelerator = None,
    show: Show = False,
    cache: Cache = None,
    as_json: AsJSON = False,
) -> None:
    """A property model for screening: a value, or whether it is above a threshold."""
    changes = _overrides(data=data, validation=validation, property=property_, threshold=threshold, epochs=epochs,
                         batch_size=batch_size, seed=seed, accelerator=accelerator)  # fmt: skip
    if threshold is not None:
        changes.append('settings.task="classification"')
    _train("cgcnn", out, config, changes + (set_ or []), show=show, cache=cache, as_json=as_json)


@app.command()
def weights(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="File to write; model.safetensors in the folder.")] = None,
    last: Annotated[bool, typer.Option("--last", help="Of the last epoch instead of the best.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Write a run's averaged weights to a small file (half precision, no optimiser)."""
    from druse._dependencies import require

    require("torch", purpose="reading checkpoints")
    from druse_export.training.runs import keep_weights

    path = keep_weights(run, out=out, checkpoint="last.ckpt" if last else "best.ckpt")
    typer.echo(json.dumps({"weights": str(path), "bytes": path.stat().st_size}) if as_json else str(path))


@app.command()
def latents(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run or weights of step one.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Crystals.")],
    out: Annotated[Path, typer.Option(help="File to write (.parquet): id, properties, mu, log_var.")],
    cache: Cache = None,
    as_json: AsJSON = False,
) -> None:
    """Write the latents of a data set, with its properties (for figure 5: scripts/latents_tsne.py)."""
    from druse._dependencies import require

    require("torch", "pyarrow", "pymatgen", purpose="encoding crystals")
    from druse.tables import default_cache, load_table
    from druse_export.models.weights import read_vae_weights
    from druse_export.training.latents import write_latents
    from druse_export.training.runs import weights_of

    network, _ = read_vae_weights(weights_of(model))
    with counting("reading", wanted=not as_json) as progress:
        table = load_table(data, cache=cache or default_cache(), progress=progress)
    with counting("encoding", wanted=not as_json) as progress:
        n = write_latents(network, table, out, progress=progress)
    typer.echo(json.dumps({"latents": str(out), "crystals": n}) if as_json else f"{n:,} latents in {out}")
