"""The plots of a result as one PNG on white, for places that show no HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geosparse.artifact import write_atomic
from geosparse.reports.figures import SERIES, require_plots

from .chart import MORE_HUES, colours
from .points import Loaded, Panel, density_panels, log_range, series_of, speed_panels

HUES = [*(light for light, _ in SERIES), *MORE_HUES, "#59636e"]
INK, MUTED, GRID = "#1f2328", "#59636e", "#e2e6ea"
COLUMNS = 3


def save_png(path: Path, loaded: Loaded) -> Path | None:
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
    hues = colours([series_of(loaded.result, info.id) for info in loaded.result.variants])
    rows = -(-len(panels) // COLUMNS)
    style = [
        "default",
        {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False},
    ]
    with matplotlib.style.context(style):
        figure = Figure(figsize=(4.1 * min(COLUMNS, len(panels)), 3.1 * rows + 0.5), layout="constrained")
        for place, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, min(COLUMNS, len(panels)), place + 1), panel, hues)
        handles = dict(zip(*reversed(_legend(figure)), strict=True))
        columns = min(5, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns, frameon=False)
        save: dict[str, Any] = {"format": "png", "dpi": 130, "metadata": {"Software": None}}
        return write_atomic(path, lambda temporary: figure.savefig(temporary, **save))


def _legend(figure: Any) -> tuple[list[Any], list[str]]:
    pairs = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    return [handle for handle, _ in pairs], [label for _, label in pairs]


def _draw(axes: Any, panel: Panel, hues: dict[str, int]) -> None:
    for name in dict.fromkeys(p.series for p in panel.points):
        mine = sorted((p for p in panel.points if p.series == name), key=lambda p: p.x)
        colour = HUES[hues[name]]
        xs, ys = [100 * p.x if panel.log_x else p.x for p in mine], [p.y for p in mine]
        axes.plot(xs, ys, "o-", color=colour, markersize=4, linewidth=1.3, label=name)
        for x, p in zip(xs, mine, strict=True):
            if p.low is not None:
                axes.plot([x, x], [p.low, p.high], color=colour, linewidth=1)
    if panel.log_x:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.set_xlim(*(100 * 10**end for end in log_range(panel)))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(panel.title, fontsize=8.5, color=INK)
    axes.set_xlabel(panel.x_label, color=INK)
    axes.set_ylabel(panel.y_label, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=MUTED)
