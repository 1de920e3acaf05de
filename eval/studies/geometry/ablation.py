"""What heads are worth: the loss when some of them are starved (N = 2) or silenced, and all others keep everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from geosparse.artifacts.plan import Plan
from geosparse.hf.dense import attend_dense
from geosparse.hf.identity import identify
from geosparse.hf.interface import intercepted
from geosparse.hf.layers import attention_layers
from geosparse.measure.loss import token_nll
from geosparse.ops import AttentionCall
from geosparse.sparsify.patch import sparsified

STARVED_BUDGET = 2
MODES = ("starve", "silence")


def damage(model: Any, windows: torch.Tensor, heads: torch.Tensor, mode: str, dense: torch.Tensor) -> torch.Tensor:
    """Mean excess loss of each window, `[W]` nats per token.

    Args:
        model: A causal language model.
        windows: `[W, L]` token ids.
        heads: `[layers, Hq]` bool, the heads to touch.
        mode: "starve" keeps their `STARVED_BUDGET` tokens of largest weight, renormalised; "silence" makes their
            output zero.
        dense: `[W, L - 1]` losses of the untouched model.
    """
    if mode == "starve":
        length = windows.shape[1]
        budgets = torch.where(heads, STARVED_BUDGET, length)
        budget = {"starved_heads": float(heads.sum())}
        plan = Plan(budgets, "renormalize", length, "starve", budget, identify(model))
        with sparsified(model, plan):
            nll = token_nll(model, windows)
    else:
        with silenced(model, heads):
            nll = token_nll(model, windows)
    return (nll.double() - dense.double()).mean(1)


@contextmanager
def silenced(model: Any, heads: torch.Tensor) -> Iterator[None]:
    """The model with the output of `heads` `[layers, Hq]` bool set to zero, for the length of a block."""
    layers = attention_layers(model)
    with intercepted(model, {layer.module: _Silencer(row) for layer, row in zip(layers, heads, strict=True)}):
        yield


class _Silencer:
    """Dense attention without the given heads."""

    def __init__(self, heads: torch.Tensor) -> None:
        self.heads = heads

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        output = attend_dense(call)
        return output.masked_fill(self.heads.to(output.device)[:, None, None], 0.0)


def some_of(heads: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random ones of the `heads` `[layers, Hq]` bool, as such a mask."""
    indices = heads.flatten().nonzero().flatten()
    chosen = torch.zeros(heads.numel(), dtype=torch.bool, device="cpu")
    chosen[indices[torch.randperm(len(indices), generator=generator, dtype=torch.int64, device="cpu")[:count]]] = True
    return chosen.view(heads.shape)
