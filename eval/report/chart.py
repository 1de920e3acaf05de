"""Plots as plain SVG whose colours follow the page, with a label at every mark that is pointed at or focused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .points import Panel, Point, log_range

WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46
LABEL = 15
# Besides the four of the page, which follow its theme: these are seen on dark and on light.
MORE_HUES = ("#b8406a", "#8a7a1c", "#1b8fa6", "#a0603c")
COLOURS = 4 + len(MORE_HUES)

CSS = """
.chart{display:block;width:100%;max-width:720px;height:auto;overflow:visible}
.chart text{font-size:11.5px;fill:var(--muted);font-variant-numeric:tabular-nums}
.chart .grid{stroke:var(--grid)}.chart .zero{stroke:var(--muted);stroke-dasharray:3 3}
.chart .bar,.chart .line{fill:none;stroke-width:1.5}.chart .line{opacity:.55}
.chart .mark{stroke:var(--paper);stroke-width:1}
.chart .tip{visibility:hidden;pointer-events:none}.chart .tip rect{fill:var(--panel);stroke:var(--muted)}
.chart .tip text{fill:var(--ink);font-size:12px}.chart .tip text tspan:first-child{font-weight:600}
.chart g.point:hover .tip,.chart g.point:focus .tip{visibility:visible}.chart g.point:focus{outline:none}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.88rem;margin:6px 0 10px;padding:0;list-style:none}
.legend i{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:6px}
h3{font-size:1rem;margin:26px 0 4px}
"""
HUES = (*(f"var(--s{place})" for place in range(4)), *MORE_HUES, "var(--muted)")
CSS += "".join(f".c{place}{{fill:{hue};stroke:{hue};background:{hue}}}\n" for place, hue in enumerate(HUES))


def colours(series: Sequence[str]) -> dict[str, int]:
    """A colour per series: ours first, dense grey, the rest in order of appearance."""
    names = list(dict.fromkeys(series))
    order = sorted((name for name in names if name != "dense"), key=lambda name: not name.startswith("fisher"))
    return {name: place % COLOURS for place, name in enumerate(order)} | {"dense": COLOURS}


def legend(found: dict[str, int], shown: set[str]) -> str:
    """The colours in words."""
    items = (f'<li><i class="c{c}"></i>{escape(name)}</li>' for name, c in found.items() if name in shown)
    return f'<ul class="legend">{"".join(items)}</ul>'


def scatter(panel: Panel, found: dict[str, int]) -> str:
    """A panel as an `<svg>` element."""
    xs = [math.log10(p.x) if panel.log_x else p.x for p in panel.points]
    ys = [value for p in panel.points for value in (p.y, p.low, p.high) if value is not None]
    x_low, x_high = log_range(panel) if panel.log_x else _padded(min(xs), max(xs))
    # Of losses, dense is at zero and belongs into the picture.
    y_low, y_high = _padded(min([*ys, 0.0]) if "loss" in panel.y_label else min(ys), max(ys))

    def at_x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [_open(panel.title, HEIGHT)]
    for tick in _ticks(y_low, y_high):
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(tick):.1f}" y2="{at_y(tick):.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{at_y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for place, name in _x_ticks(panel, x_low, x_high):
        parts.append(f'<text x="{at_x(place):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(panel.x_label)}</text>')
    parts.append(f'<text x="{LEFT + 6}" y="{TOP + 6}">{escape(panel.y_label)}</text>')
    for name in dict.fromkeys(p.series for p in panel.points):
        mine = sorted((p for p in panel.points if p.series == name), key=lambda p: p.x)
        where = " ".join(f"{at_x(math.log10(p.x) if panel.log_x else p.x):.1f},{at_y(p.y):.1f}" for p in mine)
        if len(mine) > 1:
            parts.append(f'<polyline class="line c{found[name]}" style="fill:none" points="{where}"/>')
    marks = []
    for p, x in zip(panel.points, xs, strict=True):
        bar = ""
        if p.low is not None and p.high is not None:
            ends = f'x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{at_y(p.low):.1f}" y2="{at_y(p.high):.1f}"'
            bar = f'<line class="bar c{found[p.series]}" {ends}/>'
        marks.append(_mark(p, at_x(x), at_y(p.y), found[p.series], HEIGHT, bar))
    return "\n".join([*parts, *marks, "</svg>"])


def strips(rows: Sequence[tuple[str, list[Point]]], found: dict[str, int]) -> str:
    """Recovery per task: one line per task, one mark per variant."""
    step, left = 30, 230
    height = TOP + step * len(rows) + BOTTOM
    values = [p.x for _, points in rows for p in points]
    low, high = _padded(min([*values, 0.95]), max([*values, 1.01]))

    def at_x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    parts = [_open("recovery per task", height)]
    for tick in _ticks(low, high):
        kind = "zero" if abs(tick - 1) < 1e-9 else "grid"
        parts.append(
            f'<line class="{kind}" x1="{at_x(tick):.1f}" x2="{at_x(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        )
        parts.append(f'<text x="{at_x(tick):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{left}" y="{height - 8}">share of the dense score (dense: 1)</text>')
    marks = []
    for place, (task, points) in enumerate(rows):
        y = TOP + step * (place + 0.5)
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(task)}</text>')
        marks += [_mark(p, at_x(p.x), y, found[p.series], height, "") for p in points]
    return "\n".join([*parts, *marks, "</svg>"])


def _open(label: str, height: float) -> str:
    return f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height:g}">'


def _mark(point: Point, x: float, y: float, colour: int, height: float, bar: str) -> str:
    wide = 14 + 6.6 * max(map(len, point.words))
    high = 10 + LABEL * len(point.words)
    left = min(max(x + 12, 2), WIDTH - wide - 2) if x + 12 + wide < WIDTH else max(x - 12 - wide, 2)
    top = min(max(y - high / 2, 2), height - high - 2)
    lines = "".join(
        f'<tspan x="{left + 7:.1f}" y="{top + 5 + LABEL * (place + 0.75):.1f}">{escape(word)}</tspan>'
        for place, word in enumerate(point.words)
    )
    return (
        f'<g class="point" tabindex="0">{bar}<circle class="mark c{colour}" style="stroke:var(--paper)" cx="{x:.1f}" '
        f'cy="{y:.1f}" r="5.5"/><g class="tip"><rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high}" '
        f'rx="4"/><text>{lines}</text></g></g>'
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.07 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    raw = (high - low) / most
    base = 10 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw)
    first = math.ceil(low / step)
    return [round(place * step, 10) for place in range(first, math.floor(high / step) + 1)]


def _x_ticks(panel: Panel, low: float, high: float) -> list[tuple[float, str]]:
    if not panel.log_x:
        return [(tick, f"{tick:g}") for tick in _ticks(low, high)]
    choices = [base * 10.0**power for power in range(-4, 1) for base in (1, 2, 3, 5)]
    return [(math.log10(v), f"{100 * v:g} %") for v in choices if low <= math.log10(v) <= high]
