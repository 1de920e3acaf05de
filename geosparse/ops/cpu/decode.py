"""One query per row over a cache: the arguments of one fused kernel call."""

from __future__ import annotations

import ctypes

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
    batch, heads, _, dim = query.shape
    query, key, value = (unit_rows(tensor) for tensor in (query, key.to(query.dtype), value.to(query.dtype)))
    output = query.new_empty(batch, heads, 1, value.shape[-1])
    kept = torch.empty(batch, heads, dtype=torch.int64)
    first = seen = sums = None
    if isinstance(mask, torch.Tensor):
        seen = mask[:, 0, 0].expand(batch, -1).contiguous()
    else:
        starts = starts_of(mask, batch, key.shape[2])
        sums = value_sum_of(value, starts)
        first = torch.tensor(starts) if any(starts) else None
    loaded = library()
    assert loaded is not None
    call = DecodeCall(
        q=query.data_ptr(),
        k=key.data_ptr(),
        v=value.data_ptr(),
        out=output.data_ptr(),
        n_keep=budgets.data_ptr(),
        tails=tails.data_ptr(),
        selectors=selectors.data_ptr(),
        first=pointer(first),
        mask=pointer(seen),
        value_sum=pointer(sums),
        sink=pointer(sink),
        kept=kept.data_ptr(),
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        keys=key.shape[2],
        dim=dim,
        value_dim=value.shape[-1],
        q_batch=query.stride(0),
        q_head=query.stride(1),
        k_batch=key.stride(0),
        k_head=key.stride(1),
        k_row=key.stride(2),
        v_batch=value.stride(0),
        v_head=value.stride(1),
        v_row=value.stride(2),
        mask_batch=0 if seen is None else seen.stride(0),
        n_batch=budgets.stride(0) if budgets.shape[0] > 1 else 0,
        dtype=DTYPES[query.dtype],
        threads=torch.get_num_threads(),
        scaling=scaling,
        softcap=softcap or 0.0,
    )
    if index is not None and index.codes.dim() > 1:
        call.low, call.high, call.codes = index.low.data_ptr(), index.high.data_ptr(), index.codes.data_ptr()
        call.bound_batch, call.bound_head = index.low.stride()[:2]
        call.code_batch, call.code_head = index.codes.stride()[:2]
        call.width, call.bits = index.low.shape[-1], index.bits
    if loaded.gs_decode(ctypes.byref(call)):
        raise TypeError(f"the CPU kernels of this machine do not know {query.dtype}")
    return Attended(output, kept.sum(0))


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
