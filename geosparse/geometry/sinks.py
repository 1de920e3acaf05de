"""Attention sinks, found by what they do: far queries give them mass, and their values are compressed.

Shapes: Hq query heads, Hkv KV heads, Q sampled queries, L tokens, D value dimension. `alpha` `[Hq, Q, L]` attention
weights, `value` `[Hkv, L, D]`, `seen` `[Q, L]` bool, causal.
"""

from __future__ import annotations

import torch

NEAR_TOKENS = 32
"""Tokens before a query that may receive mass for being recent; a sink has it from queries further away."""
READERS = 8
"""Far queries that must see a token before it can be called a sink (fewer where fewer were sampled)."""
MASS = 0.02
"""Mean weight from far queries, in at least one query head of the KV head, from which a token can be a sink."""
COMPRESSION = 0.5
"""Norm of a sink's value over the median norm, at most."""


def lags(seen: torch.Tensor) -> torch.Tensor:
    """Tokens between each token and the query, `[Q, L]`: 0 is the query itself, its last visible token."""
    return own_position(seen)[:, None] - torch.arange(seen.shape[-1], device=seen.device, dtype=torch.int64)


def own_position(seen: torch.Tensor) -> torch.Tensor:
    """The position of each query, `[Q]`: its last visible token."""
    return seen.shape[-1] - 1 - seen.flip(-1).long().argmax(-1)


def received_mass(alpha: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Mean weight that each token gets from the queries `NEAR_TOKENS` or more tokens behind it, `[Hq, L]`.

    Zero where fewer than `READERS` such queries see the token, or fewer than a quarter of all.
    """
    far = seen & (lags(seen) >= NEAR_TOKENS)
    readers = far.sum(0)
    mean = (alpha * far).sum(1) / readers.clamp_min(1)
    return mean.masked_fill(readers < min(READERS, max(1, seen.shape[0] // 4)), 0.0)


def find_sinks(alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Which tokens are sinks of each KV head, `[Hkv, L]` bool: none, one or several, at any position.

    A sink receives a mean weight of `MASS` from far queries in one of the query heads that share its KV head, and its
    value has at most `COMPRESSION` of the median norm. One set per KV head, because norms belong to it; a query head
    that ignores the sink then has little sink mass, rather than no sink.
    """
    kv_heads = value.shape[0]
    mass = received_mass(alpha, seen).view(kv_heads, -1, seen.shape[-1]).amax(1)
    norm = value.norm(dim=-1)
    sinks: torch.Tensor = (mass >= MASS) & (norm <= COMPRESSION * norm.median(-1, keepdim=True).values)
    return sinks
