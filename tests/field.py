"""Values and attention rows that satisfy A1 to A3 by construction, by Cholesky: slow, and independent of the code."""

import torch


def correlation(length, floor, drop, decay):
    """`[L, L]`: floor + drop * exp(-lag / decay) off the diagonal, 1 on it."""
    lag = (torch.arange(length)[:, None] - torch.arange(length)).abs().double()
    matrix = floor + drop * torch.exp(-lag / decay)
    return matrix.fill_diagonal_(1.0)


def values(length, dim, generator, floor=0.1, drop=0.4, decay=3.0, sinks=(0,), compression=0.2, level=1.0):
    """`[L, D]` fp64: Gaussian directions with that correlation and mean squared norm level^2, short at the sinks."""
    root = torch.linalg.cholesky(correlation(length, floor, drop, decay))
    value = level * root @ torch.randn(length, dim, generator=generator, dtype=torch.float64) / dim**0.5
    for sink in sinks:
        direction = torch.randn(dim, generator=generator, dtype=torch.float64)
        value[sink] = compression * level * direction / dim**0.5
    return value


def rows(queries, length, generator, sinks=(0,), sink_mass=0.3, recency=2.0, reach=16, spread=1.0):
    """Attention `[Q, L]` fp64 and seen `[Q, L]`: a sink, a plateau, and a rise over the last `reach` tokens."""
    position = torch.linspace(length // 2, length - 1, queries).long()
    lag = position[:, None] - torch.arange(length)
    seen = lag >= 0
    profile = recency * (1 - torch.log2(1 + lag.clamp_min(0)) / torch.log2(torch.tensor(1.0 + reach))).clamp_min(0.0)
    logits = profile + spread * torch.randn(queries, length, generator=generator, dtype=torch.float64)
    seen_sinks = torch.zeros_like(seen)
    seen_sinks[:, list(sinks)] = True
    seen_sinks &= seen
    free = logits.masked_fill(~seen | seen_sinks, -torch.inf).softmax(-1)
    sunk = sink_mass if sinks else 0.0
    alpha = free * (1 - sunk) + seen_sinks * sunk / seen_sinks.sum(-1, keepdim=True).clamp_min(1)
    return alpha, seen
