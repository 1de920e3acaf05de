"""Small plots over N: curves from 0 to 1 with a control, a band, and single measured points.

A profile's page has four per head, a thousand in all, so that they are places in a template and no figures of
matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 278, 150
LEFT, TOP, RIGHT, BELOW = 26, 8, 16, 24
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BELOW


class Curves(NamedTuple):
    """What one plot shows: numbers per N, NaN where there is none.

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


class Tick(NamedTuple):
    """An N below the axis, `at` pixels from the left."""

    at: str
    text: str


@dataclass(frozen=True)
class Plot:
    """A panel in pixels; places are "x,y".

    Attributes:
        caption: Below the plot.
        ticks: Some of the N.
        band: Places around the band, empty where there is none.
        curve: Places of the curve.
        control: Places of the control.
        dots: Places of single measurements.
    """

    caption: str
    ticks: list[Tick]
    band: list[str]
    curve: list[str]
    control: list[str]
    dots: list[str]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP
    inner_width: int = INNER_WIDTH
    inner_height: int = INNER_HEIGHT
    floor: int = HEIGHT - BELOW


def plots(budgets: Sequence[int], panels: Mapping[str, Curves]) -> list[Plot]:
    """The panels over log N in a frame from 0 to 1, by their captions."""
    ticks = [Tick(f"{_x(budgets, n):.0f}", str(n)) for n in budgets[:: max(1, len(budgets) // 5)]]
    return [
        Plot(
            caption=caption,
            ticks=ticks,
            band=_around(budgets, panel.band),
            curve=_points(budgets, panel.curve),
            control=_points(budgets, panel.control or ()),
            dots=[point for row in panel.dots for point in _points(budgets, row)],
        )
        for caption, panel in panels.items()
    ]


def _x(budgets: Sequence[int], n: int) -> float:
    span = max(1e-9, math.log2(budgets[-1]) - math.log2(budgets[0]))
    return LEFT + INNER_WIDTH * (math.log2(n) - math.log2(budgets[0])) / span


def _points(budgets: Sequence[int], values: Sequence[float]) -> list[str]:
    """Places of the finite values, cut to the frame."""
    return [
        f"{_x(budgets, n):.1f},{TOP + INNER_HEIGHT * (1 - min(1.0, max(0.0, value))):.1f}"
        for n, value in zip(budgets, values, strict=False)
        if math.isfinite(value)
    ]


def _around(budgets: Sequence[int], band: tuple[Sequence[float], Sequence[float]] | None) -> list[str]:
    if band is None:
        return []
    lower, upper = (_points(budgets, side) for side in band)
    return [*lower, *reversed(upper)] if lower and upper else []
