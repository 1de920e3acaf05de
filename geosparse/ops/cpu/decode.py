"""One query per row over a cache: the arguments of one fused kernel call, put together in a few microseconds.

The kernel has two callers: fast_call.c, and `pack` for torch older than 2.10, masks with holes, values of another width
than the keys, and whatever tensors have to be copied or refused by a sentence first.
"""

from __future__ import annotations

import torch

from ...errors import GeosparseError
from .. import buffers
from ..call import AttentionCall
from ..key_index import PAGE, WIDTH, KeyIndex
from ..spec import Attended
from ..visibility import Span
from .fast_call import direct
from .handed import KernelRules, check_mask, check_rules, check_span, nothing_seen, unit_rows
from .library import DECODE_CALL, DTYPES, run

NO_INDEX: tuple[tuple[int, ...], tuple[int, ...]] = (0, 0, 0), (0, 0, 0, 0, 0, 0)
NO_CODES = None, None, None, 0
MAX_DIM = 512  # of a key: common.inc


def decode(
    call: AttentionCall, rules: KernelRules, index: KeyIndex | None, means: torch.Tensor | None = None
) -> Attended:
    """`attend_cpu` for T = 1: every key, or its code, is read once; values only where they are kept.

    Calls without a mask tensor are put together in C where that can be (fast_call.c); what is amiss is said here.

    Args:
        call: Of one query per row; its sink is fp32 `[Hq]`.
        rules: Of its heads.
        index: Of the keys, where a selector reads it.
        means: `[B, Hkv, P, Dv]` fp16, the mean values of complete pages, where there are any and a tail gives to them.

    Raises:
        GeosparseError: The tensors do not fit together, or are none that the kernel can read.
    """
    query, key, value, mask, _, (scaling, softcap, sink), *_ = call
    in_c = direct()
    if in_c is not None and (mask is None or not isinstance(mask, torch.Tensor)):
        first = None
        total: torch.Tensor | None = getattr(value, "_geosparse_value_sum", None)
        if mask is not None and not mask.is_causal:
            check_span(mask, query.shape[0])
            starts = starts_of(mask, query.shape[0], key.shape[2])
            first, total = buffers.numbers(starts, torch.int64), value_sum_of(value, starts)
        low, high, codes, bits = NO_CODES if index is None else (index.low, index.high, index.codes, index.bits)
        settings = bits, torch.get_num_threads(), scaling, softcap or 0.0
        budgets, tails, selectors, _ = rules
        states = query, key, value, budgets, tails, selectors
        result = in_c.decode(*states, first, total, sink, low, high, codes, means, *settings)
        if result is not None:
            return result
    if not key.shape[2] or not query.shape[0]:
        return nothing_seen(query, value)
    packed, output, kept, _ = pack(call, rules, index, means)
    run("gs_decode", packed, query.dtype)
    return Attended(output, kept if kept.dim() == 1 else kept.sum(0))


def pack(
    call: AttentionCall, rules: KernelRules, index: KeyIndex | None, means: torch.Tensor | None = None
) -> tuple[bytes, torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """The arguments of `decode` as `gs_decode` takes them, where it writes output `[B, Hq, 1, Dv]` and counts `[Hq]` or
    `[B, Hq]`, and the tensors that must live as long as the first."""
    query, key, value, mask = call.query, call.key, call.value, call.visibility
    scaling, softcap, sink = call.terms
    budgets, tails, selectors, _ = rules
    batch, heads, _, dim = query.shape
    _, kv_heads, keys, value_dim = value.shape
    dtype = query.dtype
    if key.dtype != dtype or value.dtype != dtype:
        key, value = key.to(dtype), value.to(dtype)
    q_strides, k_strides, v_strides = query.stride(), key.stride(), value.stride()
    if q_strides[3] != 1 or k_strides[3] != 1 or v_strides[3] != 1:
        query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
        q_strides, k_strides, v_strides = query.stride(), key.stride(), value.stride()
    check_states(query, key, value)
    if dim > MAX_DIM:
        raise GeosparseError(f"The decode kernel takes heads of up to {MAX_DIM} channels, found {dim}.")
    buffers.check("the budgets", budgets, torch.int64, (1 if len(budgets) == 1 else batch, heads))
    check_rules(rules, sink, heads)
    output = buffers.empty((batch, heads, 1, value_dim), dtype)
    kept = buffers.empty((heads,) if batch == 1 else (batch, heads), torch.int64)
    first = seen = sums = None
    starts: tuple[int, ...] = (0,) * batch
    if isinstance(mask, torch.Tensor):
        check_mask(mask, batch, 1, keys)
        seen = mask[:, 0, 0].expand(batch, -1).contiguous()
    else:
        check_span(mask, batch)
        starts = starts_of(mask, batch, keys)
        sums = value_sum_of(value, starts)
        if any(starts):
            first = buffers.numbers(starts, torch.int64)
    addresses, layout = NO_INDEX
    if index is not None and index.codes.dim() != 1:
        _check_index(index, batch, kv_heads, (keys - min(starts)) // PAGE, dim)
        addresses, layout = _index_of(index)
    mean_strides: tuple[int, ...] = (0, 0, 0)
    if means is not None:
        _check_means(means, batch, kv_heads, (keys - min(starts)) // PAGE, value_dim)
        mean_strides = means.stride()[:3]
    # In the order of calls.h.
    packed = DECODE_CALL.pack(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        output.data_ptr(),
        budgets.data_ptr(),
        tails.data_ptr(),
        selectors.data_ptr(),
        0 if first is None else first.data_ptr(),
        0 if seen is None else seen.data_ptr(),
        0 if sums is None else sums.data_ptr(),
        0 if sink is None else sink.data_ptr(),
        *addresses,
        0 if means is None else means.data_ptr(),
        kept.data_ptr(),
        batch,
        heads,
        kv_heads,
        keys,
        dim,
        value_dim,
        q_strides[0],
        q_strides[1],
        *k_strides[:3],
        *v_strides[:3],
        0 if seen is None else keys,
        0 if budgets.shape[0] == 1 else heads,
        *layout,
        *mean_strides,
        DTYPES[dtype],
        torch.get_num_threads(),
        scaling,
        softcap or 0.0,
    )
    return packed, output, kept, (query, key, value, first, seen, sums)


def check_states(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise GeosparseError unless these are `[B, Hq, T, D]`, `[B, Hkv, S, D]` and `[B, Hkv, S, Dv]` on the CPU."""
    (batch, heads, queries, dim), (_, kv_heads, keys, value_dim) = query.shape, value.shape
    buffers.check("the queries", query, query.dtype, (batch, heads, queries, dim), strided=True)
    buffers.check("the keys", key, query.dtype, (batch, kv_heads, keys, dim), strided=True)
    buffers.check("the values", value, query.dtype, (batch, kv_heads, keys, value_dim), strided=True)


def _check_index(index: KeyIndex, batch: int, kv_heads: int, pages: int, dim: int) -> None:
    """Raise GeosparseError unless the kernel can read `pages` pages of each row and KV head of `index`."""
    room, width = index.low.shape[2], -(-dim // WIDTH) * WIDTH
    if index.bits not in (4, 8) or room < pages:
        raise GeosparseError(f"Expected an index of {pages} pages in 4 or 8 bits, found {room} in {index.bits} bits.")
    bounds, words = (batch, kv_heads, room, width), width * index.bits // 32
    buffers.check("the index's lower bounds", index.low, torch.float16, bounds, strided=True)
    buffers.check("the index's upper bounds", index.high, torch.float16, bounds, strided=True)
    buffers.check("the index's codes", index.codes, torch.uint8, (batch, kv_heads, room, words, PAGE, 4), strided=True)
    pages_apart = index.low.stride()[2], index.high.stride(), index.codes.stride()[2:5]
    if pages_apart != (width, index.low.stride(), (words * PAGE * 4, PAGE * 4, 4)):
        raise GeosparseError("The pages of an index lie one behind the other in memory, which these do not: copy it.")


def _check_means(means: torch.Tensor, batch: int, kv_heads: int, pages: int, value_dim: int) -> None:
    """Raise GeosparseError unless the kernel can read `pages` means of each row and KV head."""
    room = means.shape[2] if means.dim() > 2 else 0
    buffers.check("the page means", means, torch.float16, (batch, kv_heads, max(room, pages), value_dim), strided=True)


def _index_of(index: KeyIndex) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Addresses of low, high and codes; strides of row and head of the bounds and the codes, channels, bits."""
    bounds, codes = index.low.stride(), index.codes.stride()
    layout = (bounds[0], bounds[1], codes[0], codes[1], bounds[2], index.bits)
    return (index.low.data_ptr(), index.high.data_ptr(), index.codes.data_ptr()), layout


def starts_of(span: Span, batch: int, keys: int) -> tuple[int, ...]:
    """The first key that the last query sees, per row; `keys` where it sees none."""
    if span.window is None and span.first == (0,):
        return span.first
    least = 0 if span.window is None else keys - span.window
    return tuple(min(max(first, least), keys) for first in span.starts(batch))


def remember_value_sum(value: torch.Tensor, total: torch.Tensor) -> None:
    """Say, on the tensor itself, that `value` `[B, Hkv, S, Dv]` sums to `total` `[B, Hkv, Dv]` fp64 over its tokens."""
    value._geosparse_value_sum = total  # type: ignore[attr-defined]


def value_sum_of(value: torch.Tensor, starts: tuple[int, ...]) -> torch.Tensor | None:
    """What `remember_value_sum` said of this very tensor, without the keys before `starts`; else None."""
    total: torch.Tensor | None = getattr(value, "_geosparse_value_sum", None)
    if total is None:
        return None
    shape = (*value.shape[:2], value.shape[-1])
    buffers.check("the sum of the values", total, torch.float64, shape, value.device)
    if not any(starts):
        return total
    if sum(starts) * 4 > value.shape[0] * value.shape[2]:
        return None  # most of the values would be read anyway
    hidden = [value[row, :, :first].sum(-2, dtype=torch.float64) for row, first in enumerate(starts)]
    return total - torch.stack(hidden)
