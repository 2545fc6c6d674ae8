"""``druse dft``: inputs of VASP for a short list, and what came of them."""

import collections
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from druse.cli._counting import counting
from druse.cli._options import AsJSON, Jobs, Limit, Sources
from druse.errors import InputError

app = typer.Typer(help="Hand structures to DFT, and read the results back.", no_args_is_help=True)

_REASONS_SHOWN = 10
_STATES = {
    "finished": "relaxed",
    "failed": "ended without a relaxed structure",
    "unfinished": "run, or were ended from outside",
    "waiting": "have not begun",
    "refused": "have no inputs",
}


@app.command()
def vasp(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    potcars: Annotated[
        Path | None, typer.Option(help="Folder of your POTCARs, for ENMAX; pymatgen's setting, else a table.")
    ] = None,
    write_potcar: Annotated[bool, typer.Option("--write-potcar", help="Join your POTCARs in each folder.")] = False,
    limit: Limit = 0,
    kspacing: Annotated[float, typer.Option(help="Of k-points, in 2π/Å: vaspkit's Kmesh-Resolved Value.")] = 0.03,
    encut_factor: Annotated[float, typer.Option(help="ENCUT as a multiple of the largest ENMAX.")] = 1.5,
    functional: Annotated[str, typer.Option(help="Set of potentials: PBE, PBE_52, PBE_54 or PBE_64.")] = "PBE_64",
    potcar: Annotated[
        list[str] | None, typer.Option(metavar="ELEMENT=SYMBOL", help="Another potential, such as Fe=Fe; repeatable.")
    ] = None,
    spin: Annotated[str, typer.Option(help="mp: polarised, moments of the Materials Project; none.")] = "mp",
    primitive: Annotated[bool, typer.Option("--primitive", help="In primitive cells, not as given.")] = False,
    incar: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A tag to add or to change; repeatable.")
    ] = None,
    command: Annotated[str, typer.Option(help="That runs VASP, in array.sh.")] = "srun vasp_std",
    jobs: Jobs = 0,
    as_json: AsJSON = False,
) -> None:
    """Write INCAR, KPOINTS, POSCAR and POTCAR.spec, a folder for each structure.

    Example: druse dft vasp screens/demo --out dft/demo --limit 100
    """
    from druse.cli._unfinished import tell_unfinished
    from druse.dft import Settings, write_vasp

    settings = Settings(
        functional=functional, encut_factor=encut_factor, kspacing=kspacing, spin=spin, primitive=primitive,
        symbols=_pairs("--potcar", potcar, "Fe=Fe"), incar=_pairs("--incar", incar, "NCORE=4"), command=command,
    )  # fmt: skip
    tell_unfinished(sources)
    written = write_vasp(
        sources, out, settings=settings, potcars=potcars, write_potcar=write_potcar, limit=limit or None, n_jobs=jobs
    )
    if as_json:
        typer.echo(json.dumps({**written._asdict(), "path": str(written.path)}, indent=2))
        return
    console = _page()
    done = "" if written.new else ", there already from the same request"
    console.print(_plain(f"{written.n:,} structures in {written.path}{done}"))
    if written.refused:
        console.print(f"[bold]{len(written.refused):,}[/] cannot be calculated", highlight=False)
        _print_reasons(console, list(written.refused.values()))
    console.print(_plain(f"next: sbatch array.sh there, or VASP in each folder; then druse dft collect {written.path}"))


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that druse dft vasp made.")],
    references: Annotated[
        Path | None,
        typer.Option(help="Your energies of elements in eV/atom: TOML (Li = -1.9), or CSV element,energy_per_atom."),
    ] = None,
    jobs: Jobs = 0,
    seconds: Annotated[float, typer.Option(help="For one result.", min=1)] = 300.0,
    as_json: AsJSON = False,
) -> None:
    """Read what is finished into dft.parquet, and compare it with predictions; as often as you like.

    Example: druse dft collect dft/demo --references elements.toml
    """
    from druse.dft import collect as read

    with counting(wanted=not as_json) as progress:
        found = read(
            folder, references=references, n_jobs=jobs, seconds=seconds,
            progress=lambda done, total: progress("results", done, total),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **found.to_dict()}, indent=2))
        return
    _print(found, folder, _page())


def _print(found: Any, folder: Path, console: Console) -> None:
    for state, meaning in _STATES.items():
        if found.counts[state]:
            console.print(f"[bold]{found.counts[state]:>6,}[/] {meaning}", highlight=False)
    status = found.entries.columns["status"]
    _print_reasons(
        console, [why for why, state in zip(found.entries.failures, status, strict=True) if state == "failed"]
    )
    if found.agreements:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", title_justify="left")
        table.add_column("beside DFT", overflow="fold")
        for heading in ("n", "MAE", "RMSE", "R²", "Err"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in found.agreements:
            numbers = ("" if math.isnan(value) else f"{value:.3f}" for value in (one.mae, one.rmse, one.r2))
            table.add_row(_plain(one.column), f"{one.n:,}", *numbers, f"{one.failed:,}")
        console.print()
        console.print(table)
    if found.counts["finished"]:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("mean change")
        table.add_column("", justify="right")
        table.add_column("n", justify="right")
        for name, value in found.changes.items():
            table.add_row(_told(name), "" if math.isnan(value["mean"]) else f"{value['mean']:.3f}", f"{value['n']:,}")
        console.print()
        console.print(table)
    if found.missing:
        names = ", ".join(found.missing)
        console.print(
            f"\nno formation energies of compounds with {names}: no energy of these elements; give --references, or "
            "calculate the elements in the same folder",
            highlight=False,
        )
    console.print(_plain(f"\n{folder}/dft.parquet, dft.csv, comparison.json"))


def _told(name: str) -> str:
    """A change with its unit."""
    unit = "degrees" if name in ("delta_alpha", "delta_beta", "delta_gamma") else "Å"
    return "rmsd, normalised" if name == "rmsd" else f"{name.removesuffix('_angstrom')}, {unit}"


def _print_reasons(console: Console, reasons: list[str]) -> None:
    counts = collections.Counter(reasons).most_common()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right")
    grid.add_column(overflow="fold")
    for reason, count in counts[:_REASONS_SHOWN]:
        grid.add_row(f"{count:,}", _plain(reason))
    if counts:
        console.print(grid)
    if (more := len(counts) - _REASONS_SHOWN) > 0:
        console.print(f"and {more:,} reasons more; the table lists them all", highlight=False)


def _page() -> Console:
    """As wide as the terminal, or wide enough for any table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _plain(text: str) -> Text:
    """Text from a file: nothing in it is markup, and no control character reaches the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


def _pairs(option: str, given: list[str] | None, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(f"{option} must be NAME=VALUE, such as {example}; got {text!r}")
        if name.strip() in found:
            raise InputError(f"{option} {name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found
