"""What the CPU kernels are handed of a call: its heads' rules in numbers, and checks before addresses go there."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...errors import GeosparseError
from .. import buffers
from ..call import AttentionCall
from ..spec import Attended
from ..tails import TailShares
from ..visibility import Span, Visibility

SHARES = len(TailShares._fields)


class KernelRules(NamedTuple):
    """The rules of the heads as the kernels take them.

    Attributes:
        budgets: int64, `[B or 1, Hq]` and contiguous for one query, `[B or 1, Hq, T or 1]` for several.
        tails: fp32 `[Hq, 4]`, the numbers of TailShares.
        selectors: int64 `[Hq]`, numbers of enum Selector.
        first: Of each batch row the first key that is not padding; for several queries under a Span.
    """

    budgets: torch.Tensor
    tails: torch.Tensor
    selectors: torch.Tensor
    first: tuple[int, ...] = ()


def unit_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with its last dimension contiguous in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


def nothing_seen(query: torch.Tensor, value: torch.Tensor) -> Attended:
    """What queries get that see nothing: zeros, of no tokens."""
    shape = (*query.shape[:3], value.shape[-1])
    return Attended(buffers.zeros(shape, query.dtype), buffers.zeros(query.shape[1:2], torch.int64))


def check_rules(rules: KernelRules, sink: torch.Tensor | None, heads: int) -> None:
    """Raise GeosparseError unless tails are fp32 `[Hq, 4]`, selectors int64 and sinks fp32 `[Hq]`, on the CPU."""
    buffers.check("the tails", rules.tails, torch.float32, (heads, SHARES))
    buffers.check("the selectors", rules.selectors, torch.int64, (heads,))
    if sink is not None:
        buffers.check("the sinks", sink, torch.float32, (heads,))


def check_mask(mask: torch.Tensor, batch: int, queries: int, keys: int) -> None:
    """Raise GeosparseError unless `mask` is bool `[B or 1, 1, T, S]` on the CPU."""
    fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1:] == (1, queries, keys)
    if mask.dtype != torch.bool or not fits or mask.device != buffers.CPU or not buffers.has_memory(mask):
        raise GeosparseError(
            f"Expected a bool mask [1 or {batch}, 1, {queries}, {keys}] on the CPU, found {mask.dtype} "
            f"{list(mask.shape)} on {mask.device}."
        )


def check_span(span: Span, batch: int) -> None:
    """Raise GeosparseError unless `span` says what each of `batch` rows sees."""
    if len(span.first) not in (1, batch) or min(span.first) < 0 or (span.window is not None and span.window < 1):
        raise GeosparseError(
            f"Expected a first visible key >= 0 for each of {batch} rows and a window of 1 or more keys, or none, "
            f"found {span}."
        )


def check_prompt(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rules: KernelRules,
    mask: Visibility,
    sink: torch.Tensor | None,
) -> None:
    """Raise GeosparseError unless a call of several queries can be made of these, key and value in fp32."""
    budgets = rules.budgets
    (batch, heads, queries, dim), (_, kv_heads, keys, value_dim) = query.shape, value.shape
    if type(query) not in buffers.PLAIN or query.device != buffers.CPU or not buffers.has_memory(query):
        raise GeosparseError(
            f"Expected queries in memory of the CPU, found a {type(query).__name__} on {query.device}."
        )
    buffers.check("the keys", key, torch.float32, (batch, kv_heads, keys, dim), strided=True)
    buffers.check("the values", value, torch.float32, (batch, kv_heads, keys, value_dim), strided=True)
    if heads % kv_heads:
        raise GeosparseError(f"Expected a multiple of {kv_heads} query heads, as there are KV heads, found {heads}.")
    check_rules(rules, sink, heads)
    if budgets.shape not in {(rows, heads, columns) for rows in (1, batch) for columns in (1, queries)}:
        raise GeosparseError(
            f"Expected budgets [1 or {batch}, {heads}, 1 or {queries}] (batch, heads, queries), found "
            f"{list(budgets.shape)}."
        )
    buffers.check("the budgets", budgets, torch.int64, tuple(budgets.shape))
    if isinstance(mask, torch.Tensor):
        check_mask(mask, batch, queries, keys)
        return
    check_span(mask, batch)
    if queries > keys:
        raise GeosparseError(f"The last of the queries sees the last key: expected at most {keys}, found {queries}.")


def prepared(
    call: AttentionCall, rules: KernelRules, mask: Visibility
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of a checked call of several queries in fp32, the last dimension contiguous."""
    key, value = unit_rows(call.key.float()), unit_rows(call.value.float())
    check_prompt(call.query, key, value, rules, mask, call.terms.sink)
    return unit_rows(call.query.float()), key, value
