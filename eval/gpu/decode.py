"""One layer's decode step: our kernels, selection included, against the dense kernels that are here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from geosparse.ops.selectors import SELECTORS
from geosparse.ops.spec import Selector
from geosparse.ops.triton import stages
from geosparse.ops.triton.buffers import LayerBuffers
from geosparse.ops.triton.decode import decode, dense, passes_of
from geosparse.plan.cost_model import TokenBytes

from . import timing
from .baselines import baselines
from .shapes import DTYPE, SHAPES, ModelShape, budgets_of, layer_bytes, layer_of, queries_of

# Enough layers in turn that the GPU's cache does not hold their data.
BYTES_IN_TURN = 1 << 30
MAX_LAYERS = 16


def measure(
    name: str, context: int, batch: int, density: float, peak: float, selectors: Sequence[Selector] = SELECTORS.built_in
) -> dict[str, Any]:
    """Times of one shape; `peak` in bytes per second turns bytes into a floor of the time."""
    shape, device = SHAPES[name], timing.gpu()
    case = {"shape": name, "context": context, "batch": batch, "density": density}
    each = layer_bytes(shape, batch, context)
    free = timing.free_bytes()
    if 1.3 * each + (1 << 30) > free:
        return case | {"skipped": f"a layer takes {each / 2**30:.1f} GiB of {free / 2**30:.1f} free"}
    count = max(1, min(MAX_LAYERS, math.ceil(BYTES_IN_TURN / each), int(0.7 * free / each)))
    layers = [layer_of(shape, batch, context, device) for _ in range(count)]
    query = queries_of(shape, batch, device)
    budgets = budgets_of(shape.heads, context, density).to(device)
    dense_bytes = 2 * batch * shape.kv_heads * context * shape.dim * DTYPE.itemsize
    rows: dict[str, Any] = {}

    def add(variant: str, calls: Sequence[Callable[[], Any]], read: float) -> None:
        times = timing.microseconds(calls)
        rows[variant] = {
            "us": times,
            "bytes": read,
            "gb_per_second": read / times["p50"] / 1e3,
            "share_of_floor": read / peak * 1e6 / times["p50"],
        }

    failed = {}
    for variant, run in baselines(shape, context).items():
        try:
            add(
                variant,
                [partial(run, query, layer.key[:, :, :context], layer.value[:, :, :context]) for layer in layers],
                dense_bytes,
            )
        except (RuntimeError, ValueError, NotImplementedError) as error:
            failed[variant] = str(error).split("\n")[0][:200]
    add("own dense", [partial(dense, query, layer.keys, shape.dim**-0.5) for layer in layers], dense_bytes)
    fastest = min(row["us"]["p50"] for row in rows.values())
    for selector in selectors:
        passes = passes_of(shape.heads, "renormalize", selector, device)
        calls = [partial(decode, query, layer.keys, budgets, passes, shape.dim**-0.5) for layer in layers]
        union = _union(query, layers[0], budgets, shape, selector)
        add(selector, calls, _bytes(shape, batch, context, selector, union))
        rows[selector] |= {"union": union, "over_fastest_dense": fastest / rows[selector]["us"]["p50"]}
    return case | {"rows": rows, "failed": failed, "paged_stages": stage_times(query, layers, budgets, shape)}


def _union(
    query: torch.Tensor, layer: LayerBuffers, budgets: torch.Tensor, shape: ModelShape, selector: Selector
) -> dict[str, float]:
    """Tokens that a KV head's group keeps, as one set, and the share of the sum of its heads' budgets that this is."""
    scores = stages.score_tokens(query, layer.key, *layer.rows.ends, shape.dim**-0.5, None)
    chosen = stages.select(scores, budgets, *layer.rows.ends, shape.kv_heads)
    served = torch.ones(shape.heads, dtype=torch.int32, device=query.device)
    kept = chosen if SELECTORS[selector].scans else None
    count = stages.list_tokens(
        scores, kept, *layer.rows.ends, budgets, served, shape.kv_heads, layer.key.shape[2], False
    )[2]
    tokens = float(count.sum(-1).float().mean())
    return {"tokens": tokens, "over_mean_budget": tokens / float(budgets.float().mean())}


def _bytes(shape: ModelShape, batch: int, context: int, selector: Selector, union: dict[str, float]) -> float:
    """Bytes that a step has to read: the index, or keys, of every token; keys and values of the union."""
    row = shape.dim * DTYPE.itemsize
    every = TokenBytes(shape.dim, shape.dim, DTYPE.itemsize).scanned(selector)
    kept = union["tokens"] * row * (1 if SELECTORS[selector].reads_every_key else 2)
    return batch * shape.kv_heads * (context * every + kept)


def stage_times(
    query: torch.Tensor, layers: Sequence[LayerBuffers], budgets: torch.Tensor, shape: ModelShape
) -> dict[str, float]:
    """Median microseconds of each stage of the page selector by itself."""
    scale, device = shape.dim**-0.5, query.device
    served, kv_heads = torch.ones(shape.heads, dtype=torch.int32, device=device), shape.kv_heads
    tails = passes_of(shape.heads, "renormalize", "paged", device)[0].tails
    calls: dict[str, list[Callable[[], Any]]] = {}
    for layer in layers:
        rows = layer.rows.ends
        bound = partial(stages.score_pages, query, layer.low, layer.high, *rows, layer.key.shape[2], scale, None, False)
        bounds = bound()
        pick = partial(stages.select, bounds[0], budgets, *rows, kv_heads, 1)
        union = partial(stages.list_pages, bounds, pick(), *rows, served, kv_heads)
        pages, words, count, _ = union()
        exact = partial(
            stages.score_tokens, query, layer.key, *rows, scale, None, pages=pages, words=words, count=count
        )
        scores = exact()
        among = partial(stages.select, scores, budgets, *rows, kv_heads, 0, count)
        attend = partial(
            stages.attend, query, layer.key, layer.value, *rows, tails, scale, None,
            entries=pages, words=words, count=count, scores=scores, chosen=among(), known=True,
        )  # fmt: skip
        stage_calls: dict[str, Callable[[], Any]]
        stage_calls = {"score pages": bound, "select pages": pick, "list pages": union, "score tokens": exact}
        stage_calls |= {"select tokens": among, "attend": attend}
        for stage, call in stage_calls.items():
            calls.setdefault(stage, []).append(call)
    return {stage: timing.microseconds(each)["p50"] for stage, each in calls.items()}
