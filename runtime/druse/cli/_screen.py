"""``druse screen``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from druse._shares import Share
from druse.cli._counting import counting
from druse.cli._machines import Shard
from druse.cli._options import AsJSON, Jobs
from druse.errors import InputError

_REASONS_SHOWN = 3


def screen(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE", help="Folders of other commands; files and folders of crystals of any kind."),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            help="File of rules (TOML), as --example prints; else atoms apart, charges balanced, nothing twice."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to be made, or to go on with (required).", show_default=False)
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="Bundle of a property model, beside those of Druse and the rules.")
    ] = None,
    jobs: Jobs = 0,
    piece: Annotated[int, typer.Option(help="Crystals judged together, and stored when they are.", min=1)] = 256,
    example: Annotated[bool, typer.Option("--example", help="Print a file of rules to begin with, and leave.")] = False,
    shard: Shard = "",
    as_json: AsJSON = False,
) -> None:
    """Choose crystals by rules: geometry, composition, properties, symmetry, uniqueness, novelty, a score.

    The same command goes on with what was interrupted.

    Example: druse screen runs/demo --rules rules.toml --out screens/demo
    """
    from druse.cli._unfinished import tell_unfinished
    from druse.rules import default_rules, default_rules_text, read_rules
    from druse.screening import Screening

    if example:
        typer.echo(default_rules_text(), nl=False)
        return
    if not sources:
        raise InputError("give what to screen: a run, or files or folders of crystals (druse screen --help)")
    if out is None:
        raise InputError("give the folder for the results: --out DIR")
    chosen = default_rules() if rules is None else read_rules(rules)
    more = tuple(str(path.resolve()) for path in model or ())
    chosen = msgspec.structs.replace(chosen, models=(*chosen.models, *more))
    share = Share.parse(shard) if shard else None
    tell_unfinished(sources)
    finish(Screening.begin(out, sources, chosen, piece=piece), jobs, as_json, share)


def finish(screening: Any, jobs: int, as_json: bool, share: Share | None) -> None:
    """Go on with a screening, or a share of it, to its end, and print what it came to."""
    from druse.tables import default_cache

    judged = 0
    try:
        with counting(wanted=not as_json) as progress:
            if share:
                judged = screening.judge(share, n_jobs=jobs, progress=progress)
            else:
                screening.finish(n_jobs=jobs, progress=progress, cache=default_cache() / "references")
    except KeyboardInterrupt:
        again = f"druse resume {screening.path}" + (f" --shard {share}" if share else "")
        Console(stderr=True).print(
            f"stopped; what is judged is stored. Go on with [bold]{escape(again)}[/]", highlight=False, soft_wrap=True
        )
        sys.exit(130)
    if share:
        _print_share(screening, share, judged, as_json)
        return
    funnel = screening.funnel
    if as_json:
        content = {"screening": str(screening.path), **msgspec.to_builtins(funnel), "seconds": screening.seconds}
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console()
    _print(screening, funnel, console if console.is_terminal else Console(width=160))


def _print_share(screening: Any, share: Share, judged: int, as_json: bool) -> None:
    entries = screening.file.entries
    if as_json:
        content = {"screening": str(screening.path), "share": str(share), "judged": judged, "entries": entries}
        typer.echo(json.dumps(content, indent=2))
        return
    typer.echo(
        f"share {share}: its {judged:,} of {entries:,} entries are judged, each by itself; when all shares are, "
        f"druse resume {screening.path} does the rest"
    )


def _print(screening: Any, funnel: Any, console: Console) -> None:
    seconds = screening.seconds
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("rule", style="bold", no_wrap=True)
    for title in ("entered", "refused", "passed", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("most frequent reasons", overflow="fold", style="dim")
    for step in funnel.rules:
        shown = list(step.reasons.items())[:_REASONS_SHOWN]
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in shown)
        if len(step.reasons) > _REASONS_SHOWN:
            reasons += f"; {len(step.reasons) - _REASONS_SHOWN} reasons more"
        table.add_row(
            _plain(step.name), f"{step.entered:,}", f"{step.refused:,}", f"{step.passed:,}",
            f"{seconds.get(step.name, 0.0):.1f}", _plain(reasons),
        )  # fmt: skip
    console.print(table)
    rest = {name: value for name, value in seconds.items() if name not in {step.name for step in funnel.rules}}
    others = "".join(f", {name} {value:.1f} s" for name, value in rest.items() if value)
    console.print(
        f"\n[bold]{funnel.survivors:,}[/] of {funnel.entries:,} are left{others}: "
        f"{escape(str(screening.path))}/survivors.extxyz, .cif, .csv, .parquet",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _plain(text: str) -> Text:
    """Text from a file: nothing in it is markup, and no control character reaches the terminal."""
    return Text("".join(c if c.isprintable() else "?" for c in text))
