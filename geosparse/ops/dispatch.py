"""The one dispatch point for attention: `reference` is the truth, the others are held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import cpu, triton
from .call import AttentionCall, HeadRules, Path
from .cpu import attend_cpu, cpu_attention, serve_cpu
from .reference import attend_reference, reference_attention
from .spec import Attended, needs_gradient
from .torch_chunked import attend_chunked, chunked_attention
from .triton import attend_triton, serve_triton, triton_attention

# Name -> attention path on tensors; all take the arguments of `reference_attention`.
PATHS: dict[str, Callable[..., Attended]] = {
    "reference": reference_attention,
    "torch": chunked_attention,
    "cpu": cpu_attention,
    "triton": triton_attention,
}
# The same, as they serve a call.
SERVING_PATHS: dict[str, Path] = {
    "reference": attend_reference,
    "torch": attend_chunked,
    "cpu": attend_cpu,
    "triton": attend_triton,
}


def attend(call: AttentionCall, rules: HeadRules) -> Attended:
    """Sparse attention by the fastest path that takes this call."""
    served = serve_triton(call, rules) if call.query.is_cuda else serve_cpu(call, rules)
    return attend_chunked(call, rules) if served is None else served


def best_path(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    sink: torch.Tensor | None = None,
) -> str:
    """The name of the fastest path that takes these tensors; with a gradient, autograd's."""
    if sink is not None and needs_gradient(sink):
        return "torch"
    if query.is_cuda:
        return "triton" if triton.supports(query, key, value, bias) else "torch"
    return "cpu" if cpu.supports(query, key, value, bias) else "torch"
