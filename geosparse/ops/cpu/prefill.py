"""Many queries: one kernel from keys to output; behind masks, and where much is kept, between two matrix products."""

from __future__ import annotations

import ctypes

import torch

from ...errors import GeosparseError
from .. import buffers
from ..call import CAUSAL, AttentionCall, Terms
from ..selectors import EXACT, SELECTORS
from ..spec import Attended
from ..torch_chunked import chunk_rows, visible_mean
from ..visibility import Span, chunk_of
from .handed import KernelRules, nothing_seen, prepared
from .library import WeighCall, run

CODED = {SELECTORS[name].kernel for name in SELECTORS.built_in if SELECTORS[name].coded}
SCORED = SELECTORS[EXACT].kernel
FIRST = (0,)  # key, where nothing is padding
PANEL = 32  # prefill.inc
PACKED_DIMS = 5
LEAST_QUERIES = 16  # that are worth packing the keys
MEAN_ROWS = 1024  # that the mean is added to at once


def prefill(call: AttentionCall, rules: KernelRules, decoded: torch.Tensor | None) -> Attended:
    """`attend_cpu` for several queries per row; the selectors have a kernel for that.

    Args:
        call: Of several queries per row; its sink is fp32 `[Hq]`.
        rules: Of its heads.
        decoded: `[B, Hkv, S, D]` fp32, the keys as their index has them, where a selector reads it.

    Raises:
        GeosparseError: The tensors do not fit together, or are none that the kernels can read.
    """
    query, mask = call.query, CAUSAL if call.mask is None else call.mask
    scaling, softcap, _ = call.terms
    rules = rules._replace(budgets=rules.budgets.contiguous())
    budgets, tails, selectors, starts = rules
    batch, heads, queries, dim = query.shape
    keys, kv_heads = call.key.shape[2], call.key.shape[1]
    if not keys or not query.numel():
        return nothing_seen(query, call.value)
    rows, key, value = prepared(call, rules, mask)
    centred, _, _, paged = tails.ne(0).any(0).tolist()
    means = _span_means(value, starts, mask.window, queries) if centred and isinstance(mask, Span) else None
    coded = [head for head, number in enumerate(selectors.tolist()) if number in CODED]
    # Coded keys of all heads where all are coded, so that there is one product.
    scored = decoded if decoded is not None and len(coded) == heads else key
    coarse = decoded if 0 < len(coded) < heads else None
    output = buffers.empty((batch, heads, queries, value.shape[-1]), torch.float32)
    exact = key if set(selectors.tolist()) != {SCORED} else None
    # Where a tail gives to pages all values have weights: a matrix product adds them up.
    if coarse is None and isinstance(mask, Span) and queries >= LEAST_QUERIES and not paged:
        missing, count = _weigh(_packed(scored), keys, rows, exact, value, output, rules, mask.window, None, call.terms)
        if means is not None:
            for start in range(0, queries, MEAN_ROWS):
                near = slice(start, start + MEAN_ROWS)
                centroid = means[:, :, near].repeat_interleave(heads // kv_heads, dim=1)
                output[:, :, near].addcmul_(missing[:, :, near].unsqueeze(-1), centroid)
        return Attended(output.to(query.dtype), count.sum((0, 2)))
    kept = buffers.zeros((heads,), torch.int64)
    # Adding up one kept row of values costs about four times what a matrix product spends on any row.
    most = budgets.amax(-1).clamp_max(keys).sum() // budgets.shape[0]
    gather = 4 * int(most) < heads * keys and not paged
    size = chunk_rows(batch, heads, keys, query.device)
    buffer = buffers.empty((batch * heads * min(size, queries) * keys,), torch.float32)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        if isinstance(mask, Span):
            seen, (first, end) = None, mask.key_range(start, stop, queries, keys)
        else:
            part, first, end = chunk_of(mask, start, stop, queries, keys, query.device)
            seen = part[:, 0].expand(batch, -1, -1)
        asked = rows[:, :, start:stop]
        grouped = (asked * scaling).reshape(batch, kv_heads, -1, dim)
        scores = buffer[: batch * heads * (stop - start) * (end - first)].view(batch, kv_heads, -1, end - first)
        shaped = scores.view(batch, heads, stop - start, end - first)
        torch.matmul(grouped, scored[:, :, first:end].transpose(-1, -2), out=scores)
        if coarse is not None:
            other = (grouped @ coarse[:, :, first:end].transpose(-1, -2)).view(shaped.shape)
            shaped[:, coded] = other[:, coded]
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        result = output[:, :, start:stop]
        seen_value = value[:, :, first:end]
        part = budgets if budgets.shape[-1] == 1 else budgets[..., start:stop]
        missing, count = _weigh(
            shaped,
            end - first,
            asked,
            None if exact is None else exact[:, :, first:end],
            seen_value if gather else None,
            result,
            KernelRules(part, tails, selectors, tuple(max(0, place - first) for place in starts or FIRST * batch)),
            mask.window if isinstance(mask, Span) else None,
            seen,
            call.terms,
        )
        if not gather:
            result.copy_((scores @ seen_value).view(batch, heads, stop - start, -1))
        if centred:
            if means is not None:
                centroid = means[:, :, start:stop]
            else:
                assert seen is not None
                centroid = visible_mean(seen_value, seen[:, None])
            result.addcmul_(missing.unsqueeze(-1), centroid.repeat_interleave(heads // kv_heads, dim=1))
        kept += count.sum((0, 2))
    return Attended(output.to(query.dtype), kept)


def _packed(key: torch.Tensor) -> torch.Tensor:
    """Keys `[B, Hkv, S, D]` as panels `[B, Hkv, P, D, PANEL]`, filled up with zeros."""
    batch, kv_heads, keys, dim = key.shape
    key = torch.nn.functional.pad(key, (0, 0, 0, -keys % PANEL))
    return key.reshape(batch, kv_heads, -1, PANEL, dim).transpose(-1, -2).contiguous()


def _weigh(
    source: torch.Tensor,
    keys: int,
    query: torch.Tensor,
    exact: torch.Tensor | None,
    value: torch.Tensor | None,
    output: torch.Tensor,
    rules: KernelRules,
    window: int | None,
    seen: torch.Tensor | None,
    terms: Terms,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed keys, or scores `[B, Hq, T, S]` -> `output` `[B, Hq, T, Dv]`, or without `value` weights in place.

    Returns:
        The mass that is left to the mean of the visible values, and the tokens kept, `[B, Hq, T]`.
    """
    batch, heads, queries = query.shape[:3]
    packed = source.dim() == PACKED_DIMS
    missing = buffers.empty((batch, heads, queries), torch.float32)
    kept = buffers.empty((batch, heads, queries), torch.int64)
    budgets, first = rules.budgets, buffers.numbers(rules.first, torch.int64)
    if seen is not None and seen.stride(-1) != 1:
        seen = seen.contiguous()
    buffers.check("the budgets", budgets, torch.int64, tuple(budgets.shape), strided=True)
    budgets = budgets.expand(batch, heads, queries)
    rows = output if value is None else value
    kv_heads = (
        source.shape[1] if packed else next((part.shape[1] for part in (exact, value) if part is not None), heads)
    )
    _check_call(source, keys, query, exact, value, output, kv_heads, seen)
    call = WeighCall(
        packed=source.data_ptr() if packed else None,
        scores=None if packed else source.data_ptr(),
        q=query.data_ptr(),
        k=None if exact is None else exact.data_ptr(),
        v=None if value is None else value.data_ptr(),
        out=output.data_ptr(),
        missing=missing.data_ptr(),
        kept=kept.data_ptr(),
        n_keep=budgets.data_ptr(),
        tails=rules.tails.data_ptr(),
        selectors=rules.selectors.data_ptr(),
        first=first.data_ptr(),
        mask=None if seen is None else seen.data_ptr(),
        sink=None if terms.sink is None else terms.sink.data_ptr(),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        queries=queries,
        keys=keys,
        dim=query.shape[-1],
        value_dim=rows.shape[-1],
        q_batch=query.stride(0),
        q_head=query.stride(1),
        q_row=query.stride(2),
        k_batch=0 if exact is None else exact.stride(0),
        k_head=0 if exact is None else exact.stride(1),
        k_row=0 if exact is None else exact.stride(2),
        v_batch=rows.stride(0),
        v_head=rows.stride(1),
        v_row=rows.stride(2),
        out_batch=output.stride(0),
        out_head=output.stride(1),
        mask_batch=0 if seen is None else seen.stride(0),
        mask_row=0 if seen is None else seen.stride(1),
        n_batch=budgets.stride(0),
        n_head=budgets.stride(1),
        n_row=budgets.stride(2),
        window=window or 0,
        threads=torch.get_num_threads(),
        scaling=terms.scaling,
        softcap=terms.softcap or 0.0,
    )
    run("gs_prefill" if packed else "gs_weigh", ctypes.addressof(call), torch.float32)
    return missing, kept


def _check_call(
    source: torch.Tensor,
    keys: int,
    query: torch.Tensor,
    exact: torch.Tensor | None,
    value: torch.Tensor | None,
    output: torch.Tensor,
    kv_heads: int,
    seen: torch.Tensor | None,
) -> None:
    """Raise GeosparseError unless these are what `_weigh` says of them."""
    (batch, heads, queries, dim), value_dim = query.shape, output.shape[-1]
    panels = -(-keys // PANEL)
    if source.dim() == PACKED_DIMS:
        buffers.check("the packed keys", source, torch.float32, (batch, kv_heads, panels, dim, PANEL))
    else:
        buffers.check("the scores", source, torch.float32, (batch, heads, queries, keys))
    buffers.check("the queries", query, torch.float32, (batch, heads, queries, dim), strided=True)
    buffers.check("the output", output, torch.float32, (batch, heads, queries, value_dim), strided=True)
    if output.stride(2) != value_dim:
        raise GeosparseError(f"The rows of an output lie one behind the other, found strides {list(output.stride())}.")
    if exact is not None:
        buffers.check("the keys", exact, torch.float32, (batch, kv_heads, keys, dim), strided=True)
    if value is not None:
        buffers.check("the values", value, torch.float32, (batch, kv_heads, keys, value_dim), strided=True)
    if seen is not None:
        buffers.check("the mask", seen, torch.bool, (batch, queries, keys), strided=True)


def _span_means(value: torch.Tensor, first: tuple[int, ...], window: int | None, queries: int) -> torch.Tensor:
    """Mean of the values that each query sees, `[B, Hkv, T, Dv]`; summed in fp64, as the prefixes are long."""
    keys = value.shape[2]
    total = torch.nn.functional.pad(value.double().cumsum(2), (0, 0, 1, 0))
    stop = torch.arange(keys - queries + 1, keys + 1, dtype=torch.int64, device=buffers.CPU)
    count = (stop - buffers.numbers(first, torch.int64)[:, None]).clamp_(0, window)
    if len(set(first)) == 1 and window is None:
        sums = total[:, :, keys - queries + 1 :] - total[:, :, first[0] : first[0] + 1]
    else:
        start = (stop - count)[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[-1])
        sums = total[:, :, keys - queries + 1 :] - total.gather(2, start)
    return (sums / count.clamp_min(1)[:, None, :, None]).masked_fill_((count == 0)[:, None, :, None], 0.0).float()
