"""One query per row over a cache: the arguments of one fused kernel call, put together in a few microseconds."""

from __future__ import annotations

import torch

from ..index import KeyIndex
from ..span import Span, Visibility
from ..types import Attended
from .direct import direct
from .library import DECODE_CALL, DTYPES, library

NO_INDEX = (0, 0, 0), (0, 0, 0, 0, 0, 0)
NO_CODES = None, None, None, 0


def decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    budgets: torch.Tensor,
    tails: torch.Tensor,
    selectors: torch.Tensor,
    scaling: float,
    mask: Visibility,
    softcap: float | None,
    sink: torch.Tensor | None,
    index: KeyIndex | None,
) -> Attended:
    """`cpu_attention` for T = 1: every key, or its code, is read once; values only where they are kept.

    The commonest call, of one row that sees all its keys, is made without Python where that can be (call.c).

    Args:
        query: `[B, Hq, 1, D]`; key, value: `[B, Hkv, S, D]`.
        budgets: int64 `[B or 1, Hq]`, contiguous; tails, selectors: int64 `[Hq]`, the kernels' enums.
        scaling: Factor on the logits.
        mask: Which keys are visible.
        softcap: Of the logits.
        sink: fp32 `[Hq]`.
        index: Of the keys, where a selector reads it.
    """
    call = direct()
    if call is not None and isinstance(mask, Span) and mask.is_causal:
        low, high, codes, bits = NO_CODES if index is None else (index.low, index.high, index.codes, index.bits)
        total, threads = getattr(value, "_geosparse_value_sum", None), torch.get_num_threads()
        settings = bits, threads, scaling, softcap or 0.0
        found = call.decode(query, key, value, budgets, tails, selectors, total, sink, low, high, codes, *settings)
        if found is not None:
            return found
    packed, output, kept, _ = pack(query, key, value, budgets, tails, selectors, scaling, mask, softcap, sink, index)
    loaded = library()
    assert loaded is not None
    if loaded.gs_decode(packed):
        raise TypeError(f"the CPU kernels of this machine do not know {query.dtype}")
    return Attended(output, kept if kept.dim() == 1 else kept.sum(0))


def pack(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    budgets: torch.Tensor,
    tails: torch.Tensor,
    selectors: torch.Tensor,
    scaling: float,
    mask: Visibility,
    softcap: float | None,
    sink: torch.Tensor | None,
    index: KeyIndex | None,
) -> tuple[bytes, torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """The arguments of `decode` as `gs_decode` takes them, where it writes output `[B, Hq, 1, Dv]` and counts `[Hq]` or
    `[B, Hq]`, and the tensors that must live as long as the first."""
    batch, heads, _, dim = query.shape
    _, kv_heads, keys, value_dim = value.shape
    dtype = query.dtype
    if key.dtype != dtype or value.dtype != dtype:
        key, value = key.to(dtype), value.to(dtype)
    q_strides, k_strides, v_strides = query.stride(), key.stride(), value.stride()
    if q_strides[3] != 1 or k_strides[3] != 1 or v_strides[3] != 1:
        query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
        q_strides, k_strides, v_strides = query.stride(), key.stride(), value.stride()
    output = torch.empty(batch, heads, 1, value_dim, dtype=dtype)
    kept = torch.empty(heads, dtype=torch.int64) if batch == 1 else torch.empty(batch, heads, dtype=torch.int64)
    first = seen = sums = None
    if isinstance(mask, torch.Tensor):
        seen = mask[:, 0, 0].expand(batch, -1).contiguous()
    else:
        starts = starts_of(mask, batch, keys)
        sums = value_sum_of(value, starts)
        if any(starts):
            first = torch.tensor(starts)
    addresses, layout = NO_INDEX if index is None or index.codes.dim() == 1 else _index_of(index)
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
        DTYPES[dtype],
        torch.get_num_threads(),
        scaling,
        softcap or 0.0,
    )
    return packed, output, kept, (query, key, value, first, seen, sums)


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


def unit_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with its last dimension contiguous in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of the first element; None for None."""
    return None if tensor is None else tensor.data_ptr()


def remember_value_sum(value: torch.Tensor, total: torch.Tensor) -> None:
    """Say, on the tensor itself, that `value` `[B, Hkv, S, Dv]` sums to `total` `[B, Hkv, Dv]` fp64 over its tokens."""
    value._geosparse_value_sum = total  # type: ignore[attr-defined]


def value_sum_of(value: torch.Tensor, starts: tuple[int, ...]) -> torch.Tensor | None:
    """What `remember_value_sum` said of this very tensor, without the keys before `starts`; else None."""
    total: torch.Tensor | None = getattr(value, "_geosparse_value_sum", None)
    if total is None or not any(starts):
        return total
    if sum(starts) * 4 > value.shape[0] * value.shape[2]:
        return None  # most of the values would be read anyway
    hidden = [value[row, :, :first].sum(-2, dtype=torch.float64) for row, first in enumerate(starts)]
    return total - torch.stack(hidden)
