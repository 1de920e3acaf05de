"""The one dispatch point for attention: `reference` is the truth, the others are held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import cpu, triton
from .cpu import cpu_attention
from .reference import reference_attention
from .spec import Attended, needs_gradient
from .torch_chunked import chunked_attention
from .triton import triton_attention

# Name -> attention path; all take the arguments of `reference_attention`.
PATHS: dict[str, Callable[..., Attended]] = {
    "reference": reference_attention,
    "torch": chunked_attention,
    "cpu": cpu_attention,
    "triton": triton_attention,
}


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
