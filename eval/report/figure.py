"""The plots of a result by matplotlib: as one PNG on white, and one by one for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geosparse.reports.palette import PAPER, SERIES
from geosparse.reports.plots import require_plots, save_png

from .points import Loaded, Panel, Point, density_panels, log_range, series_of, speed_panels

# Besides the four of every page, which follow its theme: these are seen on dark and on light.
MORE_HUES = ("#b8406a", "#8a7a1c", "#1b8fa6", "#a0603c")
COLOURS = len(SERIES) + len(MORE_HUES)
COLUMNS = 3
SHEET = [
    "default",
    {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False},
]


@dataclass(frozen=True)
class Look:
    """What distinguishes the plots of a file from those of a page.

    Attributes:
        names: Colours by the names of `palette.PAPER`.
        marker: Size of a mark, in points.
        line: Width of the line between marks, in points.
        fade: Opacity of that line.
        baseline: Whether a dashed line shows dense attention.
    """

    names: dict[str, str]
    marker: float
    line: float
    fade: float
    baseline: bool

    @property
    def hues(self) -> list[str]:
        """Colours by the places that `colours` gives: four of the page, the others, and grey for dense."""
        return [*(self.names[f"s{number}"] for number in range(len(SERIES))), *MORE_HUES, self.names["muted"]]


FILE = Look(PAPER, marker=4, line=1.3, fade=1.0, baseline=False)


def colours(series: Sequence[str]) -> dict[str, int]:
    """A colour per series: ours first, dense grey, the rest in order of appearance."""
    names = list(dict.fromkeys(series))
    order = sorted((name for name in names if name != "dense"), key=lambda name: not name.startswith("fisher"))
    return {name: number % COLOURS for number, name in enumerate(order)} | {"dense": COLOURS}


def save_pareto(path: Path, loaded: Loaded) -> Path | None:
    """Write the plots of one result; None where it has none.

    Raises:
        GeosparseError: matplotlib is missing.
    """
    require_plots()
    import matplotlib.style
    from matplotlib.figure import Figure

    panels = density_panels(loaded) + speed_panels(loaded)
    if not panels:
        return None
    colour_of = colours([series_of(loaded.result, info.id) for info in loaded.result.variants])
    columns, rows = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    with matplotlib.style.context(SHEET):
        figure = Figure(figsize=(4.1 * columns, 3.1 * rows + 0.5), layout="constrained")
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.set_title(panel.title, fontsize=8.5, color=PAPER["ink"])
            draw_panel(axes, panel, colour_of, FILE)
        handles = dict(zip(*reversed(_legend(figure)), strict=True))
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper left", ncols=min(5, len(handles)), frameon=False
        )
        return save_png(path, figure, dpi=130, sheet=SHEET)


def _legend(figure: Any) -> tuple[list[Any], list[str]]:
    pairs = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    return [handle for handle, _ in pairs], [label for _, label in pairs]


def draw_panel(axes: Any, panel: Panel, colour_of: dict[str, int], look: Look) -> None:
    """Quality over density or time: a line per series, a bar per interval."""
    for name in dict.fromkeys(p.series for p in panel.points):
        points = sorted((p for p in panel.points if p.series == name), key=lambda p: p.x)
        colour = look.hues[colour_of[name]]
        xs, ys = [x_of(panel, p) for p in points], [p.y for p in points]
        if look.fade == 1.0:
            axes.plot(xs, ys, "o-", color=colour, markersize=look.marker, linewidth=look.line, label=name)
        else:
            axes.plot(xs, ys, "-", color=colour, linewidth=look.line, alpha=look.fade)
        for x, p in zip(xs, points, strict=True):
            if p.low is not None:
                axes.plot([x, x], [p.low, p.high], color=colour, linewidth=1)
    if panel.log_x:
        _percent_axis(axes, panel)
    if look.baseline:
        axes.axhline(0.0 if panel.is_loss else 1.0, color=look.names["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set_xlabel(panel.x_label, color=look.names["ink"])
    axes.set_ylabel(panel.y_label, color=look.names["ink"])
    axes.grid(axis="y", color=look.names["grid"], linewidth=0.8)
    axes.tick_params(colors=look.names["muted"])


def draw_strips(axes: Any, rows: Sequence[tuple[str, list[Point]]], look: Look) -> None:
    """The frame of one line per task; marks are put onto it by the page."""
    values = [p.x for _, points in rows for p in points]
    low, high = min([*values, 0.95]), max([*values, 1.01])
    room = 0.07 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [task for task, _ in rows])
    axes.axvline(1.0, color=look.names["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    axes.grid(axis="x", color=look.names["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of the dense score (dense: 1)", color=look.names["ink"])
    axes.tick_params(colors=look.names["muted"], length=0)
    axes.spines["bottom"].set_visible(False)


def x_of(panel: Panel, point: Point) -> float:
    """Where a point stands on the x axis: logarithmic ones are in percent."""
    return 100 * point.x if panel.log_x else point.x


def _percent_axis(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(*(100 * 10**end for end in log_range(panel)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
