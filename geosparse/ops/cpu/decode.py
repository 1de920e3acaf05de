"""One query per row over a cache: the arguments of one fused kernel call."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from ..index import KeyIndex
from ..span import Span, Visibility
from ..types import Attended
from .library import DTYPES, DecodeCall, library


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

    Args:
        query: `[B, Hq, 1, D]`; key, value: `[B, Hkv, S, D]`.
        budgets: int64 `[B or 1, Hq]`, contiguous; tails, selectors: int64 `[Hq]`, the kernels' enums.
        scaling: Factor on the logits.
        mask: Which keys are visible.
        softcap: Of the logits.
        sink: fp32 `[Hq]`.
        index: Of the keys, where a selector reads it.
    """
    (batch, heads, _, dim), (_, kv_heads, keys, value_dim) = query.shape, value.shape
    dtype = query.dtype
    if key.dtype != dtype or value.dtype != dtype:
        key, value = key.to(dtype), value.to(dtype)
    query, key, value = unit_rows(query), unit_rows(key), unit_rows(value)
    output = query.new_empty(batch, heads, 1, value_dim)
    kept = torch.empty(batch, heads, dtype=torch.int64)
    shape, threads = (batch, heads, kv_heads, dim, value_dim), torch.get_num_threads()
    call = DecodeCall.from_buffer_copy(_template(shape, dtype, scaling, softcap or 0.0, threads))
    call.q, call.k, call.v, call.out = query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr()
    call.n_keep, call.tails, call.selectors = budgets.data_ptr(), tails.data_ptr(), selectors.data_ptr()
    call.kept, call.keys = kept.data_ptr(), keys
    call.q_batch, call.q_head, _, _ = query.stride()
    call.k_batch, call.k_head, call.k_row, _ = key.stride()
    call.v_batch, call.v_head, call.v_row, _ = value.stride()
    if budgets.shape[0] > 1:
        call.n_batch = heads
    first = seen = None
    if isinstance(mask, torch.Tensor):
        seen = mask[:, 0, 0].expand(batch, -1).contiguous()
        call.mask, call.mask_batch = seen.data_ptr(), keys
    else:
        starts = starts_of(mask, batch, keys)
        sums = value_sum_of(value, starts)
        if sums is not None:
            call.value_sum = sums.data_ptr()
        if any(starts):
            first = torch.tensor(starts)
            call.first = first.data_ptr()
    if sink is not None:
        call.sink = sink.data_ptr()
    if index is not None and index.codes.dim() > 1:
        call.low, call.high, call.codes = index.low.data_ptr(), index.high.data_ptr(), index.codes.data_ptr()
        call.bound_batch, call.bound_head = index.low.stride()[:2]
        call.code_batch, call.code_head = index.codes.stride()[:2]
        call.width, call.bits = index.low.shape[-1], index.bits
    loaded = library()
    assert loaded is not None
    if loaded.gs_decode(ctypes.byref(call)):
        raise TypeError(f"the CPU kernels of this machine do not know {dtype}")
    return Attended(output, kept[0] if batch == 1 else kept.sum(0))


@lru_cache(maxsize=256)
def _template(shape: tuple[int, ...], dtype: torch.dtype, scaling: float, softcap: float, threads: int) -> bytes:
    """A call with everything that stays the same from token to token; a copy of it is filled in each time."""
    names = ("batch", "heads", "kv_heads", "dim", "value_dim")
    numbers = dict(zip(names, shape, strict=True))
    return bytes(DecodeCall(dtype=DTYPES[dtype], threads=threads, scaling=scaling, softcap=softcap, **numbers))


def starts_of(span: Span, batch: int, keys: int) -> tuple[int, ...]:
    """The first key that the last query sees, per row; `keys` where it sees none."""
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
