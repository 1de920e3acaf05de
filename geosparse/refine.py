"""A second pass with the plan active: what a head's error costs among the errors of all the other heads.

The profile prices every head alone: half the mean (g . e)^2, as if all others were dense. Under a plan all heads err at
once. Writing the loss as the divergence of the sparse from the dense prediction and expanding it to second order,

    KL(e) = 1/2 sum_hk e_h F_hk e_k,   dKL/dz_h = sum_k F_hk e_k,

so that a head with the error e_h(N) beside the others' present errors costs 1/2 e_h F_hh e_h + e_h (dKL/dz_h - F_hh
e_h'), where e_h' is its present error. The first term is the profile's, the second is measured here, at the profile's N
and with every tail, and moves the profile's curves by a bounded factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .architecture import AttentionLayer, Terms, attention_layers, dense_attention, input_device
from .attention import LayerRules, SparseAttention
from .capture import Call, Recorder, backward_passes, loss_and_slope, rows_of
from .geometry import kept_errors
from .ops import TAILS, Visibility
from .patch import rules_of, sparsified
from .plan import Plan
from .profile import Profile
from .profiler import sample_positions, window_generator
from .progress import track
from .receipt import Receipt
from .selectors import Scored, selections

SHARE = 0.5
"""How much of the second term is believed: all heads move at once, each as if the others stayed."""
MOST = 3.0
"""A curve is moved by at most this factor, up or down."""
FLOOR = 0.02
"""What a head costs alone is taken for at least this share of the mean over heads, for the factor."""
QUERIES = 128
LOGIT_ROWS = 256


@dataclass(frozen=True)
class Interactions:
    """What heads cost under a plan, nats per token: `[layers, Hq, tails, budgets]` fp64 each.

    Attributes:
        alone: Half the mean (g . e)^2.
        among: The mean of e . (dKL/dz - F e'), positive where the others' errors make a head's own worse.
        divergence: The mean divergence of the plan's predictions from the dense ones.
    """

    alone: torch.Tensor
    among: torch.Tensor
    divergence: float

    @property
    def factors(self) -> torch.Tensor:
        """By what to multiply the profile's curves, from 1 / MOST to MOST."""
        floor = FLOOR * self.alone.mean((0, 1), keepdim=True).clamp_min(1e-30)
        return (1 + SHARE * self.among / self.alone.clamp_min(floor)).clamp(1 / MOST, MOST)


class PlannedRecorder(Recorder):
    """Serves the plan's attention, whose gradient is that of dense attention, and keeps each call's error."""

    def __init__(
        self,
        positions: torch.Tensor,
        layers: dict[torch.nn.Module, SparseAttention],
    ) -> None:
        """Args: `[Q]` positions to keep calls, gradients and errors at; what serves each attention module."""
        super().__init__(positions, positions)
        self.layers = layers
        self.errors: dict[torch.nn.Module, torch.Tensor] = {}

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Visibility | None,
        terms: Terms,
    ) -> torch.Tensor:
        """Sparse attention, differentiated as if it were dense."""
        dense = dense_attention(query, key, value, attention_mask, terms)
        with torch.no_grad():
            sparse = self.layers[module].serve(query, key, value, attention_mask, terms)
            error = sparse - dense
        self.errors.setdefault(module, error[0, :, self.positions.to(error.device)].float())
        return dense + error


def interactions(
    model: Any, plan: Plan, windows: torch.Tensor, budgets: Sequence[int], show_progress: bool = False
) -> Interactions:
    """Measure every head's cost at `budgets`, with every tail, while all heads follow `plan`.

    Args:
        model: The model, not sparsified.
        plan: Exact top-N is measured, whatever its selectors.
        windows: `[W, L]` calibration windows.
        budgets: The N, ascending.
        show_progress: A progress bar on a terminal.
    """
    layers = attention_layers(model)
    heads = (len(layers), layers[0].heads, len(TAILS), len(budgets))
    alone, among = (torch.zeros(heads, dtype=torch.float64) for _ in range(2))
    divergence = 0.0
    receipt = Receipt(plan.budgets, [layer.name for layer in layers])
    serve = {
        layer.module: SparseAttention(index, _exact(rules_of(plan, index, layer.window)), receipt)
        for index, layer in enumerate(layers)
    }
    for place, window in enumerate(track(windows, "second pass", show_progress)):
        positions = sample_positions(len(window), QUERIES, window_generator(0, len(window), place))
        recorder = PlannedRecorder(positions, serve)
        found, (toward, slopes) = _divergence_and_gradients(model, layers, window, recorder)
        divergence += found / len(windows)
        for index, layer in enumerate(layers):
            parts = _costs(recorder, layer, toward[index], slopes[index], budgets)
            for total, part in zip((alone, among), parts, strict=True):
                total[index] += part / len(windows)
    return Interactions(alone, among, divergence)


def _exact(rules: LayerRules) -> LayerRules:
    return replace(rules, selectors=rules.exact)


def _divergence_and_gradients(
    model: Any, layers: Sequence[AttentionLayer], window: torch.Tensor, recorder: PlannedRecorder
) -> tuple[float, list[list[torch.Tensor]]]:
    """The mean divergence from the dense predictions, and the gradients of its sum and of the summed loss."""
    found: list[float] = []
    with torch.no_grad():
        dense = model(window[None].to(input_device(model)), use_cache=False).logits[0]

    def slopes_of(logits: torch.Tensor) -> list[torch.Tensor]:
        total, slope = divergence_and_slope(logits, dense)
        found.append(total / (len(window) - 1))
        return [slope, loss_and_slope(logits, window.to(logits.device))[1]]

    gradients = backward_passes(model, layers, window, recorder, slopes_of)
    return found[0], gradients


def divergence_and_slope(logits: torch.Tensor, dense: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The summed divergence KL(dense || sparse) of all tokens but the last, nats, and its gradient.

    Args:
        logits: `[L, V]`, sparse.
        dense: `[L, V]`.

    Returns:
        The sum, and dKL/dlogits `[L, V]`.
    """
    slope = torch.zeros_like(logits)
    total = 0.0
    for start in range(0, len(logits) - 1, LOGIT_ROWS):
        rows = slice(start, min(start + LOGIT_ROWS, len(logits) - 1))
        sparse, target = logits[rows].float().log_softmax(-1), dense[rows].float().log_softmax(-1)
        total += float((target.exp() * (target - sparse)).double().sum())
        slope[rows] = sparse.exp() - target.exp()
    return total, slope


def _costs(
    recorder: PlannedRecorder,
    layer: AttentionLayer,
    toward: torch.Tensor,
    slope: torch.Tensor,
    budgets: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer and window: (alone, among), `[Hq, tails, budgets]` each."""
    call, present = recorder.calls[layer.module], recorder.errors[layer.module]
    pieces = [
        _costs_of_group(call, place, toward[heads], slope[heads], present[heads], budgets)
        for place, heads in _groups(layer)
    ]
    alone, among = (torch.cat(parts).double().cpu() for parts in zip(*pieces, strict=True))
    return alone, among


def _groups(layer: AttentionLayer) -> Iterator[tuple[int, slice]]:
    """The KV heads of a layer, each with its query heads."""
    members = layer.heads // layer.kv_heads
    for place in range(layer.kv_heads):
        yield place, slice(place * members, (place + 1) * members)


def _costs_of_group(
    call: Call,
    place: int,
    toward: torch.Tensor,
    slope: torch.Tensor,
    present: torch.Tensor,
    budgets: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_costs` of the query heads of one KV head; `toward`, `slope` and `present` are `[members, Q, Dv]`."""
    rows = rows_of(call, slice(place, place + 1))
    scored = Scored(rows.query, rows.key, rows.scores, rows.seen, call.terms)
    errors = kept_errors(rows.alpha, rows.value, selections("topn", scored, budgets), rows.seen, rows.scores)
    error = torch.stack([errors.error[tail] for tail in TAILS], 1)  # [members, tails, Q, budgets, Dv]
    along = torch.einsum("htqbd,hqd->htqb", error, slope)
    now = (present * slope).sum(-1)[:, None, :, None]
    pull = torch.einsum("htqbd,hqd->htqb", error, toward)
    return 0.5 * along.square().mean(2), (pull - now * along).mean(2)


def refined(profile: Profile, found: Interactions) -> Profile:
    """The profile with its curves of (g . e)^2 as they are among the other heads' errors, by bounded factors."""
    factors = found.factors.permute(2, 0, 1, 3)[None, None]  # [1, 1, tails, layers, Hq, budgets]
    arrays = dict(profile.arrays) | {"fisher": (profile.arrays["fisher"].double() * factors).float()}
    return replace(profile, arrays=arrays)


def divergence(model: Any, plan: Plan, windows: torch.Tensor, show_progress: bool = False) -> list[float]:
    """The mean divergence KL(dense || sparse) per token of each window, nats."""
    found = []
    for window in track(windows, "divergence", show_progress):
        ids = window[None].to(input_device(model))
        with torch.no_grad():
            dense = model(ids, use_cache=False).logits[0]
            with sparsified(model, plan):
                sparse = model(ids, use_cache=False).logits[0]
        found.append(divergence_and_slope(sparse, dense)[0] / (len(window) - 1))
    return found
