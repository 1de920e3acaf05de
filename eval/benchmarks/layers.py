"""Layers to time: random queries, keys and values as a cache holds them, more than fit into the processor's cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from geosparse.ops import (
    AttentionCall,
    HeadRules,
    IndexSlot,
    Selector,
    Tail,
    Terms,
    huge_pages,
    remember_index,
    remember_value_sum,
)
from geosparse.ops.cpu import attend_cpu
from geosparse.ops.key_index import index_of

SPARE_TOKENS = 64
# Enough layers that their keys and values do not fit into any cache.
BYTES_IN_TURN = 256 << 20
SHAPES = {"smollm2": (9, 3, 64), "llama3": (32, 8, 128)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Layer(NamedTuple):
    """Query `[1, Hq, 1, D]`, keys and values `[1, Hkv, S, D]`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def layers_of(shape: tuple[int, int, int], context: int, dtype: torch.dtype) -> list[Layer]:
    """Random layers with an index, as a cache holds them; queries are long, so that attention is not flat."""
    heads, kv_heads, dim = shape
    generator = torch.Generator().manual_seed(0)
    each = 2 * kv_heads * context * dim * dtype.itemsize
    layers = []
    for _ in range(max(3, BYTES_IN_TURN // each)):
        query = (2 * torch.randn(1, heads, 1, dim, generator=generator, dtype=torch.float32, device="cpu")).to(dtype)
        # With room to spare, as in a cache that grows: no head starts at a power of two.
        key, value = (
            huge_pages.empty((1, kv_heads, context + SPARE_TOKENS, dim), dtype)[:, :, :context] for _ in range(2)
        )
        for states in (key, value):
            states.copy_(torch.randn(states.shape, generator=generator, dtype=torch.float32, device="cpu"))
        remember_index(key, IndexSlot())
        index_of(key, (0,))
        remember_value_sum(value, value.sum(-2, dtype=torch.float64))
        layers.append(Layer(query, key, value))
    return layers


def ours_with(
    budgets: tuple[int, ...], selector: Selector, tail: Tail, scaling: float
) -> Callable[[Layer], torch.Tensor]:
    """Our kernel with these budgets of the heads."""
    rules, terms = HeadRules(budgets, tail, selector), Terms(scaling)
    return lambda layer: attend_cpu(AttentionCall(*layer, None, None, terms), rules).output


def seconds(run: Callable[[], object]) -> float:
    """How long `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
