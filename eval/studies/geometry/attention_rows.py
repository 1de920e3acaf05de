"""What the studies look at: attention rows and values of one window, layer by layer, from one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from geosparse.hf.dense import attend_dense
from geosparse.hf.interface import intercepted
from geosparse.hf.layers import AttentionLayer, attention_layers
from geosparse.ops import AttentionCall, Span
from geosparse.ops.torch_chunked import attention_scores, attention_weights

# Layer index, attention rows `[Hq, Q, L]`, values `[Hkv, L, Dv]`, seen `[Q, L]` bool.
Visit = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]


def visit_attention_rows(model: Any, window: torch.Tensor, positions: torch.Tensor, visit: Visit) -> None:
    """Run `model` densely over one window and show every attention layer to `visit`, which alone decides what stays.

    Args:
        model: A causal language model, not sparsified.
        window: `[L]` token ids.
        positions: `[Q]` query positions whose attention rows are computed.
        visit: Called once per layer, in the order in which they run, with fp32 tensors on the layer's device.
    """
    layers = attention_layers(model)
    handlers = {layer.module: _Visitor(index, layer, positions, visit) for index, layer in enumerate(layers)}
    with intercepted(model, handlers), torch.no_grad():
        model(window[None].to(model.get_input_embeddings().weight.device), use_cache=False, logits_to_keep=1)


class _Visitor:
    """Serves dense attention in one layer and shows it on the way."""

    def __init__(self, index: int, layer: AttentionLayer, positions: torch.Tensor, visit: Visit) -> None:
        self.index = index
        self.layer = layer
        self.positions = positions
        self.visit = visit

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        query, key, value, mask, bias, terms, *_ = call
        rows = self.positions.to(query.device)
        if isinstance(mask, torch.Tensor):
            seen = mask[0, 0].expand(query.shape[2], -1)[rows]
        else:
            seen = (mask or Span()).rows(rows, query.shape[2], key.shape[2])[0, 0]
        bias = None if bias is None else bias.expand(-1, -1, query.shape[2], -1)[:, :, rows]
        scores = attention_scores(query[:, :, rows], key, terms.scaling, seen, bias, terms.softcap)
        alpha, _ = attention_weights(scores, seen, terms.sink)
        self.visit(self.index, alpha[0], value[0].float(), seen)
        return attend_dense(call)
