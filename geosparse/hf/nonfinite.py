"""Where a model's numbers stop being numbers: the layer and head that an error names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ops import AttentionCall
from .dense import attend_dense
from .interface import intercepted
from .layers import AttentionLayer, attention_layers, input_device

ADVICE = "use a sound checkpoint in float32"


def heads_at_fault(values: torch.Tensor, axis: int) -> list[int]:
    """Places along `axis` at which `values` holds NaN or infinity."""
    rest = [dimension for dimension in range(values.dim()) if dimension != axis % values.dim()]
    broken = ~torch.isfinite(values)
    heads: list[int] = (broken.any(dim=rest) if rest else broken).nonzero().flatten().tolist()
    return heads


def heads_in_words(heads: list[int], kind: str = "head") -> str:
    """ "head 3", or "heads 0, 1 and 2"; of many the first and their number."""
    if len(heads) == 1:
        return f"{kind} {heads[0]}"
    if len(heads) > 4:
        return f"{kind} {heads[0]} and {len(heads) - 1} more"
    return f"{kind}s {', '.join(map(str, heads[:-1]))} and {heads[-1]}"


class _Watch:
    """Serves dense attention and keeps the first call with a number that is not finite."""

    def __init__(self, layers: Sequence[AttentionLayer]) -> None:
        self.indices = {layer.module: index for index, layer in enumerate(layers)}
        self.fault: str | None = None

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        query, key, value, *_ = call
        output = attend_dense(call)
        if self.fault is None:
            parts = {"values": (value, "KV head"), "keys": (key, "KV head"), "queries": (query, "head")}
            for what, (tensor, kind) in (parts | {"output": (output, "head")}).items():
                heads = heads_at_fault(tensor, 1)
                if heads:
                    self.fault = f"layer {self.indices[module]}, {heads_in_words(heads, kind)} ({what})"
                    break
        return output


def first_fault(model: Any, ids: torch.Tensor) -> str:
    """Where numbers that are not finite first reach the attention of the dense model: layer, head and what they are.

    Args:
        model: A causal language model, not sparsified.
        ids: `[B, L]` token ids.

    Returns:
        "layer 3, KV head 1 (values)", or where else they are when attention has none.
    """
    layers = attention_layers(model)
    watch = _Watch(layers)
    with intercepted(model, dict.fromkeys(watch.indices, watch)), torch.no_grad():
        logits = model(ids.to(input_device(model)), use_cache=False).logits
    if watch.fault is None:
        sound = bool(torch.isfinite(logits).all())
        return "nowhere in the dense model" if sound else f"after the attention of layer {len(layers) - 1}, the last"
    return watch.fault
