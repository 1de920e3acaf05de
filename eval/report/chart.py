"""Plots of a page: drawn by matplotlib in the page's colours, with marks that say their numbers when pointed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from geosparse.reports.plots import PAGE, require_plots, style, themed_plot

from .figure import Look, draw_panel, draw_strips, x_of
from .points import Panel, Point

if TYPE_CHECKING:
    from markupsafe import Markup

ON_PAGE = Look(PAGE, marker=0, line=1.1, fade=0.55, baseline=True)
# Inches, of which the page shows 72 units each.
WIDTH, HEIGHT, PER_TASK = 7.2, 3.5, 0.3
# Of a tip, in units: one line, one letter in a wide font, and the room around.
LINE, LETTER, ROOM = 11, 4.9, 5


class TipLine(NamedTuple):
    """One line of a tip and where it stands."""

    y: str
    text: str


class Tip(NamedTuple):
    """The box beside a mark, in units of the picture."""

    left: str
    top: str
    width: str
    height: str
    text_x: str
    lines: list[TipLine]


class Mark(NamedTuple):
    """One point of a plot: where it is, its colour's place, and what it says."""

    x: str
    y: str
    colour: int
    tip: Tip


@dataclass(frozen=True)
class Chart:
    """A plot for `chart.html.j2`.

    Attributes:
        label: What a screen reader says.
        legend: Names and the places of their colours.
        box: The view box.
        body: What matplotlib drew.
        marks: What is put onto it.
    """

    label: str
    legend: list[tuple[str, int]]
    box: str
    body: Markup
    marks: list[Mark]


def panel_chart(panel: Panel, colour_of: dict[str, int]) -> Chart:
    """A panel; `colour_of`: the place of each series' colour, from `figure.colours`."""
    with _figure(HEIGHT) as (figure, axes):
        figure.subplots_adjust(left=0.1, right=0.985, bottom=0.145, top=0.97)
        draw_panel(axes, panel, colour_of, ON_PAGE)
        positions = [(x_of(panel, p), p.y) for p in panel.points]
        return _chart(panel.title, figure, axes, list(panel.points), positions, colour_of)


def strips_chart(rows: Sequence[tuple[str, list[Point]]], colour_of: dict[str, int]) -> Chart:
    """Recovery per task: one line per task, one mark per variant."""
    with _figure(PER_TASK * len(rows) + 0.55, layout="constrained") as (figure, axes):
        draw_strips(axes, rows, ON_PAGE)
        points = [p for _, points in rows for p in points]
        positions = [(p.x, float(row)) for row, (_, points) in enumerate(rows) for p in points]
        return _chart("recovery per task", figure, axes, points, positions, colour_of)


@contextmanager
def _figure(height: float, layout: Literal["constrained"] | None = None) -> Iterator[tuple[Any, Any]]:
    """A figure with one plot, in the style of a page."""
    require_plots()
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(style(**{"font.size": 8.5})):
        figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor=PAGE["paper"])
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        axes.spines["bottom"].set_color(PAGE["muted"])
        yield figure, axes


def _chart(
    label: str,
    figure: Any,
    axes: Any,
    points: Sequence[Point],
    positions: Sequence[tuple[float, float]],
    colour_of: dict[str, int],
) -> Chart:
    plot = themed_plot(figure)
    # Drawing has laid the plot out: from data to parts of the figure, and from them to units of the picture.
    width, height = (72 * inches for inches in figure.get_size_inches())
    on_figure = figure.transFigure.inverted().transform(axes.transData.transform(positions))
    shown = {p.series for p in points}
    return Chart(
        label=label,
        legend=[(name, colour) for name, colour in colour_of.items() if name in shown],
        box=plot.box,
        body=plot.body,
        marks=[
            _mark(point, float(x) * width, (1 - float(y)) * height, colour_of[point.series], (width, height))
            for point, (x, y) in zip(points, on_figure, strict=True)
        ],
    )


def _mark(point: Point, x: float, y: float, colour: int, size: tuple[float, float]) -> Mark:
    """A mark with its tip: to the right of it where there is room, within the picture as far as that can be."""
    width = 2 * ROOM + LETTER * max(map(len, point.words))
    height = ROOM + LINE * len(point.words)
    left = x + 8 if x + 8 + width < size[0] else max(x - 8 - width, 2)
    top = max(min(y - height / 2, size[1] - height - 2), 2)
    lines = [TipLine(f"{top + ROOM / 2 + LINE * (row + 0.75):.1f}", line) for row, line in enumerate(point.words)]
    tip = Tip(f"{left:.1f}", f"{top:.1f}", f"{width:.1f}", f"{height:.1f}", f"{left + ROOM:.1f}", lines)
    return Mark(f"{x:.1f}", f"{y:.1f}", colour, tip)
