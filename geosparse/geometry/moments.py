"""Sums over one window from which the fits are made: additive, so that windows and processes merge exactly.

Shapes as in `sinks`; every sum is fp64, per query head. Nothing of size L x L: similarity by lag is an
autocorrelation, computed per KV head by FFT. What goes by the lag is summed over logarithmic bins of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch

from ..errors import GeosparseError
from .sinks import find_sinks, own_position

LOG_FLOOR = -13.8
"""Natural logarithm of the smallest weight over the uniform weight that the profile tells from zero (1e-6)."""
OCTAVE_BINS = 4
"""Bins per doubling of the lag: every scale weighs the same in the fits of A2 and A3."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over windows of one length, the leading dimensions `...` being `[Hq]` for one layer or `[layers, Hq]` for a
    model; B and C are the numbers of `lag_bins` from lag 0 and from lag 1.

    Attributes:
        windows: `[...]` windows summed; tokens: their tokens.
        sinks: `[...]` sink tokens; first_sinks: those at position 0.
        norm: `[..., 4]` of the tokens that are no sinks: count, sum of |v|, of |v|^2, of |(|v| - the window's mean)|.
        sink_norm: `[..., 4]` the same of the sinks.
        cosine: `[..., C]` sum of cos(v_i, v_{i+d}) over pairs without sinks by lag d; pairs: `[..., C]` their number.
        square: `[..., 2]` pairs i != j without sinks, and the sum of their squared cosines.
        sink_cosine: `[..., 2]` pairs of a sink and another token, and the sum of their cosines.
        attention: `[..., 3, B]` over queries and tokens without sinks by lag d: sum of the weight, of the logarithm l
            of the weight over the uniform weight (at least `LOG_FLOOR`), of l^2; readers: `[..., B]` their number.
        sink_mass: `[..., 3]` queries, sum of the mass on sinks, of its square.
        visible: `[...]` sum over queries of the tokens they see.
    """

    windows: torch.Tensor
    tokens: torch.Tensor
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
        shapes = [(list(part.windows.shape), part.length) for part in (self, other)]
        if shapes[0] != shapes[1]:
            said = " and ".join(f"heads {shape} at {length} tokens" for shape, length in shapes)
            raise GeosparseError(f"Only moments of the same heads and length add up, found {said}.")
        return Moments(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def of_windows(self, rows: Sequence[int], length: int) -> Moments:
        """The windows `rows`, all of `length` tokens, of moments `[W, ...]`."""
        parts = {}
        for item in fields(self):
            array: torch.Tensor = getattr(self, item.name)[list(rows)]
            bins = shape_of(item.name, length)
            parts[item.name] = array[..., : bins[-1]] if bins else array
        return Moments(**parts)

    def widened(self, length: int) -> Moments:
        """With the bins of a window of `length` tokens, at least as many as these have; the bins beyond are empty."""
        parts = {}
        for item in fields(self):
            array: torch.Tensor = getattr(self, item.name)
            bins = shape_of(item.name, length)
            parts[item.name] = torch.nn.functional.pad(array, (0, bins[-1] - array.shape[-1])) if bins else array
        return Moments(**parts)

    def summed(self) -> Moments:
        """The sum over the first dimension, windows of one length."""
        return Moments(*(getattr(self, item.name).sum(0) for item in fields(self)))

    @property
    def length(self) -> int:
        """Tokens of each window."""
        return round(float(self.tokens.flatten()[0] / self.windows.flatten()[0]))

    @staticmethod
    def stack(parts: Sequence[Moments]) -> Moments:
        """Moments of single layers -> of a model, `[layers, Hq, ...]`; or of single windows, `[W, layers, Hq, ...]`."""
        return Moments(*(torch.stack([getattr(part, item.name) for part in parts]) for item in fields(Moments)))

    @staticmethod
    def cat(parts: Sequence[Moments]) -> Moments:
        """Moments of some heads of one layer each -> of all of them, `[Hq, ...]`."""
        return Moments(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Moments)))


def shape_of(name: str, length: int) -> tuple[int, ...]:
    """What follows the leading dimensions of a field of `Moments`, for windows of `length` tokens."""
    fixed = {"norm": (4,), "sink_norm": (4,), "square": (2,), "sink_cosine": (2,), "sink_mass": (3,)}
    if name in ("cosine", "pairs"):
        return (len(lag_bins(length, 1)) - 1,)
    if name in ("attention", "readers"):
        bins = len(lag_bins(length, 0)) - 1
        return (3, bins) if name == "attention" else (bins,)
    return fixed.get(name, ())


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
    after = lag_bins(value.shape[-2], 1)
    cosine, pairs = (binned(sums, after) for sums in lag_similarity(value, ~sinks))
    direction = _directions(value)
    gram = direction.masked_fill(sinks.unsqueeze(-1), 0.0)
    count = (~sinks).sum(-1).double()
    spread = (gram.transpose(-1, -2) @ gram).square().sum((-1, -2)) - count
    rest_sum = gram.sum(-2)
    sink_sum = (direction - gram).sum(-2)
    by_kv = {
        "windows": torch.ones_like(count),
        "tokens": torch.full_like(count, value.shape[-2]),
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
    heads, _, length = alpha.shape
    visible = seen.sum(-1).double()
    by_lag = torch.zeros(heads, 4, length, dtype=torch.float64, device=alpha.device)
    mass = []
    for query, (last, count) in enumerate(zip(own_position(seen).tolist(), visible.tolist(), strict=True)):
        past = slice(last + 1)
        weight = alpha[:, query, past].double()
        mass.append((weight * sinks[:, past]).sum(-1))
        counted = (seen[query, past] & ~sinks[:, past]).double().flip(-1)
        weight = weight.flip(-1)
        relative = (weight * count).log_().clamp_min_(LOG_FLOOR).mul_(counted)
        for row, part in enumerate((weight * counted, relative, relative.square(), counted)):
            by_lag[:, row, past] += part
    by_bin = binned(by_lag, lag_bins(length, 0)).cpu()
    masses = torch.stack(mass, -1)
    sums = torch.stack([torch.ones_like(masses), masses, masses.square()], -1).sum(1)
    return {
        "attention": by_bin[:, :3],
        "readers": by_bin[:, 3],
        "sink_mass": sums.cpu(),
        "visible": visible.sum().expand(heads).cpu(),
    }


def lag_bins(length: int, first: int) -> torch.Tensor:
    """Edges of bins over the lags `first` to `length` - 1: single lags first, then `OCTAVE_BINS` per doubling."""
    exponents = torch.arange(0, OCTAVE_BINS * (math.log2(length + 1)), dtype=torch.float64, device="cpu") / OCTAVE_BINS
    edges = torch.cat([(2**exponents).round() - 1 + first, torch.tensor([length], dtype=torch.float64, device="cpu")])
    distinct: torch.Tensor = torch.unique(edges.clamp_max(length).long())
    return distinct


def binned(rows: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Sums of `rows` `[..., L]` between neighbouring `edges`."""
    sums = torch.nn.functional.pad(rows.cumsum(-1), (1, 0))
    result: torch.Tensor = sums[..., edges.to(rows.device)].diff(dim=-1)
    return result
