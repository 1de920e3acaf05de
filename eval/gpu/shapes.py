"""Shapes of the models that are timed, and the budgets and data they are timed with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows


class ModelShape(NamedTuple):
    """A decoder: attention heads and what surrounds them."""

    heads: int
    kv_heads: int
    dim: int
    layers: int
    hidden: int
    inner: int
    vocabulary: int


SHAPES = {
    "llama-2-7b": ModelShape(32, 32, 128, 32, 4096, 11008, 32000),
    "llama-3-8b": ModelShape(32, 8, 128, 32, 4096, 14336, 128256),
    "mistral-7b": ModelShape(32, 8, 128, 32, 4096, 14336, 32000),
    "gemma-7b": ModelShape(16, 16, 256, 28, 3072, 24576, 256000),
}
DTYPE = torch.bfloat16
BUDGET_SPREAD = 0.8
SHARED_QUERY_VARIANCE = 0.9


def budgets_of(heads: int, context: int, density: float, seed: int = 0) -> torch.Tensor:
    """int32 `[1, Hq]` on the CPU: log-normal over heads with BUDGET_SPREAD, as plans are, with a mean of `density`."""
    drawn = (
        BUDGET_SPREAD
        * torch.randn(heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    ).exp()
    return (drawn / drawn.mean() * density * context).round().clamp(1, context).to(torch.int32)[None]


def queries_of(shape: ModelShape, batch: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """`[B, Hq, D]`: SHARED_QUERY_VARIANCE of the variance is common to a KV group, so that its selections overlap."""
    generator = torch.Generator(device).manual_seed(seed)
    groups = shape.heads // shape.kv_heads
    common = torch.randn(batch, shape.kv_heads, 1, shape.dim, generator=generator, device=device, dtype=torch.float32)
    individual = torch.randn(
        batch, shape.kv_heads, groups, shape.dim, generator=generator, device=device, dtype=torch.float32
    )
    mixed: torch.Tensor = SHARED_QUERY_VARIANCE**0.5 * common + (1 - SHARED_QUERY_VARIANCE) ** 0.5 * individual
    return (2 * mixed).flatten(1, 2).to(DTYPE)


def layer_of(shape: ModelShape, batch: int, context: int, device: torch.device, spare: int = 16) -> LayerBuffers:
    """A layer's cache with `context` random tokens in each row and room for `spare` more."""
    rows = VisibleRows.of([0] * batch, [context] * batch, device)
    layer = LayerBuffers(rows, context + spare, shape.kv_heads, shape.dim, shape.dim, DTYPE)
    for row in range(batch):
        layer.key[row].normal_()
        layer.value[row].normal_()
    layer.fill(layer.key[:, :, :context], layer.value[:, :, :context])
    return layer


def layer_bytes(shape: ModelShape, batch: int, context: int) -> int:
    """Bytes that `layer_of` takes: keys and values, three eighths of the keys for their index, and means of pages."""
    return int(2.4375 * batch * shape.kv_heads * context * shape.dim * DTYPE.itemsize)
