"""Colours of pages and plots, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

# (light, dark) of each series of a plot.
SERIES = (("#2a78d6", "#5b9df0"), ("#d4571f", "#ee8050"), ("#6a4fc4", "#a99bf2"), ("#0c8a5f", "#35bd8b"))
# From few to many, (light, dark).
RAMP = (("#e6eef9", "#5598e7", "#0b2f60"), ("#1b2633", "#2a6cc0", "#c9dffa"))
_SHADES = (
    {"ink": "#1f2328", "muted": "#59636e", "grid": "#e2e6ea", "paper": "#ffffff", "panel": "#f5f7f9"},
    {"ink": "#e4e8ed", "muted": "#98a2ad", "grid": "#2b333c", "paper": "#0f1419", "panel": "#171e26"},
)
PAPER = _SHADES[0] | {f"s{i}": light for i, (light, _) in enumerate(SERIES)}
"""The named colours of a picture on white; on a page a CSS variable has the same name."""


def step_of(n: int) -> int:
    """The colour step of N: 0 for N <= 1, then one per doubling (2, 3-4, 5-8, ...)."""
    return max(int(n) - 1, 0).bit_length()


def page_colours(n_keep: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What `colours.css.j2` shows: `light` and `dark`, each with `names` and the fill and ink of each step."""
    last = max((step_of(n) for row in n_keep for n in row), default=0)
    return {"light": _shade(0, last), "dark": _shade(1, last)}


def _shade(shade: int, last: int) -> dict[str, Any]:
    names = _SHADES[shade] | {f"s{i}": pair[shade] for i, pair in enumerate(SERIES)}
    fills = [_mix(RAMP[shade], step / max(last, 1)) for step in range(last + 1)]
    return {"names": names, "steps": [{"fill": fill, "ink": _ink_on(fill)} for fill in fills]}


def _ink_on(colour: str) -> str:
    """White where it has the higher contrast."""
    return "#ffffff" if _luminance(colour) < 0.18 else "#0b1522"


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _mix(anchors: Sequence[str], at: float) -> str:
    position = at * (len(anchors) - 1)
    first, second = list(pairwise(anchors))[min(int(position), len(anchors) - 2)]
    part = position - min(int(position), len(anchors) - 2)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(_rgb(first), _rgb(second), strict=True))


def _luminance(colour: str) -> float:
    """The relative luminance of WCAG; below 0.18 white text has the higher contrast."""
    parts = [c / 255 for c in _rgb(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
