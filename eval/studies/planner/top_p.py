"""The oracle that no budget can be: every query of every head keeps the same attention mass (top-p)."""

from __future__ import annotations

from typing import Any

import torch

from geosparse.hf.interface import Handler, intercepted
from geosparse.hf.layers import attention_layers
from geosparse.measure.loss import token_nll
from geosparse.ops import AttentionCall
from geosparse.ops.torch_chunked import attention_scores, attention_weights
from geosparse.ops.visibility import dense_mask

BISECTION_STEPS = 8
QUERY_CHUNK = 128


def top_p_nll(model: Any, windows: torch.Tensor, mass: float, what: str) -> tuple[torch.Tensor, float]:
    """Losses `[W, L - 1]` where each query keeps the fewest tokens that hold `mass`, the rest as the values' mean; and
    the mean number of tokens kept."""
    layers = attention_layers(model)
    served = [_TopP(mass) for _ in layers]
    handlers: dict[torch.nn.Module, Handler] = {layer.module: one for layer, one in zip(layers, served, strict=True)}
    with intercepted(model, handlers):
        nll = token_nll(model, windows, what, show_progress=True)
    kept, queries = (sum(getattr(handler, name) for handler in served) for name in ("kept", "queries"))
    return nll, kept / queries


def matched_mass(model: Any, window: torch.Tensor, mean_keep: float) -> float:
    """The mass at which about `mean_keep` tokens are kept on average, found on one window `[1, L]`."""
    low, high = 0.0, 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        _, kept = top_p_nll(model, window, middle, f"mass {middle:.3f}")
        low, high = (middle, high) if kept <= mean_keep else (low, middle)
    return low


class _TopP:
    """Serves one layer, and counts what it kept."""

    def __init__(self, mass: float) -> None:
        self.mass = mass
        self.kept = 0
        self.queries = 0

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        query, key, value, *_ = call
        terms = call.terms
        group = query.shape[1] // key.shape[1]
        values = value.float().repeat_interleave(group, dim=1)
        seen, bias = visible(call)
        outputs = []
        for start in range(0, query.shape[2], QUERY_CHUNK):
            rows = slice(start, start + QUERY_CHUNK)
            sight = seen[:, :, rows]
            part = None if bias is None else bias[:, :, rows]
            scores = attention_scores(query[:, :, rows], key, terms.scaling, sight, part, terms.softcap)
            alpha, _ = attention_weights(scores, sight, terms.sink)
            ordered, order = alpha.sort(dim=-1, descending=True, stable=True)
            # A token is kept while the mass before it is short of the goal.
            held = (ordered.cumsum(-1) - ordered < self.mass) & (ordered > 0)
            keep = torch.zeros_like(held).scatter(-1, order, held)
            kept = alpha * keep
            mean = (sight.to(values.dtype) @ values) / sight.sum(-1, keepdim=True).clamp_min(1)
            outputs.append(kept @ values + (1 - kept.sum(-1, keepdim=True)) * mean)
            self.kept += int(keep.sum())
            self.queries += keep[..., 0].numel()
        return torch.cat(outputs, dim=2).to(query.dtype)


def visible(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What queries see, bool `[B or 1, 1, T, S]`, and a bias that is added to the logits."""
    query, key = call.query, call.key
    return dense_mask(call.visibility, query.shape[2], key.shape[2], query.device), call.bias
