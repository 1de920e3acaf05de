"""Prefill of one layer: in blocks, and exact, against the dense kernel that is here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from geosparse.ops import AttentionCall, HeadRules, Terms
from geosparse.ops.triton import attend_triton
from geosparse.sparsify.block_prefill import attend_blocks

from . import timing
from .baselines import dense_prefill
from .shapes import DTYPE, SHAPES, budgets_of

# Exact prefill scores all keys several times; longer prompts would take the whole budget of a session.
MAX_EXACT_CONTEXT = 16384


def measure(name: str, context: int, density: float) -> dict[str, Any]:
    """Times and extra memory of one prompt of `context` tokens."""
    shape, device = SHAPES[name], timing.gpu()
    generator = torch.Generator(device).manual_seed(0)
    query = torch.randn(1, shape.heads, context, shape.dim, generator=generator, device=device, dtype=DTYPE)
    key, value = (
        torch.randn(1, shape.kv_heads, context, shape.dim, generator=generator, device=device, dtype=DTYPE)
        for _ in range(2)
    )
    n_keep = budgets_of(shape.heads, context, density)[0].tolist()
    call = AttentionCall(query, key, value, None, None, Terms(shape.dim**-0.5))
    rules = HeadRules(n_keep, "renormalize")
    runs: dict[str, Callable[[], Any]] = {
        "dense": partial(dense_prefill, query, key, value),
        "block": partial(attend_blocks, call, rules),
    }
    if context <= MAX_EXACT_CONTEXT:
        runs["exact"] = partial(attend_triton, call, rules)
    rows: dict[str, Any] = {}
    for mode, run in runs.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attended = run()
        extra = torch.cuda.max_memory_allocated() - before - query.numel() * query.element_size()
        rows[mode] = {"extra_bytes": max(0, extra)}
        if mode == "block":
            seen = shape.heads * context * (context + 1) / 2
            rows[mode]["read"] = float(attended.kept.sum()) / seen
        del attended
        rows[mode]["us"] = timing.microseconds([run], graphed=False)
        rows[mode]["over_dense"] = rows["dense"]["us"]["p50"] / rows[mode]["us"]["p50"]
    return {"shape": name, "context": context, "density": density, "rows": rows}
