"""What each Triton kernel reads and writes: per pointer the dtypes, the shape and the strides, from a launch's numbers.

A kernel follows addresses and numbers; the compiler checks neither. Every launch is held against these tables. They
name only what the kernel touches under the launch's constants, so that a stand-in for an absent tensor passes.
Lengths that lie on the device are not read here: that they end within the keys is up to whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ...errors import GeosparseError
from .. import buffers
from ..key_index import PAGE

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP32, FP16, INT = (torch.float32,), (torch.float16,), (torch.int32,)
SUMS = (torch.float64, torch.float32)
SHARES = 4  # numbers of a tail
PAGED, LISTED, SEGMENTS = 1, 2, 1  # values of the kernels' ROWS and LIST
# A pointer's name, the dtypes, the shape, and the strides, or None for contiguous memory.
Touched = Iterator[tuple[str, tuple[torch.dtype, ...], tuple[int, ...], tuple[int, ...] | None]]


class Launch:
    """The arguments of one launch by name, and the sizes that follow from them."""

    def __init__(self, arguments: Mapping[str, Any], grid: tuple[int, ...]) -> None:
        """Args:
        arguments: Tensors, numbers and constants by the kernel's own names.
        grid: Programs.
        """
        self.__dict__.update(arguments)
        self.grid = grid
        self.batch = 0  # rows

    def __getattr__(self, name: str) -> Any:
        raise GeosparseError(f"A launch of a Triton kernel lacks {name}: this is an error of geosparse itself.")

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.KV * self.G)

    @property
    def keys_room(self) -> int:
        """Tokens that the buffer of keys, or else of values, holds."""
        return int(self.v.shape[2] if "v" in self.__dict__ else self.k.shape[2])

    def require(self, right: bool, what: str) -> None:
        """Raise GeosparseError unless `right`, which `what` says in words."""
        if not right:
            raise GeosparseError(
                f"A Triton kernel would leave its memory: expected {what}. This is an error of geosparse itself; "
                "choose path='torch'."
            )


def _rows(n: Launch) -> Touched:
    yield "first", INT, (n.batch,), None
    yield "length", INT, (n.batch,), None


def _query(n: Launch) -> Touched:
    yield "q", FLOATS, (n.batch, n.heads, n.D), (n.q_b, n.q_h, 1)


def _cache(n: Launch, *names: str) -> Touched:
    for name in names:
        dim = n.DV if name == "v" else n.D
        strides = (getattr(n, f"{name}_b"), getattr(n, f"{name}_h"), getattr(n, f"{name}_s"), 1)
        yield name, FLOATS, (n.batch, n.KV, n.keys_room, dim), strides


def _bounds(n: Launch) -> Touched:
    n.require(n.WIDTH >= n.D, "an index as wide as the keys")
    for name in ("low", "high"):
        yield name, FP16, (n.batch, n.KV, n.low.shape[2], n.WIDTH), (n.x_b, n.x_h, n.WIDTH, 1)


def _codes(n: Launch) -> Touched:
    words = n.WIDTH // 8
    yield (
        "codes",
        INT,
        (n.batch, n.KV, n.low.shape[2], words, PAGE, 1),
        (n.c_b, n.c_h, words * PAGE, PAGE, 1, 1),
    )


def _index(n: Launch) -> Touched:
    n.require(n.low.shape[2] >= n.keys_room // PAGE, "room in the index for every page of the keys")
    yield from _bounds(n)
    yield from _codes(n)


def _thresholds(n: Launch) -> Touched:
    yield "least", INT, (n.batch, n.heads), None
    yield "last_tie", INT, (n.batch, n.heads), None


def _budgets(n: Launch) -> Touched:
    n.require(n.budgets_b in {0, n.heads}, "budgets that lie one row behind the other")
    yield "budgets", INT, (n.batch if n.budgets_b else n.budgets.shape[0], n.heads), None


def _means(n: Launch, letter: str, room: int) -> Touched:
    strides = (getattr(n, f"{letter}_b"), getattr(n, f"{letter}_h"), n.DV, 1)
    yield "means", FP16, (n.batch, n.KV, room, n.DV), strides


def _tails(n: Launch, heads: int) -> Touched:
    yield "tails", FP32, (heads, SHARES), None


def _encode_pages(n: Launch) -> Touched:
    yield from _cache(n, "k")
    yield from _index(n)
    yield from _rows(n)


def _average_pages(n: Launch) -> Touched:
    n.require(n.means.shape[2] >= n.keys_room // PAGE, "room for the mean of every page of the values")
    yield from _cache(n, "v")
    yield from _means(n, "y", n.means.shape[2])
    yield from _rows(n)


def _append_token(n: Launch) -> Touched:
    yield "new_k", FLOATS, (n.batch, n.KV, 1, n.D), (n.n_b, n.n_h, n.new_k.stride(2), 1)
    yield "new_v", FLOATS, (n.batch, n.KV, 1, n.DV), (n.m_b, n.m_h, n.new_v.stride(2), 1)
    yield from _cache(n, "k", "v")
    yield "value_sum", SUMS[:1], (n.batch, n.KV, n.DV), None
    yield from _means(n, "y", n.low.shape[2])
    yield from _index(n)
    yield from _rows(n)


def _score_bounds(n: Launch) -> Touched:
    yield from _query(n)
    yield from _bounds(n)
    yield from _rows(n)
    yield "bound", FP32, (n.batch, n.heads, n.row), None
    if n.MEAN:
        yield "mean", FP32, (n.batch, n.heads, n.row), None


def _score_tokens(n: Launch) -> Touched:
    yield from _query(n)
    yield from _cache(n, "k")
    yield from _rows(n)
    if n.CODED:
        yield from _bounds(n)
        yield from _codes(n)
    if n.ROWS == LISTED:
        n.require(n.row >= n.pages_row * PAGE, "room for the scores of every listed page")
        yield "pages", INT, (n.batch, n.KV, n.pages_row), None
        yield "words", INT, (n.batch, n.KV, n.pages_row), None
        yield "count", INT, (n.batch, n.KV), None
    else:
        n.require(n.row >= n.keys_room, "room for the scores of every key")
    yield "scores", FP32, (n.batch, n.heads, n.row), None


def _find_threshold(n: Launch) -> Touched:
    yield "scores", FP32, (n.batch, n.heads, n.row), None
    yield from _rows(n)
    if n.ROWS == LISTED:
        yield "count", INT, (n.batch, n.KV), None
    yield from _budgets(n)
    yield from _thresholds(n)


def _list_pages(n: Launch) -> Touched:
    n.require(n.pages_row >= n.row, "room for every page in the list")
    yield "bound", FP32, (n.batch, n.heads, n.row), None
    yield from _rows(n)
    yield from _thresholds(n)
    yield "served", INT, (n.heads,), None
    yield "pages", INT, (n.batch, n.KV, n.pages_row), None
    yield "words", INT, (n.batch, n.KV, n.pages_row), None
    yield "count", INT, (n.batch, n.KV), None
    if n.REST:
        yield "mean", FP32, (n.batch, n.heads, n.row), None
        yield "rest_max", FP32, (n.batch, n.heads, 1), None
        yield "rest_sum", FP32, (n.batch, n.heads, 1), None


def _list_tokens(n: Launch) -> Touched:
    n.require(n.grid[1] == n.segments, "a program for each segment")
    if not n.RANKED:
        yield from _thresholds(n)
    if n.REST or not n.RANKED:
        n.require(-(-n.row // n.SEGMENT) >= n.segments, "scores of every token that may be listed")
        yield "scores", FP32, (n.batch, n.heads, n.row), None
    yield from _rows(n)
    yield from _budgets(n)
    yield "served", INT, (n.heads,), None
    yield "tokens", INT, (n.batch, n.KV, n.segments, n.SEGMENT), None
    yield "words", INT, (n.batch, n.KV, n.segments, n.SEGMENT), None
    yield "count", INT, (n.batch, n.KV, n.segments), None
    if n.REST:
        yield "rest_max", FP32, (n.batch, n.heads, n.segments), None
        yield "rest_sum", FP32, (n.batch, n.heads, n.segments), None


def _parts(n: Launch, heads: int) -> Touched:
    yield "part", FP32, (n.batch, heads, n.parts, n.DV), None
    for name in ("part_max", "part_sum"):
        yield name, FP32, (n.batch, heads, n.parts), None
    yield "part_kept", INT, (n.batch, heads, n.parts), None
    if n.EVEN:
        yield "part_even", FP32, (n.batch, heads, n.parts, n.DV), None
    if n.REST:
        yield "rest_max", FP32, (n.batch, heads, n.parts), None
        yield "rest_sum", FP32, (n.batch, heads, n.parts), None


def _attend_part(n: Launch) -> Touched:
    n.require(n.grid[1] == n.parts, "a program for each part")
    if not n.KNOWN:
        yield from _query(n)
    yield from _cache(n, "v") if n.KNOWN else _cache(n, "k", "v")
    yield from _rows(n)
    if n.LIST == SEGMENTS:
        n.require(n.row >= n.keys_room or not n.KNOWN, "the score of every key")
        yield "entries", INT, (n.batch, n.KV, n.parts, n.SEGMENT), None
        yield "words", INT, (n.batch, n.KV, n.parts, n.SEGMENT), None
        yield "count", INT, (n.batch, n.KV, n.parts), None
    elif n.LIST == LISTED:
        n.require(n.row >= n.entries_row * PAGE, "the score of every token of the listed pages")
        yield "entries", INT, (n.batch, n.KV, n.entries_row), None
        yield "words", INT, (n.batch, n.KV, n.entries_row), None
        yield "count", INT, (n.batch, n.KV), None
        yield from _thresholds(n)
    if n.KNOWN or n.LIST == LISTED:
        yield "scores", FP32, (n.batch, n.heads, n.row), None
    yield from _parts(n, n.heads)


def _combine_parts(n: Launch) -> Touched:
    yield from _parts(n, n.HEADS)
    yield from _rows(n)
    yield from _tails(n, n.HEADS)
    if n.FAR:
        yield "far_max", FP32, (n.batch, n.HEADS, n.far_parts), None
        yield "far_sum", FP32, (n.batch, n.HEADS, n.far_parts), None
    if n.PAGED:
        yield "page_part", FP32, (n.batch, n.HEADS, n.page_parts, n.DV), None
        yield "page_max", FP32, (n.batch, n.HEADS, n.page_parts), None
    if n.SUNK:
        yield "sink", FLOATS, (n.HEADS,), None
    if n.MEAN:
        yield "value_sum", SUMS, (n.batch, n.HEADS // n.G, n.DV), None
    yield "out", FLOATS, (n.batch, n.HEADS, n.DV), None
    yield "kept", INT, (n.batch, n.HEADS), None


def _spread_pages(n: Launch) -> Touched:
    yield from _cache(n, "v")
    yield from _means(n, "m", n.means.shape[2])
    yield from _rows(n)
    yield from _tails(n, n.heads)
    if n.RANKED:
        yield from _budgets(n)
    else:
        yield from _thresholds(n)
    if n.ROWS == LISTED:
        n.require(n.row >= n.pages_row * PAGE, "the score of every token of the listed pages")
        yield "bound", FP32, (n.batch, n.heads, n.bounds_row), None
        yield "page_mean", FP32, (n.batch, n.heads, n.bounds_row), None
        yield "page_least", INT, (n.batch, n.heads), None
        yield "page_last", INT, (n.batch, n.heads), None
        yield "pages", INT, (n.batch, n.KV, n.pages_row), None
        yield "count", INT, (n.batch, n.KV), None
    else:
        n.require(n.row >= n.keys_room, "the score of every key")
    yield "scores", FP32, (n.batch, n.heads, n.row), None
    yield "part", FP32, (n.batch, n.heads, n.grid[1], n.DV), None
    yield "part_max", FP32, (n.batch, n.heads, n.grid[1]), None


def _queries(n: Launch, block: int) -> Touched:
    n.require(n.query_blocks * block >= n.queries, "a block for every query")
    yield "q", FLOATS, (n.batch, n.heads, n.queries, n.D), (n.q_b, n.q_h, n.q_s, 1)
    yield "first", INT, (n.batch,), None


def _score_blocks(n: Launch) -> Touched:
    n.require(n.grid[1] == n.query_blocks, "a program for each block of queries")
    yield from _queries(n, n.BLOCK)
    for name in ("low", "high"):
        yield name, FLOATS, (n.batch, n.KV, n.key_blocks, n.D), (n.x_b, n.x_h, n.D, 1)
    yield "out", FP32, (n.batch, n.KV, n.query_blocks, n.key_blocks), None


def _many_queries(n: Launch) -> Touched:
    n.require(n.keys_room == n.keys, "as many keys as are counted")
    yield from _queries(n, n.ROWS)
    yield from _cache(n, "k", "v")
    yield "out", FLOATS, (n.batch, n.heads, n.queries, n.DV), None
    if n.SUNK:
        yield "sink", FLOATS, (n.heads,), None


def _attend_blocks(n: Launch) -> Touched:
    n.require(n.grid[0] <= n.query_blocks, "a list for each block of queries")
    yield from _many_queries(n)
    yield "picks", INT, (n.batch, n.KV, n.query_blocks, n.picks_row), None
    yield "counts", INT, (n.batch, n.KV, n.query_blocks), None


def _attend_exactly(n: Launch) -> Touched:
    n.require(n.start_block + n.grid[0] <= n.query_blocks, "a count for each block of queries")
    n.require(n.scratch.numel() >= n.grid[0] * n.grid[1] * n.ROWS * n.ROOM, "room for the scores of each program")
    yield from _many_queries(n)
    if n.CODED:
        yield "codes", FLOATS, (n.batch, n.KV, n.keys, n.D), (n.c_b, n.c_h, n.c_s, 1)
    yield "budgets", INT, (n.batch, n.heads, n.queries), (n.n_b, n.n_h, n.n_s)
    yield from _tails(n, n.heads)
    if n.prefix.dim() > 1:
        yield "prefix", FP32, (n.batch, n.KV, n.prefixes, n.DV), None
    yield "scratch", FP32, (n.scratch.numel(),), None
    yield "kept", INT, (n.batch, n.heads, n.query_blocks), None


# Per kernel what it touches, and the axis of the grid that counts rows of the batch, times heads or KV heads.
CONTRACTS: dict[str, tuple[Callable[[Launch], Touched], int, str]] = {
    "encode_pages": (_encode_pages, 0, "KV"),
    "average_pages": (_average_pages, 0, "KV"),
    "append_token": (_append_token, 0, "KV"),
    "score_bounds": (_score_bounds, 0, "KV"),
    "score_tokens": (_score_tokens, 0, "KV"),
    "find_threshold": (_find_threshold, 0, "heads"),
    "list_pages": (_list_pages, 0, "KV"),
    "list_tokens": (_list_tokens, 0, "KV"),
    "attend_part": (_attend_part, 0, "KV"),
    "spread_pages": (_spread_pages, 0, "KV"),
    "combine_parts": (_combine_parts, 0, "HEADS"),
    "score_blocks": (_score_blocks, 0, "KV"),
    "attend_blocks": (_attend_blocks, 1, "heads"),
    "attend_exactly": (_attend_exactly, 1, "heads"),
}


def check_launch(kernel: str, arguments: Mapping[str, Any], grid: tuple[int, ...]) -> None:
    """Raise GeosparseError unless all that `kernel` touches is where the launch says.

    Args:
        kernel: A name in CONTRACTS.
        arguments: Tensors, numbers and constants by the kernel's own names.
        grid: Programs.
    """
    touched, axis, unit = CONTRACTS[kernel]
    launch = Launch(arguments, grid)
    each = int(getattr(launch, unit))
    launch.require(each > 0 and grid[axis] % each == 0, f"a multiple of {each} programs")
    launch.batch = grid[axis] // each
    device = launch.first.device
    for name, dtypes, shape, strides in touched(launch):
        buffers.check_layout(f"`{name}` of {kernel}", arguments[name], dtypes, shape, strides, device)
