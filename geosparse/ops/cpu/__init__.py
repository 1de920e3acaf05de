"""CPU path: C++ kernels for decode and for exact top-N prefill, called through ctypes on data pointers.

The shared library is built when the package is installed. It holds OpenMP code but is not linked to an OpenMP
library: its symbols come from the one that torch has loaded, so that both share one pool of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch

from ..chunked import chunk_rows, key_range, visible_mean
from ..types import TAILS, Attended, Tails

ABI = 3
ISAS = ("plain", "avx2", "avx512")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _DecodeCall(ctypes.Structure):
    """Mirrors DecodeCall in geosparse.cpp."""

    _fields_ = (
        [
            (name, ctypes.c_void_p)
            for name in ("q", "k", "v", "out", "n_keep", "tails", "mask", "value_sum", "sink", "kept")
        ]
        + [(name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "keys", "dim", "value_dim")]
        + [(name, ctypes.c_int64) for name in ("q_batch", "q_head", "k_batch", "k_head", "k_row")]
        + [(name, ctypes.c_int64) for name in ("v_batch", "v_head", "v_row", "mask_batch", "dtype", "threads")]
        + [(name, ctypes.c_double) for name in ("scaling", "softcap")]
    )


class _WeighCall(ctypes.Structure):
    """Mirrors WeighCall in geosparse.cpp."""

    _fields_ = (
        [
            (name, ctypes.c_void_p)
            for name in ("scores", "v", "out", "missing", "kept", "n_keep", "tails", "mask", "sink")
        ]
        + [(name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "value_dim")]
        + [(name, ctypes.c_int64) for name in ("v_batch", "v_head", "v_row", "out_batch", "out_head")]
        + [(name, ctypes.c_int64) for name in ("mask_batch", "mask_row", "threads")]
    )


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built or do not load here (see `load_error`)."""
    return _load()[0]


def load_error() -> str:
    """Why `library()` is None, in a few words; empty where it is not."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        return None, "not built: no C++ compiler when geosparse was installed"
    try:
        loaded = ctypes.CDLL(str(found[0]))
        loaded.gs_abi.restype = loaded.gs_isa.restype = loaded.gs_set_isa.restype = ctypes.c_int64
        loaded.gs_set_isa.argtypes = [ctypes.c_int64]
        loaded.gs_decode.restype = ctypes.c_int64
        loaded.gs_decode.argtypes = loaded.gs_weigh.argtypes = [ctypes.c_void_p]
        loaded.gs_weigh.restype = None
    except (OSError, AttributeError) as error:
        return None, f"does not load: {error}"
    if loaded.gs_abi() != ABI:
        return None, "built from another version of geosparse: install it again"
    return loaded, ""


def isa() -> str:
    """The instruction set in use: "plain", "avx2" or "avx512"."""
    loaded = library()
    return "none" if loaded is None else ISAS[loaded.gs_isa()]


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `cpu_attention` takes these tensors; autograd and an additive bias stay with the torch path."""
    tensors = (query, key, value)
    return (
        bias is None
        and all(tensor.device.type == "cpu" and tensor.dtype in DTYPES for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and library() is not None
    )


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_keep: Sequence[int],
    *,
    tail: Tails,
    scaling: float,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> Attended:
    """`reference_attention` (same arguments, same meaning) for CPU tensors; `bias` must be None.

    One query per row runs in one fused kernel that reads every key once and only the kept values; several queries
    get their scores and outputs from matrix products and everything between from a kernel.
    """
    budgets = _budgets(tuple(n_keep))
    tails = _tails((tail,) * len(n_keep) if isinstance(tail, str) else tuple(tail))
    sinks = None if sink is None else sink.detach().float().contiguous()
    if query.shape[2] == 1:
        return _decode(query, key, value, budgets, tails, scaling, mask, softcap, sinks)
    return _prefill(query, key, value, budgets, tails, scaling, mask, softcap, sinks)


@lru_cache(maxsize=4096)
def _budgets(n_keep: tuple[int, ...]) -> torch.Tensor:
    """`n_keep` as a tensor; the same few tuples come back at every token."""
    return torch.tensor(n_keep, dtype=torch.int64)


@lru_cache(maxsize=4096)
def _tails(words: tuple[str, ...]) -> torch.Tensor:
    """The place of each head's tail in TAILS, which is the kernels' enum."""
    return torch.tensor([TAILS.index(word) for word in words], dtype=torch.int64)


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    budgets: torch.Tensor,
    tails: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> Attended:
    batch, heads, _, dim = query.shape
    query, key, value = (_unit_rows(tensor) for tensor in (query, key.to(query.dtype), value.to(query.dtype)))
    output = query.new_empty(batch, heads, 1, value.shape[-1])
    kept = torch.empty(batch, heads, dtype=torch.int64)
    seen = None if mask is None else mask[:, 0, 0].expand(batch, -1).contiguous()
    sums = value_sum_of(value) if seen is None else None
    call = _DecodeCall(
        q=query.data_ptr(),
        k=key.data_ptr(),
        v=value.data_ptr(),
        out=output.data_ptr(),
        n_keep=budgets.data_ptr(),
        tails=tails.data_ptr(),
        mask=_pointer(seen),
        value_sum=_pointer(sums),
        sink=_pointer(sink),
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
        dtype=DTYPES[query.dtype],
        threads=torch.get_num_threads(),
        scaling=scaling,
        softcap=softcap or 0.0,
    )
    loaded = library()
    assert loaded is not None
    if loaded.gs_decode(ctypes.byref(call)):
        raise TypeError(f"the CPU kernels of this machine do not know {query.dtype}")
    return Attended(output, kept.sum(0))


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    budgets: torch.Tensor,
    tails: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> Attended:
    batch, heads, queries, dim = query.shape
    keys, kv_heads = key.shape[2], key.shape[1]
    key, value = key.float(), _unit_rows(value.float())
    output = value.new_empty(batch, heads, queries, value.shape[-1])
    kept = torch.zeros(heads, dtype=torch.int64)
    centred = bool((tails == TAILS.index("centroid")).any())
    means = _prefix_means(value) if centred and mask is None else None
    rows = chunk_rows(batch, heads, keys)
    buffer = value.new_empty(batch * heads * min(rows, queries) * keys)
    # Adding up one kept row of values costs about four times what a matrix product spends on any row.
    gather = 4 * int(budgets.clamp_max(keys).sum()) < heads * keys
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        first, end = (0, keys - queries + stop) if mask is None else key_range(mask[:, :, start:stop])
        grouped = (query[:, :, start:stop].float() * scaling).reshape(batch, kv_heads, -1, dim)
        scores = buffer[: batch * heads * (stop - start) * (end - first)].view(batch, kv_heads, -1, end - first)
        torch.matmul(grouped, key[:, :, first:end].transpose(-1, -2), out=scores)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        seen = None if mask is None else mask[:, 0, start:stop, first:end].expand(batch, -1, -1)
        result = output[:, :, start:stop]
        shaped = scores.view(batch, heads, stop - start, end - first)
        seen_value = value[:, :, first:end]
        missing, count = _weigh(shaped, seen_value if gather else None, result, budgets, tails, seen, sink)
        if not gather:
            result.copy_((scores @ seen_value).view(batch, heads, stop - start, -1))
        if centred:
            if means is not None:
                centroid = means[:, :, end - (stop - start) : end]
            else:
                assert seen is not None
                centroid = visible_mean(seen_value, seen[:, None])
            result.addcmul_(missing.unsqueeze(-1), centroid.repeat_interleave(heads // kv_heads, dim=1))
        kept += count.sum((0, 2))
    return Attended(output.to(query.dtype), kept)


def _weigh(
    scores: torch.Tensor,
    value: torch.Tensor | None,
    output: torch.Tensor,
    budgets: torch.Tensor,
    tails: torch.Tensor,
    seen: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `[B, Hq, T, S]` -> `output` `[B, Hq, T, Dv]`, or without `value` attention weights in place of the scores.

    Returns:
        The mass that is left to the centroid and the tokens kept, `[B, Hq, T]`.
    """
    batch, heads, queries, keys = scores.shape
    missing = torch.empty(batch, heads, queries)
    kept = torch.empty(batch, heads, queries, dtype=torch.int64)
    if seen is not None and seen.stride(-1) != 1:
        seen = seen.contiguous()
    rows = output if value is None else value
    call = _WeighCall(
        scores=scores.data_ptr(),
        v=_pointer(value),
        out=output.data_ptr(),
        missing=missing.data_ptr(),
        kept=kept.data_ptr(),
        n_keep=budgets.data_ptr(),
        tails=tails.data_ptr(),
        mask=_pointer(seen),
        sink=_pointer(sink),
        batch=batch,
        heads=heads,
        kv_heads=rows.shape[1],
        queries=queries,
        keys=keys,
        value_dim=rows.shape[-1],
        v_batch=rows.stride(0),
        v_head=rows.stride(1),
        v_row=rows.stride(2),
        out_batch=output.stride(0),
        out_head=output.stride(1),
        mask_batch=0 if seen is None else seen.stride(0),
        mask_row=0 if seen is None else seen.stride(1),
        threads=torch.get_num_threads(),
    )
    loaded = library()
    assert loaded is not None
    loaded.gs_weigh(ctypes.byref(call))
    return missing, kept


def _prefix_means(value: torch.Tensor) -> torch.Tensor:
    """Mean of `value` `[B, Hkv, S, Dv]` up to and with each token; summed in fp64, as the prefixes are long."""
    counts = torch.arange(1, value.shape[2] + 1, dtype=torch.float64)[:, None]
    return (value.double().cumsum(2) / counts).float()


def _unit_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with its last dimension contiguous in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def remember_value_sum(value: torch.Tensor, total: torch.Tensor) -> None:
    """Say, on the tensor itself, that `value` `[B, Hkv, S, Dv]` sums to `total` `[B, Hkv, Dv]` fp64 over its tokens."""
    value._geosparse_value_sum = total  # type: ignore[attr-defined]


def value_sum_of(value: torch.Tensor) -> torch.Tensor | None:
    """What `remember_value_sum` said of this very tensor, else None."""
    return getattr(value, "_geosparse_value_sum", None)
