"""The second pass of a profile: the `Interplay` of heads while the model follows a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..artifacts.interplay import Interplay
from ..artifacts.plan import Plan
from ..geometry.tail_error import kept_errors
from ..hf.dense import attend_dense
from ..hf.layers import AttentionLayer, input_device
from ..hf.logits import last_states, targets_of
from ..ops import TAILS, AttentionCall, HeadRules, needs_index
from ..ops.selectors import EXACT
from ..ops.spec import per_head
from ..sparsify.attention import SparseAttention
from ..sparsify.patch import rules_of
from ..sparsify.receipt import Receipt
from ..utils.parallel import mapped
from .capture import Call, Recorder, backward_passes, loss_and_slope, rows_of
from .selector_errors import Scored, selections


class PlannedRecorder(Recorder):
    """Serves the plan's attention, whose gradient is that of dense attention, and keeps each call's error."""

    def __init__(self, positions: torch.Tensor, served: Mapping[torch.nn.Module, SparseAttention]) -> None:
        """Record while a plan is served.

        Args:
            positions: `[Q]` query positions to keep calls, gradients and errors at.
            served: What serves each attention module.
        """
        super().__init__(positions, positions)
        self.served = served
        self.errors: dict[torch.nn.Module, torch.Tensor] = {}

    def attend(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """Sparse attention, differentiated as if it were dense."""
        dense = attend_dense(call)
        with torch.no_grad():
            error = self.served[module].serve(call) - dense
        self.errors[module] = error[0, :, self.positions.to(error.device)].float()
        return dense + error


def interplay_of_window(
    model: Any,
    layers: Sequence[AttentionLayer],
    plan: Plan,
    window: torch.Tensor,
    positions: torch.Tensor,
    budgets: Sequence[int],
) -> Interplay:
    """Every head's price at `budgets`, with every tail, while all heads follow `plan`; exact top-N throughout.

    Args:
        model: The model, not sparsified.
        layers: Its attention layers.
        plan: Of this model.
        window: `[L]` token ids.
        positions: `[Q]` sampled query positions, ascending.
        budgets: The N, ascending.

    Raises:
        GeosparseError: Loss or gradients are not finite.
    """
    receipt = Receipt(plan.budgets, [layer.name for layer in layers])
    served = {
        layer.module: SparseAttention(index, _exact(rules_of(plan, index, layer.window)), receipt)
        for index, layer in enumerate(layers)
    }
    recorder = PlannedRecorder(positions, served)
    with torch.no_grad():
        dense = last_states(model, window.to(input_device(model)))

    def slopes_of(logits: torch.Tensor, rows: slice) -> list[torch.Tensor]:
        with torch.no_grad():
            target = dense.logits(rows)
        return [divergence_and_slope(logits, target)[1], loss_and_slope(logits, targets_of(window, rows))[1]]

    toward, slopes = backward_passes(model, layers, window, recorder, slopes_of, 2)
    heads = (
        head for index, layer in enumerate(layers) for head in _heads(recorder, layer, toward[index], slopes[index])
    )
    on_cpu = all(call.key.device.type == "cpu" for call in recorder.calls.values())
    parts = list(mapped(lambda head: _prices(head, budgets), heads, parallel=on_cpu))
    shape = (len(TAILS), len(layers), -1, len(budgets))
    alone, among = (torch.cat(part, 1).view(shape) for part in zip(*parts, strict=True))
    return Interplay(alone, among)


def mean_interplay(parts: Sequence[Interplay]) -> Interplay:
    """The mean over windows."""
    alone, among = (torch.stack([getattr(part, name) for part in parts]).mean(0) for name in ("alone", "among"))
    return Interplay(alone, among)


def divergence_and_slope(logits: torch.Tensor, dense: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The summed divergence KL(dense || sparse) and its gradient.

    Args:
        logits: `[R, V]`, sparse.
        dense: `[R, V]`.

    Returns:
        The sum, nats, and dKL/dlogits `[R, V]` in the dtype of `logits`.
    """
    sparse, target = logits.float().log_softmax(-1), dense.float().log_softmax(-1)
    total = float((target.exp() * (target - sparse)).double().sum())
    return total, (sparse.exp_() - target.exp_()).to(logits.dtype)


def _exact(rules: HeadRules) -> HeadRules:
    names = per_head(rules.selector, len(rules.n_keep))
    return rules._replace(selector=[EXACT if needs_index(name) else name for name in names])


class _Group(NamedTuple):
    """The query heads of one KV head: gradients of divergence and loss, and present errors, `[members, Q, Dv]`."""

    call: Call
    kv_head: int
    toward: torch.Tensor
    slope: torch.Tensor
    present: torch.Tensor


def _heads(
    recorder: PlannedRecorder, layer: AttentionLayer, toward: torch.Tensor, slope: torch.Tensor
) -> Iterator[_Group]:
    call, present = recorder.calls[layer.module], recorder.errors[layer.module]
    members = layer.heads // layer.kv_heads
    for kv_head in range(layer.kv_heads):
        heads = slice(kv_head * members, (kv_head + 1) * members)
        yield _Group(call, kv_head, toward[heads], slope[heads], present[heads])


def _prices(group: _Group, budgets: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Alone and among, `[tails, members, budgets]` fp64 each."""
    rows = rows_of(group.call, slice(group.kv_head, group.kv_head + 1))
    scored = Scored(rows.query, rows.key, rows.scores, rows.seen, group.call.terms)
    errors = kept_errors(rows.alpha, rows.value, selections(EXACT, scored, budgets), rows.seen, rows.scores)
    now = (group.present * group.slope).sum(-1, keepdim=True)
    alone, among = [], []
    for tail in TAILS:
        error = errors.error[tail]  # [members, Q, budgets, Dv]
        along = (error * group.slope.unsqueeze(-2)).sum(-1)
        pull = (error * group.toward.unsqueeze(-2)).sum(-1)
        alone.append(0.5 * along.double().square().mean(1))
        among.append((pull - now * along).double().mean(1))
    return torch.stack(alone).cpu(), torch.stack(among).cpu()
