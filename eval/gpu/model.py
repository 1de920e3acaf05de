"""A whole model's decode step in one CUDA graph: random weights of a real shape, dense attention against ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from geosparse.ops.spec import Selector
from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows
from geosparse.ops.triton.decode import decode, passes_of

from . import timing
from .baselines import baselines
from .shapes import DTYPE, SHAPES, ModelShape, budgets_of, layer_bytes

SELECTORS: tuple[Selector, ...] = ("paged", "lowbit")


class Decoder:
    """The products and norms of a decoder around attention over caches that are already full."""

    def __init__(self, shape: ModelShape, batch: int, context: int) -> None:
        """Allocate weights and full caches.

        Args:
            shape: Of the model.
            batch: Rows.
            context: Tokens in the cache of each row.
        """
        device = timing.gpu()
        self.shape, self.context = shape, context
        self.rows = VisibleRows.of([0] * batch, [context] * batch, device)
        self.caches = []
        for _ in range(shape.layers):
            cache = LayerBuffers(self.rows, context + 16, shape.kv_heads, shape.dim, shape.dim, DTYPE)
            cache.key.normal_()
            cache.value.normal_()
            cache.fill(cache.key[:, :, :context], cache.value[:, :, :context])
            self.caches.append(cache)
        width, hidden, inner = shape.heads * shape.dim, shape.hidden, shape.inner
        sizes = [((shape.heads + 2 * shape.kv_heads) * shape.dim, hidden), (hidden, width)]
        sizes += [(2 * inner, hidden), (hidden, inner)]
        self.weights = [
            [torch.randn(size, device=device, dtype=DTYPE) * size[1] ** -0.5 for size in sizes]
            for _ in range(shape.layers)
        ]
        self.head = torch.randn(shape.vocabulary, hidden, device=device, dtype=DTYPE)
        self.state = torch.randn(batch, hidden, device=device, dtype=DTYPE)

    def step(self, attend: Any) -> torch.Tensor:
        """Logits `[B, vocabulary]` of one token per row; the caches take it in, at the same place each time."""
        shape, linear = self.shape, torch.nn.functional.linear
        state = self.state
        self.rows.restart_()
        self.rows.advance_()
        for cache, (mix, out, grow, shrink) in zip(self.caches, self.weights, strict=True):
            mixed = linear(_norm(state), mix).view(len(state), -1, shape.dim)
            query, key, value = torch.split(mixed, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
            cache.append(key[:, :, None], value[:, :, None])
            state = state + linear(attend(query, cache).reshape(len(state), -1), out)
            gate, up = linear(_norm(state), grow).chunk(2, dim=-1)
            state = state + linear(torch.nn.functional.silu(gate) * up, shrink)
        return linear(_norm(state), self.head)


def _norm(state: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(state, state.shape[-1:])


def needed_bytes(shape: ModelShape, batch: int, context: int) -> int:
    """Bytes of weights and caches."""
    attention = 2 * (shape.heads + shape.kv_heads) * shape.dim * shape.hidden
    weights = shape.layers * (attention + 3 * shape.hidden * shape.inner) + shape.vocabulary * shape.hidden
    return weights * DTYPE.itemsize + shape.layers * layer_bytes(shape, batch, context)


def measure(name: str, context: int, batch: int, density: float) -> dict[str, Any]:
    """Milliseconds per token, dense and by selector; or why it does not fit."""
    shape, device = SHAPES[name], timing.gpu()
    case = {"shape": name, "context": context, "batch": batch, "density": density}
    needed, free = needed_bytes(shape, batch, context), timing.free_bytes()
    if 1.1 * needed + (2 << 30) > free:
        return case | {"skipped": f"it takes {needed / 2**30:.0f} GiB of {free / 2**30:.0f} free"}
    decoder = Decoder(shape, batch, context)
    budgets = budgets_of(shape.heads, context, density).to(device)
    flash = baselines(shape, context)["sdpa flash"]
    attends: dict[str, Any] = {
        "dense": lambda query, cache: flash(query, cache.key[:, :, : context + 1], cache.value[:, :, : context + 1])
    }
    for selector in SELECTORS:
        passes = passes_of(shape.heads, "centroid" if selector == "lowbit" else "renormalize", selector, device)
        attends[selector] = lambda query, cache, passes=passes: decode(
            query, cache.keys, budgets, passes, shape.dim**-0.5
        )[0]
    rows: dict[str, Any] = {}
    for variant, attend in attends.items():
        graph = timing.captured(partial(decoder.step, attend))
        times = timing.microseconds([graph.replay], graphed=False)
        rows[variant] = {"ms": {name: value / 1e3 for name, value in times.items()}}
        rows[variant]["over_dense"] = rows["dense"]["ms"]["p50"] / rows[variant]["ms"]["p50"]
        del graph
    return case | {"rows": rows}
