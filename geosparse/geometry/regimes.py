"""Head regimes: Retriever, Mixer, Reset, or unclear, by an explicit rule on measured signatures.

arXiv 2602.01893 names the regimes; the rule here is ours. A head that gives most of its attention to sinks, whose
compressed values say next to nothing, writes little: a Reset head. Of the others, a Retriever shares its remaining
attention over few tokens, a Mixer over many. Two signatures decide, because they are the ones that repeat from text to
text; the others (output, similarity, separation) describe what the classes turn out to be.

Signatures are measured per window and summarised by the median over windows: a window of tables, titles or code then
moves no head. Windows merge by joining them, `[W, ...]`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..errors import GeosparseError
from .separation import random_order, selection_order, separation
from .sinks import find_sinks, lags, own_position

REGIMES = ("retriever", "mixer", "reset", "unclear")
SIGNATURES = (
    "sink_mass",
    "sink_similarity",
    "own_similarity",
    "output_ratio",
    "log_set",
    "log_free_set",
    "local_mass",
    "f_excess",
)
"""Means over queries, the order of the last dimension. `sink_mass`: attention on sinks. `sink_similarity`: mean cosine
of a sink's value with the others, NaN without sinks. `own_similarity`: cosine of the output with the value of the
query's own, final token. `output_ratio`: |output| over the mean |v| of tokens that are no sinks. `log_set`: entropy of
the attention, nats, so that exp of it is the effective set size in tokens; `log_free_set`: the same of the attention
that is not on sinks, renormalised. `local_mass`: attention on the last `LOCAL` tokens, the query included. `f_excess`:
F of the `N_EXCESS` highest-ranked tokens minus that of random sets."""

LOCAL = 16
N_EXCESS = 8
RANDOM_SETS = 2

RESET_MASS = 0.6
"""Sink mass from which a head is a Reset head."""
FOCUS = math.log(16.0)
"""`log_free_set` up to which a head that is no Reset head is a Retriever."""
MASS_SCALE, FOCUS_SCALE = 0.06, 0.2
"""How far the two signatures of one head differ between two texts (standard deviation, measured on two models)."""
CONFIDENT = 0.55
"""A head whose likeliest regime has less confidence than this is unclear."""


class Regimes(NamedTuple):
    """The regime of each head.

    Attributes:
        label: `[...]` int64, places in `REGIMES`.
        confidence: `[...]` the probability of the likeliest regime, also where it is too small and the label unclear.
        probability: `[..., 3]` of Retriever, Mixer and Reset.
    """

    label: torch.Tensor
    confidence: torch.Tensor
    probability: torch.Tensor


def signatures(
    alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """The signatures of one layer in one window, `[Hq, len(SIGNATURES)]` fp64 on the CPU.

    Args:
        alpha: `[Hq, Q, L]` attention weights of sampled queries.
        value: `[Hkv, L, D]`.
        seen: `[Q, L]` bool, causal.
        generator: For the random sets of `f_excess`; None leaves that signature NaN.
    """
    group = alpha.shape[0] // value.shape[0]
    sinks = find_sinks(alpha, value, seen)
    similarity = _sink_similarity(value, sinks).repeat_interleave(group, dim=0)
    sinks, value = sinks.repeat_interleave(group, dim=0), value.repeat_interleave(group, dim=0)
    norm = value.norm(dim=-1)
    level = (norm * ~sinks).sum(-1, keepdim=True) / (~sinks).sum(-1, keepdim=True).clamp_min(1)
    free = alpha * ~sinks.unsqueeze(1)
    distance = lags(seen)
    output = alpha @ value
    rows = {
        "sink_mass": alpha.sum(-1) - free.sum(-1),
        "own_similarity": torch.cosine_similarity(output, value[:, own_position(seen)], dim=-1),
        "output_ratio": output.norm(dim=-1) / level.clamp_min(torch.finfo(alpha.dtype).tiny),
        "log_set": _entropy(alpha),
        "log_free_set": _entropy(free),
        "local_mass": (alpha * ((distance >= 0) & (distance < LOCAL))).sum(-1),
    }
    if generator is None:
        rows["f_excess"] = torch.full_like(rows["log_set"], torch.nan)
    else:
        rows["f_excess"] = _f_excess(alpha, value, seen.expand(alpha.shape), generator)
    means = {name: row.double().nanmean(-1) for name, row in rows.items()}
    return torch.stack([(means | {"sink_similarity": similarity})[name] for name in SIGNATURES], -1).cpu()


def typical(windows: torch.Tensor) -> torch.Tensor:
    """Signatures of single windows `[W, ..., len(SIGNATURES)]` -> their median over windows, NaN left out."""
    return torch.nanquantile(windows.double(), 0.5, dim=0)


def classify(typical_signatures: torch.Tensor) -> Regimes:
    """The rule, on `typical` signatures `[..., len(SIGNATURES)]`.

    With Phi the normal distribution function, the probabilities are
        Reset      r = Phi((sink_mass - RESET_MASS) / MASS_SCALE)
        Retriever  (1 - r) Phi((FOCUS - log_free_set) / FOCUS_SCALE)
        Mixer      the rest:
    how likely the head falls on each side of the two thresholds on another text. The label is the likeliest regime,
    or "unclear" below `CONFIDENT`.

    Raises:
        GeosparseError: A deciding signature is not finite.
    """
    mass = typical_signatures[..., SIGNATURES.index("sink_mass")].double()
    free_set = typical_signatures[..., SIGNATURES.index("log_free_set")].double()
    broken = (~torch.isfinite(mass + free_set)).nonzero().tolist()
    if broken:
        *layer, head = broken[0] or [0]
        where = "".join(f"layer {number}, " for number in layer)
        raise GeosparseError(f"A regime needs finite signatures, found NaN at {where}head {head}: profile again.")
    reset = torch.special.ndtr((mass - RESET_MASS) / MASS_SCALE)
    focused = torch.special.ndtr((FOCUS - free_set) / FOCUS_SCALE)
    probability = torch.stack([(1 - reset) * focused, (1 - reset) * (1 - focused), reset], -1)
    confidence, label = probability.max(-1)
    return Regimes(label.masked_fill(confidence < CONFIDENT, REGIMES.index("unclear")), confidence, probability)


def shares_by_layer(label: torch.Tensor) -> torch.Tensor:
    """The share of each regime among the heads of each layer: labels `[layers, Hq]` -> `[layers, len(REGIMES)]`."""
    return torch.nn.functional.one_hot(label, len(REGIMES)).double().mean(-2)


def _entropy(weight: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of each row of `weight` `[..., L]`, renormalised; 0 where there is no weight."""
    share = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    entropy: torch.Tensor = torch.special.entr(share).sum(-1)
    return entropy


def _f_excess(alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`[Hq, Q]`; NaN where a query sees no more than `N_EXCESS` tokens."""
    orders = [selection_order(alpha, seen), *(random_order(seen, generator) for _ in range(RANDOM_SETS))]
    chosen, *controls = (separation(alpha, value, order, seen, [N_EXCESS]).f1[..., 0] for order in orders)
    return chosen - torch.stack(controls).mean(0)


def _sink_similarity(value: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Mean cosine of sinks with the other tokens, per KV head `[Hkv]`; NaN without sinks."""
    direction = torch.nn.functional.normalize(value.double(), dim=-1)
    sunk, kept = (torch.stack([sinks, ~sinks], -2).double() @ direction).unbind(-2)
    pairs = sinks.sum(-1) * (~sinks).sum(-1)
    mean: torch.Tensor = (kept * sunk).sum(-1) / torch.where(pairs > 0, pairs.double(), torch.nan)
    return mean
