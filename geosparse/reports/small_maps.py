"""Small maps of layers and heads whose cells lead to the sections of a profile's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .head_map import Label

LEVELS = 10
"""Shades of a graded map: the classes `h0` to `h9` of `page.css`."""
LEFT, ABOVE = 26, 16


class SmallCell(NamedTuple):
    """One head: where it is in pixels, the class of its colour, and what it says."""

    layer: int
    head: int
    x: int
    y: int
    kind: str
    text: str


@dataclass(frozen=True)
class SmallMap:
    """One map; sizes in pixels.

    Attributes:
        title: Above the map.
        note: Below the map.
        legend: Classes of cells with what is said of each, before the note.
        width: Of the picture.
        height: Of the picture.
        size: Of a cell with its gap.
        layers: Numbers of layers.
        cells: All heads.
    """

    title: str
    note: str
    legend: Sequence[tuple[str, str]]
    width: int
    height: int
    size: int
    layers: list[Label]
    cells: list[SmallCell]


def small_map(
    title: str,
    shape: tuple[int, int],
    cell: Callable[[int, int], tuple[str, str]],
    note: str = "",
    legend: Sequence[tuple[str, str]] = (),
) -> SmallMap:
    """One map of `shape` (layers, heads): `cell` gives the class and the text of a layer and head."""
    layers, heads = shape
    size = 14 if layers <= 48 else 9
    cells = [
        SmallCell(layer, head, LEFT + head * size, ABOVE + layer * size, *cell(layer, head))
        for layer in range(layers)
        for head in range(heads)
    ]
    labels = [Label(str(ABOVE + (layer + 1) * size - 4), str(layer)) for layer in range(0, layers, 5)]
    width, height = LEFT + 2 + heads * size, ABOVE + 2 + layers * size
    return SmallMap(title, note, legend, max(width, 60), height, size, labels, cells)


def graded_map(title: str, shade: torch.Tensor, value: torch.Tensor, note: str, form: str) -> SmallMap:
    """A map whose colour follows `shade` `[layers, Hq]` between its least and its largest finite value.

    Args:
        title: Above the map.
        shade: What the colour says.
        value: `[layers, Hq]` what the text of a cell says.
        note: Below the map.
        form: The format of `value`.
    """
    finite = shade[torch.isfinite(shade)]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    level = ((shade - low) / max(high - low, 1e-12) * LEVELS).nan_to_num(0.0).clamp(0, LEVELS - 1).long().tolist()
    shown = value.tolist()

    def cell(layer: int, head: int) -> tuple[str, str]:
        number = shown[layer][head]
        return f"h{level[layer][head]}", format(number, form) if math.isfinite(number) else "–"

    layers, heads = shade.shape
    return small_map(title, (layers, heads), cell, note)
