"""Sums over one window from which the fits are made: additive, so that windows and processes merge exactly.

Shapes as in `sinks`; every sum is fp64, per query head. Nothing of size L x L: similarity by lag is an
autocorrelation, computed per KV head by FFT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch

from .errors import GeosparseError
from .sinks import find_sinks, lags

LOG_FLOOR = -13.8
"""Natural logarithm of the smallest weight over the uniform weight that the profile tells from zero (1e-6)."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over windows, the leading dimensions `...` being `[Hq]` for one layer or `[layers, Hq]` for a model.

    Attributes:
        windows: `[...]` windows summed.
        sinks: `[...]` sink tokens; first_sinks: those at position 0.
        norm: `[..., 4]` of the tokens that are no sinks: count, sum of |v|, of |v|^2, of |(|v| - the window's mean)|.
        sink_norm: `[..., 4]` the same of the sinks.
        cosine: `[..., L]` sum of cos(v_i, v_{i+d}) over pairs without sinks at lag d; pairs: `[..., L]` their number.
        square: `[..., 2]` pairs i != j without sinks, and the sum of their squared cosines.
        sink_cosine: `[..., 2]` pairs of a sink and another token, and the sum of their cosines.
        attention: `[..., 3, L]` over queries and tokens without sinks at lag d: sum of the weight, of the logarithm l
            of the weight over the uniform weight (at least `LOG_FLOOR`), of l^2; readers: `[..., L]` their number.
        sink_mass: `[..., 3]` queries, sum of the mass on sinks, of its square.
        visible: `[...]` sum over queries of the tokens they see.
    """

    windows: torch.Tensor
    sinks: torch.Tensor
    first_sinks: torch.Tensor
    norm: torch.Tensor
    sink_norm: torch.Tensor
    cosine: torch.Tensor
    pairs: torch.Tensor
    square: torch.Tensor
    sink_cosine: torch.Tensor
    attention: torch.Tensor
    readers: torch.Tensor
    sink_mass: torch.Tensor
    visible: torch.Tensor

    def __add__(self, other: Moments) -> Moments:
        """The sums over the windows of both.

        Raises:
            GeosparseError: They are of other heads or another length.
        """
        if self.cosine.shape != other.cosine.shape:
            found = f"{list(self.cosine.shape)} and {list(other.cosine.shape)}"
            raise GeosparseError(f"Only moments of the same heads and length add up, found {found}.")
        return Moments(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @staticmethod
    def stack(layers: Sequence[Moments]) -> Moments:
        """Moments of single layers -> of a model, `[layers, Hq, ...]`."""
        return Moments(*(torch.stack([getattr(layer, item.name) for layer in layers]) for item in fields(Moments)))


def total(parts: Iterable[Moments]) -> Moments:
    """The sum of `parts`, at least one."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def window_moments(alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> Moments:
    """The moments of one layer in one window.

    Args:
        alpha: `[Hq, Q, L]` attention weights of the sampled queries.
        value: `[Hkv, L, D]`.
        seen: `[Q, L]` bool, causal.
    """
    group = alpha.shape[0] // value.shape[0]
    sinks = find_sinks(alpha, value, seen)
    norm = value.norm(dim=-1).double()
    cosine, pairs = lag_similarity(value, ~sinks)
    direction = _directions(value)
    gram = direction.masked_fill(sinks.unsqueeze(-1), 0.0)
    count = (~sinks).sum(-1).double()
    spread = (gram.transpose(-1, -2) @ gram).square().sum((-1, -2)) - count
    rest_sum = gram.sum(-2)
    sink_sum = (direction - gram).sum(-2)
    by_kv = {
        "windows": torch.ones_like(count),
        "sinks": sinks.sum(-1).double(),
        "first_sinks": sinks[:, 0].double(),
        "norm": _summed(norm, ~sinks),
        "sink_norm": _summed(norm, sinks),
        "cosine": cosine,
        "pairs": pairs,
        "square": torch.stack([count * (count - 1), spread], -1),
        "sink_cosine": torch.stack([sinks.sum(-1) * count, (rest_sum * sink_sum).sum(-1)], -1),
    }
    by_head = {name: part.repeat_interleave(group, dim=0).cpu() for name, part in by_kv.items()}
    return Moments(**by_head, **_attention_sums(alpha, seen, sinks.repeat_interleave(group, dim=0)))


def lag_similarity(value: torch.Tensor, counted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of cos(v_i, v_{i+d}) over the pairs of counted tokens at each lag d, and the number of pairs.

    Args:
        value: `[H, L, D]`.
        counted: `[H, L]` bool.

    Returns:
        Two `[H, L]` fp64; by FFT, one head at a time: O(L log L) time and O(L D) memory.
    """
    length = value.shape[-2]
    sums, pairs = [], []
    for head, mask in zip(value, counted.double(), strict=True):
        direction = _directions(head) * mask.unsqueeze(-1)
        spectrum = torch.fft.rfft(torch.cat([direction, mask.unsqueeze(-1)], -1), 2 * length, dim=0).abs().square()
        joint = torch.stack([spectrum[:, :-1].sum(-1), spectrum[:, -1]])
        correlation = torch.fft.irfft(joint, 2 * length)[:, :length]
        sums.append(correlation[0])
        pairs.append(correlation[1].round())
    return torch.stack(sums), torch.stack(pairs)


def _directions(value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(value.double(), dim=-1, eps=1e-30)


def _summed(norm: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Count, sum, sum of squares and of absolute deviations from the mean of `norm` `[H, L]` where counted."""
    count = counted.sum(-1).double()
    first = (norm * counted).sum(-1)
    away = (norm - (first / count.clamp_min(1)).unsqueeze(-1)).abs() * counted
    return torch.stack([count, first, (norm.square() * counted).sum(-1), away.sum(-1)], -1)


def _attention_sums(alpha: torch.Tensor, seen: torch.Tensor, sinks: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sums over queries; `sinks` `[Hq, L]`."""
    heads, queries, length = alpha.shape
    weight = alpha.double()
    visible = seen.sum(-1).double()
    relative = (weight * visible[:, None]).log().clamp_min(LOG_FLOOR)
    counted = seen & ~sinks.unsqueeze(1)
    rows = torch.stack([weight, relative, relative.square(), torch.ones_like(weight)], 1) * counted.unsqueeze(1)
    place = lags(seen).clamp_min(0).expand(heads, 4, queries, length)
    by_lag = rows.new_zeros(heads, 4, length).scatter_add_(-1, place.flatten(-2), rows.flatten(-2))
    mass = (weight * sinks.unsqueeze(1)).sum(-1)
    sums = torch.stack([torch.full_like(mass, 1.0), mass, mass.square()], -1).sum(1)
    return {
        "attention": by_lag[:, :3].cpu(),
        "readers": by_lag[:, 3].cpu(),
        "sink_mass": sums.cpu(),
        "visible": visible.sum().expand(heads).cpu(),
    }
