"""Small plots over N as SVG: curves from 0 to 1 with a control, a band, and single measured points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 278, 150
_LEFT, _TOP, _RIGHT, _BELOW = 26, 8, 16, 24

RULES = """
.curve{fill:none;stroke:currentColor;stroke-width:2}
.control{stroke-dasharray:3 3;opacity:.55;stroke-width:1.5}
.band{fill:var(--s0);opacity:.2}
.dots{stroke:var(--s1);stroke-width:4;stroke-linecap:round}
.grid{stroke:var(--grid);fill:none}
.panels{display:flex;flex-wrap:wrap;gap:18px;margin:12px 0}
.panels figcaption{font-size:.85rem;color:var(--muted)}
.panels text{font-size:10px;fill:var(--muted);text-anchor:middle}
"""


class Panel(NamedTuple):
    """One plot: numbers per N, NaN where there is none.

    Attributes:
        curve: Drawn solid.
        control: Drawn dashed, or None.
        band: Lower and upper bounds, or None.
        dots: Single measurements, a sequence per window.
    """

    curve: Sequence[float]
    control: Sequence[float] | None = None
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dots: Sequence[Sequence[float]] = ()


def panels(budgets: Sequence[int], drawn: Mapping[str, Panel]) -> str:
    """The plots side by side, by their captions."""
    figures = (
        f"<figure>{_plot(budgets, panel)}<figcaption>{caption}</figcaption></figure>"
        for caption, panel in drawn.items()
    )
    return f'<div class="panels">{"".join(figures)}</div>'


def _plot(budgets: Sequence[int], panel: Panel) -> str:
    """A frame from 0 to 1 over log N, and what is in it."""
    parts = [f'<rect class="grid" x="{_LEFT}" y="{_TOP}" width="{WIDTH - _LEFT - _RIGHT}" height="{HEIGHT - 32}"/>']
    parts.append(f'<text x="12" y="14">1</text><text x="12" y="{HEIGHT - _BELOW}">0</text>')
    for n in budgets[:: max(1, len(budgets) // 5)]:
        parts.append(f'<text x="{_x(budgets, n):.0f}" y="{HEIGHT - 4}">{n}</text>')
    if panel.band is not None:
        lower, upper = (_points(budgets, side) for side in panel.band)
        if lower and upper:
            parts.append(f'<polygon class="band" points="{" ".join([*lower, *reversed(upper)])}"/>')
    parts += [_line(budgets, panel.curve, "curve"), _line(budgets, panel.control or (), "curve control")]
    dots = "".join(f"M{point}h0" for row in panel.dots for point in _points(budgets, row))
    if dots:
        parts.append(f'<path class="dots" d="{dots}"/>')
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg {size} role="img" aria-label="curve over N">{"".join(parts)}</svg>'


def _x(budgets: Sequence[int], n: int) -> float:
    span = max(1e-9, math.log2(budgets[-1]) - math.log2(budgets[0]))
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (math.log2(n) - math.log2(budgets[0])) / span


def _points(budgets: Sequence[int], values: Sequence[float]) -> list[str]:
    """Places of the finite values, cut to the frame."""
    return [
        f"{_x(budgets, n):.1f},{_TOP + (HEIGHT - 32) * (1 - min(1.0, max(0.0, value))):.1f}"
        for n, value in zip(budgets, values, strict=False)
        if math.isfinite(value)
    ]


def _line(budgets: Sequence[int], values: Sequence[float], kind: str) -> str:
    points = _points(budgets, values)
    return f'<polyline class="{kind}" points="{" ".join(points)}"/>' if points else ""
