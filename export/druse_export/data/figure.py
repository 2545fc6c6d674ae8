"""The distributions of a data set on one page, after figure A1 of the paper: elements, symmetry, properties, sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from druse._dependencies import require
from druse._files import whole_file
from druse.errors import InputError
from druse.tables import CrystalTable
from druse_export.data.describe import UNITS, crystal_systems, element_counts, elements_per_crystal, symbols

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _GRID = "#22313f", "#7b8794", "#e4e8ec"
_BAR, _ACCENT = "#2a7f9e", "#e07a3f"

_LABELS = {
    "formation_energy_per_atom": "formation energy",
    "e_above_hull": "energy above hull",
    "band_gap": "band gap",
    "dir_gap": "direct gap",
    "ind_gap": "indirect gap",
}
_FIRST = ("formation_energy_per_atom", "band_gap", "e_above_hull")
_NOT_DRAWN = ("n_atom", "spacegroup", "crystal_system")
_AT_ZERO = {  # a class of their own, which would dwarf the rest
    "band_gap": "without a gap",
    "dir_gap": "without a gap",
    "ind_gap": "without a gap",
    "e_above_hull": "on the hull",
}
_MOST_BINS = 50


def draw_distributions(table: CrystalTable, title: str) -> "Figure":
    """Draw a data set: a periodic table of its elements, its crystal systems, three of its properties, atoms per cell.

    Nothing of matplotlib's global state is used or changed.

    Args:
        table: of crystals, at least one.
        title: above all.

    Raises:
        InputError: the table is empty.
        MissingDependencyError: matplotlib or pymatgen is not installed.
    """
    if not len(table):
        raise InputError("there is nothing to draw: no crystal is left")
    require("matplotlib.figure", purpose="drawing")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.6), facecolor="white")
    known = [name for name, values in table.properties.items() if np.isfinite(values).any()]
    names = [name for name in _FIRST if name in known]
    names += [name for name in known if name not in (*_FIRST, *_NOT_DRAWN)]
    panels: list[Callable[[Axes], None]] = [
        lambda axes, name=name: _property(axes, name, table.properties[name])  # type: ignore[misc]
        for name in names[:3]
    ]
    panels.append(lambda axes: _whole_numbers(axes, table.crystals.n_atoms, "atoms in the cell"))
    if crystal_systems(table):
        panels.append(lambda axes: _whole_numbers(axes, elements_per_crystal(table), "elements"))
    rows = figure.add_gridspec(2, 1, height_ratios=(1.6, 1), left=0.05, right=0.975, top=0.9, bottom=0.08, hspace=0.2)
    upper = rows[0].subgridspec(1, 2, width_ratios=(2.5, 1), wspace=0.2)
    _periodic_table(figure.add_subplot(upper[0]), element_counts(table), len(table))
    beside = figure.add_subplot(upper[1])
    if systems := crystal_systems(table):
        _crystal_systems(beside, systems)
    else:
        _whole_numbers(beside, elements_per_crystal(table), "elements")
    lower = rows[1].subgridspec(1, len(panels), wspace=0.24)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(lower[place])
        panel(axes)
        if place == 0:
            axes.set_ylabel("crystals", color=_INK, fontsize=10)
    n_elements = sum(1 for count in element_counts(table) if count)
    facts = f"{_count(len(table), 'crystal')} of {_count(n_elements, 'element')}"
    figure.text(0.05, 0.95, title, fontsize=16, fontweight="bold", color=_INK, va="center")
    figure.text(0.975, 0.95, facts, fontsize=12, color=_FAINT, va="center", ha="right")
    return figure


def figure_format(path: Path) -> str:
    """What a figure of this name is written as: png, pdf, svg, ...

    Raises:
        InputError: no known format.
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib.backend_bases", purpose="drawing")
    from matplotlib.backend_bases import FigureCanvasBase

    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"a figure's name must end in .png, .pdf, .svg or the like, got {path.name!r}")
    return suffix


def save_figure(figure: "Figure", path: Path, *, dpi: int = 160) -> None:
    """Write a figure in the format that the name ends with; whole or not at all.

    Raises:
        InputError: no known format.
    """
    kind = figure_format(path)
    with whole_file(path, "wb") as file:
        figure.savefig(file, format=kind, dpi=dpi)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def _number(value: Any) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _plain(axes: "Axes", label: str) -> None:
    from matplotlib.ticker import StrMethodFormatter

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelcolor=_INK, labelsize=9, length=3)
    axes.tick_params(axis="y", length=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, color=_INK, fontsize=10)


def _note(axes: "Axes", text: str, color: str = _FAINT) -> None:
    axes.text(
        0.98, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=9, color=color, linespacing=1.4
    )


def _property(axes: "Axes", name: str, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    unit = UNITS.get(name, "")
    low, high = known.min(), known.max()
    inner = np.percentile(known, (0.1, 99.9))
    notes = []
    if high - low > 3 * (inner[1] - inner[0]) > 0:  # a few wild values would leave the rest in one bar
        low, high = inner
        notes.append(f"{int(np.sum((known < low) | (known > high))):,} outside")
    if high <= low:
        low, high = low - 0.5, high + 0.5
    if len(known) < len(values):
        notes.append(f"{len(values) - len(known):,} without a value")
    bins = int(np.clip(2 * np.sqrt(len(known)), 10, _MOST_BINS))
    shown = known
    if name in _AT_ZERO:
        shown = known[known != 0]
        zeros = len(known) - len(shown)
        if zeros:
            axes.bar(
                0,
                zeros,
                width=-1.3 * (high - low) / bins,
                align="edge",
                color=_ACCENT,
                edgecolor="white",
                linewidth=0.3,
            )
        _note(axes, f"{_percent(zeros / len(known))} {_AT_ZERO[name]}", _ACCENT)
        if len(shown):
            notes.insert(0, f"rest: median {_number(np.median(shown))}")
        notes.insert(0, "")
    else:
        notes.insert(0, f"median {_number(np.median(known))}")
        axes.margins(y=0.18)
    if len(shown):
        axes.hist(shown, bins=bins, range=(low, high), color=_BAR, edgecolor="white", linewidth=0.3)
    if name in _AT_ZERO:
        _logarithmic(axes)
    _note(axes, "\n".join(notes))
    _plain(axes, f"{_LABELS.get(name, name)} ({unit})" if unit else _LABELS.get(name, name))


def _logarithmic(axes: "Axes") -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2 * axes.dataLim.y1)
    axes.minorticks_off()


def _whole_numbers(axes: "Axes", values: np.ndarray, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = np.bincount(values)
    shown = np.flatnonzero(counts)
    axes.bar(shown, counts[shown], width=0.85, color=_BAR)
    axes.set_xlim(shown[0] - 1, shown[-1] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(y=0.18)
    _note(axes, f"median {_number(np.median(values))}")
    _plain(axes, label)


def _crystal_systems(axes: "Axes", systems: dict[str, int]) -> None:
    total = max(sum(systems.values()), 1)
    names = list(systems)
    axes.barh(range(len(names)), list(systems.values()), height=0.72, color=_BAR)
    for place, count in enumerate(systems.values()):
        axes.text(count, place, f" {_percent(count / total)}", va="center", fontsize=9.5, color=_INK)
    axes.set_xlim(0, 1.22 * max(*systems.values(), 1))
    _plain(axes, "crystals")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_title("crystal system", fontsize=11, color=_INK, loc="left")


def _places() -> list[tuple[int, float]]:
    """Column and row of the elements 1 to 118 in a periodic table of eighteen columns."""
    from pymatgen.core import Element

    found = []
    for number in range(1, 119):
        element = Element.from_Z(number)
        if 57 <= number <= 71 or 89 <= number <= 103:
            found.append((number - (57 if number < 72 else 89) + 3, 8.4 if number < 72 else 9.4))
        else:
            found.append((element.group, float(element.row)))
    return found


def _periodic_table(axes: "Axes", counts: list[int], n_crystals: int) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import StrMethodFormatter

    shades = ListedColormap(colormaps["YlGnBu"](np.linspace(0.08, 0.95, 256)))
    largest = max(counts)
    norm = LogNorm(1, max(largest, 10))
    for count, symbol, (column, row) in zip(counts, symbols(), _places(), strict=True):
        face: Any = shades(norm(count)) if count else "#f4f5f6"
        dark = count > 0 and float(np.dot(face[:3], (0.299, 0.587, 0.114))) < 0.55
        ink = "white" if dark else _INK if count else "#b8c0c8"
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=face, edgecolor="none"))
        axes.text(column, row - (0.1 if count else 0), symbol, ha="center", va="center", fontsize=10.5, color=ink)
        if count:
            axes.text(column, row + 0.28, _short(count), ha="center", va="center", fontsize=6.2, color=ink)
    axes.set_xlim(0.45, 18.55)
    axes.set_ylim(9.95, 0.45)
    axes.set_aspect("equal", anchor="W")
    axes.axis("off")
    scale = axes.inset_axes((0.155, 0.895, 0.36, 0.028))
    bar = axes.figure.colorbar(ScalarMappable(norm, shades), cax=scale, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bar.ax.tick_params(labelsize=8, colors=_FAINT, labelcolor=_INK, length=2)
    bar.ax.minorticks_off()
    scale.set_title(f"crystals with the element, of {n_crystals:,}", fontsize=10, color=_INK, loc="left", pad=6)


def _short(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"
