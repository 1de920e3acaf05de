"""Where the parts of the map of layers and heads stand: the budgets of a plan as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .pages import percent
from .palette import step_of

LEFT, ABOVE = 46, 38
BAR = 22


class Label(NamedTuple):
    """A number along an axis, `at` pixels from its start."""

    at: str
    text: str


class Cell(NamedTuple):
    """One head: its place in pixels, its N and the colour step of that."""

    layer: int
    head: int
    n: int
    step: int
    x: int
    y: int
    text_x: str
    text_y: str


@dataclass(frozen=True)
class HeadMap:
    """Layers down, heads across, one colour step per doubling of N; sizes in pixels.

    Attributes:
        width: Of the picture.
        height: Of the picture.
        left: Where the cells begin.
        above: Where the cells begin.
        middle_x: Where the name of the axis stands.
        middle_y: Where the name of the axis stands.
        cell_width: Of one cell with its gap.
        cell_height: Of one cell with its gap.
        numbers: Whether N is written into the cells.
        small: Whether the numbers need a smaller font.
        heads: Numbers of heads.
        layers: Numbers of layers.
        cells: All heads.
    """

    width: int
    height: int
    left: int
    above: int
    middle_x: str
    middle_y: str
    cell_width: int
    cell_height: int
    numbers: bool
    small: bool
    heads: list[Label]
    layers: list[Label]
    cells: list[Cell]


class Bar(NamedTuple):
    """One colour step of the key: a range of N and how many heads are in it."""

    name: str
    heads: int
    y: int
    length: str
    end: str


class HeadKey(NamedTuple):
    """The colour key of the map, which is also its histogram."""

    height: int
    bars: list[Bar]


class BudgetPicture(NamedTuple):
    """What a page shows of the budgets: numbers, map and key."""

    facts: list[tuple[str, str]]
    map: HeadMap
    key: HeadKey


def budgets(n_keep: Sequence[Sequence[int]]) -> BudgetPicture | None:
    """The budgets of a plan, `n_keep`: tokens kept, by layer and head; None where there are none."""
    kept = [n for row in n_keep for n in row]
    if not kept:
        return None
    few = sum(n <= 2 for n in kept)
    facts = [
        ("mean N", f"{statistics.fmean(kept):.1f}"),
        ("median", f"{statistics.median(kept):g}"),
        ("min", str(min(kept))),
        ("max", str(max(kept))),
        ("heads with N ≤ 2", f"{percent(few / len(kept))} ({few} of {len(kept)})"),
    ]
    return BudgetPicture(facts, head_map(n_keep), head_key(n_keep))


def head_map(n_keep: Sequence[Sequence[int]]) -> HeadMap:
    """The number of tokens that each head keeps, `n_keep`: by layer and head."""
    heads = max(map(len, n_keep), default=0)
    wide, high = max(16, min(44, 792 // max(heads, 1))), 20 if len(n_keep) <= 48 else 15
    digits = max((len(str(n)) for row in n_keep for n in row), default=1)
    # Widths of the digits in a wide font; below 9 px nobody reads them.
    size = 10 if digits * 6.2 + 3 <= wide else 9 if digits * 5.6 + 1 <= wide else None
    cells = [_cell(layer, head, n, wide, high) for layer, row in enumerate(n_keep) for head, n in enumerate(row)]
    return HeadMap(
        width=LEFT + heads * wide + 2,
        height=ABOVE + len(n_keep) * high + 2,
        left=LEFT,
        above=ABOVE,
        middle_x=f"{LEFT + heads * wide / 2:g}",
        middle_y=f"{ABOVE + len(n_keep) * high / 2:g}",
        cell_width=wide,
        cell_height=high,
        numbers=size is not None,
        small=size == 9,
        heads=[Label(f"{LEFT + (head + 0.5) * wide:g}", str(head)) for head in range(0, heads, 1 if wide >= 20 else 2)],
        layers=[Label(f"{ABOVE + (layer + 0.5) * high + 3.6:g}", str(layer)) for layer in range(len(n_keep))],
        cells=cells,
    )


def _cell(layer: int, head: int, n: int, wide: int, high: int) -> Cell:
    x, y = LEFT + head * wide, ABOVE + layer * high
    return Cell(layer, head, n, step_of(n), x, y, f"{x + (wide - 1) / 2:g}", f"{y + high / 2 + 3.2:g}")


def head_key(n_keep: Sequence[Sequence[int]]) -> HeadKey:
    """Heads per doubling of N."""
    steps = [step_of(n) for row in n_keep for n in row]
    last, most = max(steps, default=0), max((steps.count(s) for s in set(steps)), default=1)
    bars = []
    for step in range(last + 1):
        count = steps.count(step)
        length = 4 + 140 * count / most
        name = ("1", "2")[step] if step < 2 else f"{2 ** (step - 1) + 1}–{2**step}"
        bars.append(Bar(name, count, 20 + BAR * step, f"{length:.1f}", f"{82 + length:.1f}"))
    return HeadKey(BAR * (last + 1) + BAR, bars)
