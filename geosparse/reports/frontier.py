"""Quality against budget as a plot: excess NLL over the mean number of tokens kept, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .palette import PAPER, SERIES
from .plots import PAGE, require_plots, save_png, style, themed_svg

if TYPE_CHECKING:
    from markupsafe import Markup

# A policy outside the known ones takes a colour that is still free.
_KNOWN = {"fisher": 0, "uniform": 1, "permuted": 2}
_MARKERS = ("o", "s", "D", "P")
_DASHES = {"centroid": "-", "renormalize": "--"}
Row = dict[str, Any]


def number(value: object) -> float | None:
    """`value` as a finite float, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def rows_of(result: dict[str, Any]) -> list[Row]:
    """The rows of a result, measured or not."""
    return [row for row in result.get("rows") or [] if isinstance(row, dict)]


def interval(row: Row) -> tuple[float, float] | None:
    """The 95 % interval of a row's excess NLL, when it was measured."""
    bounds = row.get("excess_nll_interval")
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return None
    low, high = number(bounds[0]), number(bounds[1])
    return None if low is None or high is None else (low, high)


def save_frontier_png(path: Path | str, result: dict[str, Any]) -> Path:
    """Write the plot of excess NLL against mean tokens kept as a PNG on white, atomically.

    Args:
        path: The file to write.
        result: A result of `geosparse.result/1`.

    Raises:
        GeosparseError: matplotlib is missing or the file cannot be written.
    """
    return save_png(path, _frontier(rows_of(result), PAPER), dpi=200)


def frontier_svg(result: dict[str, Any]) -> Markup:
    """The same plot as an `<svg>` element whose colours are the CSS variables of the page."""
    label = "Excess NLL over dense attention against the mean number of tokens kept per head"
    return themed_svg(_frontier(rows_of(result), PAGE), label)


def _points(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows that can be drawn, by (policy, tail), each sorted by budget."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        keep = number(row.get("mean_keep"))
        if number(row.get("excess_nll")) is not None and keep is not None and keep > 0:
            series.setdefault((str(row.get("policy")), str(row.get("tail"))), []).append(row)
    return {key: sorted(points, key=lambda row: float(row["mean_keep"])) for key, points in series.items()}


def _slots(policies: Sequence[str]) -> dict[str, int]:
    free = [i for i in range(len(SERIES)) if i not in {_KNOWN.get(name) for name in policies}] or [0]
    others = [name for name in dict.fromkeys(policies) if name not in _KNOWN]
    return {**_KNOWN, **{name: free[i % len(free)] for i, name in enumerate(others)}}


def _frontier(rows: Sequence[Row], colours: dict[str, str]) -> Any:
    require_plots()
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(style()):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor=colours["paper"])
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        series = _points(rows)
        if not series:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no measured rows", ha="center", va="center", color=colours["muted"])
            return figure
        floor = _axes(axes, [row for points in series.values() for row in points], colours)
        slots = _slots([policy for policy, _ in series])
        for index, (key, points) in enumerate(series.items()):
            # Neighbouring series stand a hair apart, so that their error bars can be told from each other.
            shift = 2 ** (0.035 * (index - (len(series) - 1) / 2))
            _line(axes, key, points, slots[key[0]], shift, floor, colours)
        columns = min(3, len(series))
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=colours["ink"], handlelength=3)
    return figure


def _axes(axes: Any, rows: list[Row], colours: dict[str, str]) -> float:
    """Scales, ticks and labels; returns the height at which a point at or below zero is drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    keeps = sorted({float(row["mean_keep"]) for row in rows})
    low, high = _limits(rows)
    floor = low * 1.6
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(keeps[0] / 1.25, keeps[-1] * 1.25)
    axes.set_ylim(low, high)
    axes.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if math.log10(high / low) < 3.5 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.tick_params(colors=colours["muted"], labelcolor=colours["muted"])
    axes.set_xlabel("mean tokens kept per head", color=colours["ink"])
    axes.set_ylabel("excess NLL over dense (nats per token)", color=colours["ink"])
    if any(row["excess_nll"] <= 0 for row in rows):
        axes.axhline(floor, color=colours["muted"], linewidth=0.8, linestyle=":")
        note = {"color": colours["muted"], "fontsize": 8.5, "va": "bottom"}
        axes.annotate("▼ at or below dense", (0.0, floor), (3, 2), ("axes fraction", "data"), "offset points", **note)
    return floor


def _limits(rows: list[Row]) -> tuple[float, float]:
    values = [float(row["excess_nll"]) for row in rows]
    bounds = [bound for row in rows if (bound := interval(row))]
    least = min((value for value in values if value > 0), default=1e-3)
    # An interval that comes near zero would take decades of an axis that nothing else needs.
    lows = [low for low, _ in bounds if low > least / 30]
    return min([least / 4, *(low / 1.3 for low in lows)]), 1.4 * max([least, *values, *(high for _, high in bounds)])


def _line(
    axes: Any,
    key: tuple[str, str],
    rows: list[Row],
    slot: int,
    shift: float,
    floor: float,
    colours: dict[str, str],
) -> None:
    colour, dash = colours[f"s{slot}"], _DASHES.get(key[1], ":")
    marker = {"markersize": 5.5, "markeredgecolor": colours["paper"], "markeredgewidth": 0.6}
    bar = {"color": colour, "capsize": 3.5, "capthick": 1.2, "elinewidth": 1.2, "zorder": 2}
    x = [float(row["mean_keep"]) * shift for row in rows]
    y = [max(float(row["excess_nll"]), floor) for row in rows]
    label = " · ".join(key)
    axes.plot(x, y, dash, color=colour, marker=_MARKERS[slot], linewidth=1.8, label=label, zorder=3, **marker)
    for at, height, row in zip(x, y, rows, strict=True):
        bounds = interval(row)
        if bounds is not None and bounds[1] > 0:
            # A bound that log scale cannot show runs out of the bottom of the axes.
            low, high = max(bounds[0], floor / 100), max(bounds[1], height)
            axes.errorbar(at, height, [[max(height - low, 0)], [high - height]], **bar)
        if row["excess_nll"] <= 0:
            axes.plot(at, floor, "v", color=colour, zorder=4, **{**marker, "markersize": 7.5})
