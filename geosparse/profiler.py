"""profile_model: one forward and one backward pass per window, then the geometry of sampled queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .architecture import AttentionLayer, Terms, attention_layers, check_context, dense_attention, read_terms
from .artifact import MAX_COUNT
from .attention import split_mask
from .errors import GeosparseError
from .geometry import random_order, selection_order, separation, tail_errors
from .identity import identify
from .interception import intercepted
from .ops import TAILS, Span, Visibility
from .ops.chunked import attention_scores, attention_weights
from .profile import ARRAYS, Profile
from .progress import track
from .text import text_sha256, token_windows

POWERS = tuple(2**exponent for exponent in range(10))


@dataclass(frozen=True)
class ProfileConfig:
    """How to profile.

    Attributes:
        length: Tokens per window.
        windows: Windows, evenly spaced over the text.
        queries: Query positions sampled per window, stratified over the window.
        budgets: The N at which every head is measured; those of `length` or more are left out.
        random_sets: Random rankings per query for the controls of P, R, F and margin.
        seed: Seed of the sampled positions and random sets.
    """

    length: int = 1024
    windows: int = 4
    queries: int = 64
    budgets: tuple[int, ...] = POWERS
    random_sets: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be profiled."""
        for name, least in (("length", 8), ("windows", 1), ("queries", 1), ("random_sets", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise GeosparseError(f"{name} must be at least {least}, found {getattr(self, name)}.")
        if self.seed > MAX_COUNT:
            raise GeosparseError(f"seed must be at most {MAX_COUNT}, found {self.seed}.")
        if not self.budgets or min(self.budgets) < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise GeosparseError(f"budgets must ascend from at least 1, found {list(self.budgets)}.")
        if self.budgets[0] >= self.length:
            raise GeosparseError(f"budgets must start below the length {self.length}, found {list(self.budgets)}.")


@dataclass
class _Call:
    """What one attention call leaves behind for the analysis."""

    query: torch.Tensor  # [1, Hq, Q, D], the sampled queries
    key: torch.Tensor  # [1, Hkv, L, D]
    value: torch.Tensor  # [1, Hkv, L, Dv]
    seen: torch.Tensor  # [Q, L] bool
    bias: torch.Tensor | None
    terms: Terms
    nudge: torch.Tensor  # [1, Hq, L, Dv] zeros added to the output: their gradient is dLoss/dz


class _Recorder:
    """Serves dense attention and keeps what the analysis needs; one instance per window."""

    def __init__(self, positions: torch.Tensor) -> None:
        self.positions = positions
        self.calls: dict[torch.nn.Module, _Call] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Visibility | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        terms = read_terms(module, query, kwargs)
        output = dense_attention(query, key, value, attention_mask, terms)
        nudge = torch.zeros_like(output, requires_grad=True)
        mask, bias = split_mask(attention_mask, key.shape[2])
        positions = self.positions.to(query.device)
        span = Span() if mask is None else mask
        seen = span.rows(positions, query.shape[2], key.shape[2]) if isinstance(span, Span) else span[:, :, positions]
        self.calls[module] = _Call(
            query=query.detach()[:, :, positions],
            key=key.detach(),
            value=value.detach(),
            seen=seen[0, 0],
            bias=None if bias is None else bias[:, :, positions],
            terms=terms,
            nudge=nudge,
        )
        return output + nudge


def profile_model(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str],
    config: ProfileConfig | None = None,
    *,
    show_progress: bool = False,
) -> Profile:
    """Measure every head of `model` on calibration text.

    Args:
        model: A transformers causal language model; it is not changed.
        tokenizer: Its tokenizer.
        texts: A text, or documents that are joined.
        config: How to profile.
        show_progress: A progress bar on a terminal.

    Raises:
        GeosparseError: The text is too short, the architecture is not supported, or the loss is not finite.
    """
    config = config or ProfileConfig()
    layers = attention_layers(model)
    check_context(model, config.length, "give a smaller --length")
    texts = [texts] if isinstance(texts, str) else list(texts)
    windows = token_windows(tokenizer, texts, config.length, config.windows)
    budgets = tuple(n for n in config.budgets if n < config.length)
    grams = [_gram(layer) for layer in layers]
    results: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    generator = torch.Generator().manual_seed(config.seed)
    for window in track(windows, "profile", show_progress):
        positions = sample_positions(config.length, config.queries, generator)
        loss, calls, gradients = _forward_backward(model, layers, window, positions)
        losses.append(loss / (config.length - 1))
        per_layer = [
            _layer_statistics(call, gradient, gram, budgets, config.random_sets, generator)
            for call, gradient, gram in zip(calls, gradients, grams, strict=True)
        ]
        results.append(_stack_layers(per_layer))
    return Profile(
        arrays={name: torch.stack([result[name] for result in results]).float() for name in ARRAYS},
        budgets=budgets,
        length=config.length,
        queries=len(positions),
        limits=tuple(min(layer.window or config.length, config.length) for layer in layers),
        model=identify(model),
        calibration={"sha256": text_sha256(texts), "windows": len(windows), "length": config.length},
        nll=sum(losses) / len(losses),
        config=asdict(config),
    )


def sample_positions(length: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` ascending query positions, one drawn from each of equal parts of the window; never the last position,
    whose output predicts nothing."""
    edges = torch.linspace(0, length - 1, min(count, length - 1) + 1, dtype=torch.float64)
    draw = torch.rand(len(edges) - 1, generator=generator, dtype=torch.float64)
    positions: torch.Tensor = torch.unique((edges[:-1] + draw * edges.diff()).long().clamp_max(length - 2))
    return positions


def _forward_backward(
    model: Any, layers: Sequence[AttentionLayer], window: torch.Tensor, positions: torch.Tensor
) -> tuple[float, list[_Call], list[torch.Tensor]]:
    """The window's summed loss, the attention calls in layer order, and dLoss/dz `[Hq, Q, Dv]` of each."""
    recorder = _Recorder(positions)
    ids = window[None].to(model.get_input_embeddings().weight.device)
    with intercepted(model, {layer.module: recorder for layer in layers}), torch.enable_grad():
        logits = model(ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:].to(logits.device), reduction="sum")
    if not torch.isfinite(loss):
        raise GeosparseError(
            f"The model's loss on the calibration text is {loss.item()}: its weights or its dtype, {model.dtype}, "
            "overflow; use a sound checkpoint in float32."
        )
    calls = [recorder.calls[layer.module] for layer in layers]
    gradients = torch.autograd.grad(loss, [call.nudge for call in calls])
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise GeosparseError(f"The gradients of the model's loss overflow in {model.dtype}; profile in float32.")
    return loss.item(), calls, [gradient[0, :, positions.to(gradient.device)].float() for gradient in gradients]


def _gram(layer: AttentionLayer) -> torch.Tensor:
    """`[Hq, Dv, Dv]`: e^T gram e = |W_O^h e|^2, what a head's error weighs in the residual stream."""
    matrix = layer.output_matrix().view(-1, layer.heads, layer.value_dim)
    return torch.einsum("rhd,rhe->hde", matrix, matrix)


def _weigh(error: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """|W_O^h e|^2 of `error` `[Hq, ..., Dv]`."""
    flat = error.reshape(error.shape[0], -1, error.shape[-1])
    return ((flat @ gram) * flat).sum(-1).view(error.shape[:-1])


def _layer_statistics(
    call: _Call,
    gradient: torch.Tensor,
    gram: torch.Tensor,
    budgets: Sequence[int],
    random_sets: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Every array of the Profile for one layer and window, as means over the sampled queries."""
    terms = call.terms
    scores = attention_scores(call.query, call.key, terms.scaling, call.seen, call.bias, terms.softcap)
    alpha, scores = attention_weights(scores, call.seen, terms.sink)[0][0], scores[0]
    heads = scores.shape[0]
    value = call.value[0].float().repeat_interleave(heads // call.value.shape[1], dim=0)
    seen = call.seen.expand(scores.shape)
    order = selection_order(scores, seen)
    errors = tail_errors(alpha, value, order, seen, budgets)
    result = {"mass": errors.mass.mean(1), "output_norm": _weigh(alpha @ value, gram).mean(1)}
    result["output_error"] = torch.stack([_weigh(errors.error[tail], gram).mean(1) for tail in TAILS])
    slope = gradient.unsqueeze(-2)
    result["fisher"] = torch.stack([(errors.error[tail] * slope).sum(-1).square().mean(1) for tail in TAILS])
    chosen = separation(alpha, value, order, seen, budgets)
    controls = [separation(alpha, value, random_order(seen, generator), seen, budgets) for _ in range(random_sets)]
    for name in chosen._fields:
        result[name] = getattr(chosen, name).nanmean(1)
        result[f"random_{name}"] = torch.stack([getattr(control, name) for control in controls]).nanmean((0, 2))
    return {name: array.cpu() for name, array in result.items()}


def _stack_layers(per_layer: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join layers: at dimension 0, or 1 behind the tails."""
    return {
        name: torch.stack([layer[name] for layer in per_layer], dim=1 if dimensions[0] == "tails" else 0)
        for name, dimensions in ARRAYS.items()
    }
