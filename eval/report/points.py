"""What the plots show, taken out of results: the same for PNG and page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..harness.methods import DENSE
from ..harness.result import Result, read_result, read_timing

LEAST_DECADES = 0.6


@dataclass(frozen=True)
class Point:
    """One mark: `series` decides the colour, `words` stand beside it when it is pointed at."""

    series: str
    x: float
    y: float
    low: float | None
    high: float | None
    words: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """One plot; `log_x`: the x axis is logarithmic; `is_loss`: dense attention is at 0 and not at 1."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    log_x: bool
    is_loss: bool


@dataclass(frozen=True)
class Loaded:
    """A result with its timing, by the recipe's name."""

    folder: Path
    result: Result
    timing: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Loaded:
        """Read a folder."""
        return cls(folder, read_result(folder / "result.json"), read_timing(folder))

    def timed(self, task: str, what: str) -> dict[str, float]:
        """A timing by variant."""
        rows = (row for row in self.timing["rows"] if row["task"] == task and what in row)
        return {row["variant"]: row[what] for row in rows}


def log_range(panel: Panel) -> tuple[float, float]:
    """The x axis of a logarithmic panel, in decades: all marks with some room, and never less than a factor of 4."""
    values = [math.log10(p.x) for p in panel.points]
    room = max(0.06 * (max(values) - min(values)), (LEAST_DECADES - max(values) + min(values)) / 2)
    return min(values) - room, max(values) + room


def series_of(result: Result, variant: str) -> str:
    """Policy and tail, the peer's name, or "dense"."""
    info = next(info for info in result.variants if info.id == variant)
    if info.peer is not None:
        return info.peer
    words = [word for word in (info.policy, info.tail, info.selector) if word]
    return " · ".join(words) if words else DENSE


def kept_of(result: Result, variant: str) -> float | None:
    """The share of the context that a variant was asked to keep, where it says so."""
    return next(info.density for info in result.variants if info.id == variant)


def density_panels(loaded: Loaded) -> list[Panel]:
    """Excess loss against density, one panel per task that measures loss; recovery for the others."""
    return [panel for info in loaded.result.tasks if (panel := _panel(loaded, info.id, None)) is not None]


def speed_panels(loaded: Loaded) -> list[Panel]:
    """Excess loss against ms per token, for tasks that were timed."""
    panels = []
    for info in loaded.result.tasks:
        times = loaded.timed(info.id, "ms_per_token")
        if times and (panel := _panel(loaded, info.id, times)) is not None:
            panels.append(panel)
    return panels


def _panel(loaded: Loaded, task: str, times: dict[str, float] | None) -> Panel | None:
    result, points = loaded.result, []
    metric = result.main_metric(task)
    is_loss = next(info for info in result.tasks if info.id == task).metrics[metric]["kind"] == "nll"
    for variant, row in result.of(task, metric).items():
        density = row.density if row.density is not None else kept_of(result, variant)
        x = density if times is None else times.get(variant)
        y = row.difference if is_loss else row.recovery
        if variant == DENSE and times is not None and x is not None:
            y = 0.0 if is_loss else 1.0
        if x is None or y is None:
            continue
        low, high = row.interval if is_loss and row.interval else (None, None)
        ms = {} if times is None else {"ms per token": f"{x:.1f}"}
        words = (variant, f"{metric} {row.value:.4f}", *_words(row, density), *(f"{k} {v}" for k, v in ms.items()))
        points.append(Point(series_of(result, variant), x, y, low, high, words))
    if not points:
        return None
    y_label = "excess loss over dense, nats per token" if is_loss else f"{metric}, share of dense"
    x_label = "tokens kept, share of those visible" if times is None else "ms per decoded token"
    return Panel(task, x_label, y_label, tuple(points), times is None, is_loss)


def _words(row: Any, density: float | None) -> list[str]:
    words = [] if density is None else [f"density {100 * density:.3g} %"]
    if row.difference is not None:
        words.append(f"difference {row.difference:+.4f}")
    if row.interval is not None:
        words.append(f"95 % {row.interval[0]:+.4f} to {row.interval[1]:+.4f}")
    return words


def recovery_panel(loaded: Loaded) -> list[tuple[str, list[Point]]]:
    """Per task the recovery of each variant; points have y = 0."""
    rows = []
    for info in loaded.result.tasks:
        metric = loaded.result.main_metric(info.id)
        by_variant = loaded.result.of(info.id, metric)
        dense = by_variant[DENSE]
        points = []
        for variant, row in by_variant.items():
            if row.recovery is None:
                continue
            words = (variant, f"{metric} {row.value:.4f}, dense {dense.value:.4f}", f"recovery {row.recovery:.3f}")
            points.append(Point(series_of(loaded.result, variant), row.recovery, 0.0, None, None, words))
        if points:
            rows.append((info.id, points))
    return rows
