"""What the attention calls of one window leave behind: queries, keys, values, and where asked the loss gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import GeosparseError
from ..hf.dense import attend_dense
from ..hf.interface import intercepted
from ..hf.layers import AttentionLayer, attention_layers, input_device
from ..hf.logits import keep_last, last_states, targets_of
from ..hf.nonfinite import ADVICE, first_fault, heads_at_fault, heads_in_words
from ..ops import AttentionCall, Span, Terms
from ..ops.torch_chunked import attention_scores, attention_weights
from .transposed import gradients_through

# Windows of more tokens are run with each decoder layer computed again in the backward pass, not kept from the forward.
KEPT_TOKENS = 4096


@dataclass
class Call:
    """What one attention call leaves behind.

    Attributes:
        query: `[1, Hq, Q, D]`, at the positions that were asked for.
        key: `[1, Hkv, L, D]`.
        value: `[1, Hkv, L, Dv]`.
        seen: `[Q, L]` bool.
        bias: `[1, 1, Q, L]` added to the logits, or None.
        terms: Scaling, soft cap and learned sink.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    seen: torch.Tensor
    bias: torch.Tensor | None
    terms: Terms


@dataclass
class QueryRows:
    """Some queries of some heads, with everything that they see; keys that none of them sees are cut away.

    Attributes:
        query: `[Hq, Q, D]`.
        key: `[Hkv, L, D]`.
        value: `[Hkv, L, Dv]` fp32.
        scores: `[Hq, Q, L]` fp32 logits, -inf where not visible.
        alpha: `[Hq, Q, L]` fp32 attention weights, 0 where not visible.
        seen: `[Q, L]` bool.
        start: The position of the first key.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scores: torch.Tensor
    alpha: torch.Tensor
    seen: torch.Tensor
    start: int


@dataclass
class LayerRows:
    """One layer of `walk_layers`: its place, and the rows of its heads at `positions`."""

    index: int
    layer: AttentionLayer
    positions: torch.Tensor
    call: Call

    @property
    def rows(self) -> QueryRows:
        """Of all heads at once."""
        return rows_of(self.call)

    def groups(self) -> Iterator[QueryRows]:
        """Of the query heads of one KV head after the other."""
        for kv_head in range(self.call.key.shape[1]):
            yield rows_of(self.call, slice(kv_head, kv_head + 1))


def rows_of(call: Call, kv_heads: slice = slice(None), queries: slice = slice(None)) -> QueryRows:
    """Scores and weights of some queries of the query heads that `kv_heads` serve, and the keys they see."""
    groups = call.query.shape[1] // call.key.shape[1]
    start, stop, _ = kv_heads.indices(call.key.shape[1])
    heads = slice(start * groups, stop * groups)
    columns = call.seen[queries].any(0).nonzero()
    first, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
    seen = call.seen[queries, first:end]
    query, key = call.query[:, heads, queries], call.key[:, start:stop, first:end]
    bias = None if call.bias is None else call.bias[:, :, queries, first:end]
    scores = attention_scores(query, key, call.terms.scaling, seen, bias, call.terms.softcap)
    sink = None if call.terms.sink is None else call.terms.sink[heads]
    alpha = attention_weights(scores, seen, sink)[0]
    value = call.value[0, start:stop, first:end].float()
    return QueryRows(query[0], key[0], value, scores[0], alpha[0], seen, first)


class Recorder:
    """Serves dense attention, or what a subclass says, and keeps every module's `Call`; one instance per window."""

    def __init__(self, positions: torch.Tensor, slopes: torch.Tensor | None = None) -> None:
        """Record one window.

        Args:
            positions: `[Q]` positions of the queries to keep.
            slopes: `[P]` positions at which the gradient at the output is kept; None for no gradient.
        """
        self.positions = positions
        self.slopes = slopes
        self.calls: dict[torch.nn.Module, Call] = {}
        self.gradients: dict[torch.nn.Module, torch.Tensor] = {}

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        query, key, value, mask, bias, terms, *_ = call
        output = self.attend(module, call)
        if module in self.calls:
            return output
        if self.slopes is not None:
            slope_positions = self.slopes.to(output.device)
            if not output.requires_grad:
                raise _no_gradient(module)

            def keep(gradient: torch.Tensor | None) -> None:
                if gradient is None:
                    raise _no_gradient(module)
                self.gradients[module] = gradient[0, :, slope_positions].float()

            output.register_hook(keep)  # type: ignore[no-untyped-call]
        positions = self.positions.to(query.device)
        if isinstance(mask, torch.Tensor):
            seen = mask[0, 0].expand(query.shape[2], -1)[positions]
        else:
            seen = (mask or Span()).rows(positions, query.shape[2], key.shape[2])[0, 0]
        self.calls[module] = Call(
            query=query.detach()[:, :, positions],
            key=key.detach(),
            value=value.detach(),
            seen=seen,
            bias=None if bias is None else bias.expand(-1, -1, query.shape[2], -1)[:, :, positions],
            terms=terms,
        )
        return output

    def attend(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """What the module's attention returns, `[B, Hq, T, Dv]`."""
        return attend_dense(call)


def _no_gradient(module: torch.nn.Module) -> GeosparseError:
    return GeosparseError(
        f"No gradient reaches the attention of {type(module).__name__}: a module of this model has no backward pass "
        "(kernels of quantized weights may have none); profile the model with plain weights."
    )


def walk_layers(model: Any, window: torch.Tensor, positions: torch.Tensor | Sequence[int]) -> Iterator[LayerRows]:
    """The attention rows of one window, layer by layer, from one forward pass.

    Args:
        model: A transformers causal language model; it is not changed.
        window: `[L]` token ids.
        positions: `[Q]` query positions, ascending, from 0 to L - 1.

    Yields:
        Per layer the rows of all heads at `positions`, scored when they are asked for, forgotten when the next are.
    """
    positions = torch.as_tensor(positions, dtype=torch.int64, device="cpu")
    layers = attention_layers(model)
    recorder = Recorder(positions)
    ids = window[None].to(input_device(model))
    with intercepted(model, {layer.module: recorder for layer in layers}), torch.no_grad():
        model(ids, use_cache=False, **keep_last(model, ids[0]))
    for index, layer in enumerate(layers):
        yield LayerRows(index, layer, positions, recorder.calls.pop(layer.module))


def forward_backward(
    model: Any, layers: Sequence[AttentionLayer], window: torch.Tensor, positions: torch.Tensor, slopes: torch.Tensor
) -> tuple[float, list[Call], list[torch.Tensor]]:
    """One forward and one backward pass over a window.

    Args:
        model: A causal language model.
        layers: Its attention layers.
        window: `[L]` token ids.
        positions: `[Q]` positions of the queries to keep.
        slopes: `[P]` positions at which the gradient is kept.

    Returns:
        The window's summed loss, the attention calls in layer order, and dLoss/dz `[Hq, P, Dv]` fp32 of each.

    Raises:
        GeosparseError: Loss or gradients are not finite.
    """
    recorder = Recorder(positions, slopes)
    losses: list[float] = []

    def slope_of(logits: torch.Tensor, rows: slice) -> list[torch.Tensor]:
        loss, slope = loss_and_slope(logits, targets_of(window, rows))
        losses.append(loss)
        return [slope] if math.isfinite(loss) else []

    gradients = backward_passes(model, layers, window, recorder, slope_of, 1)
    if not gradients:
        raise GeosparseError(
            f"The model's loss on the calibration text is {losses[-1]}: its weights or its dtype, {model.dtype}, "
            f"overflow, first at {first_fault(model, window[None].to(input_device(model)))}; {ADVICE}."
        )
    return math.fsum(losses), [recorder.calls[layer.module] for layer in layers], gradients[0]


def backward_passes(
    model: Any,
    layers: Sequence[AttentionLayer],
    window: torch.Tensor,
    recorder: Recorder,
    slopes_of: Callable[[torch.Tensor, slice], Sequence[torch.Tensor]],
    losses: int,
) -> list[list[torch.Tensor]]:
    """One forward pass over a window, and a backward pass for every loss of its logits.

    Args:
        model: A causal language model.
        layers: Its attention layers.
        window: `[L]` token ids.
        recorder: Serves their attention and keeps the gradients at its outputs.
        slopes_of: From the logits `[R, V]` of some positions the gradients `[R, V]` of the losses; none to stop.
        losses: How many losses there are.

    Returns:
        Per loss and layer dLoss/dz `[Hq, P, Dv]` fp32 at the recorder's slopes; nothing where it was stopped.

    Raises:
        GeosparseError: Gradients are not finite.
    """
    ids = window.to(input_device(model))
    handlers = {layer.module: recorder for layer in layers}
    recomputed = _recomputed(model) if len(window) > KEPT_TOKENS else nullcontext()
    gradients_of_losses = []
    with intercepted(model, handlers), gradients_through(model), recomputed, _inputs_that_need_grad(model) as inputs:
        states = last_states(model, ids)
        at_states = torch.zeros(losses, *states.values.shape, dtype=states.values.dtype, device=states.values.device)
        for rows in states.predicting():
            part = states.values[rows].detach().requires_grad_(True)
            logits = states.head(part)
            slopes = slopes_of(logits.detach(), rows)
            if not slopes:
                return []
            for at, slope in zip(at_states, slopes, strict=True):
                at[rows] = torch.autograd.grad(logits, part, slope, retain_graph=True)[0]
        for loss, at in enumerate(at_states):
            again = loss + 1 < losses
            torch.autograd.backward([states.values], [at], retain_graph=again, inputs=inputs)
            gradients_of_losses.append([recorder.gradients[layer.module] for layer in layers])
    for gradients in gradients_of_losses:
        # The backward pass comes to the last layer first.
        for index in reversed(range(len(layers))):
            heads = heads_at_fault(gradients[index], 0)
            if heads:
                raise GeosparseError(
                    f"The gradients of the model's loss overflow in {model.dtype}, first at layer {index}, "
                    f"{heads_in_words(heads)}; profile in float32."
                )
    return gradients_of_losses


def loss_and_slope(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The summed cross-entropy, nats, and its gradient.

    Args:
        logits: `[R, V]`.
        targets: `[R]` token ids.

    Returns:
        The loss and dLoss/dlogits `[R, V]` in the dtype of `logits`.
    """
    column = targets.to(logits.device)[:, None]
    logs = logits.float().log_softmax(-1)
    loss = -float(logs.gather(-1, column).double().sum())
    slope = logs.exp_().scatter_add_(-1, column, torch.full_like(column, -1, dtype=logs.dtype))
    return loss, slope.to(logits.dtype)


@contextmanager
def _inputs_that_need_grad(model: Any) -> Iterator[list[torch.Tensor]]:
    """Inside, the embedded input asks for a gradient and the parameters do not; yields the list that it appears in."""
    inputs: list[torch.Tensor] = []

    def ask(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_(True)
        inputs.append(output)
        return output.clone()  # which a model may scale in place

    hook = model.get_input_embeddings().register_forward_hook(ask)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield inputs
    finally:
        hook.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _recomputed(model: Any) -> Iterator[None]:
    """Inside, decoder layers keep their inputs only; the same numbers, for a third more time in far less memory."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
