"""Gradients through linear modules that autograd cannot pass: kernels of quantized weights often have no backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..hf.adapters import is_adapted
from ..hf.held import FLOATS, is_plain

# Unit vectors that a module acts on at once.
UNIT_VECTORS = 1024
# Unit vectors on which autograd's gradient is tried, and how far it may be off: what is missing is off by far more.
VECTORS_TRIED = 16
GRADIENT_TOLERANCE = 0.05


class _Transposed(torch.autograd.Function):
    """A linear module; its gradient is found from its action on unit vectors, as if activations were not rounded."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, forward: Any) -> Any:
        ctx.forward_of, ctx.like = forward, rows
        return forward(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        width, gradient = ctx.like.shape[-1], gradient.float()
        bias = ctx.forward_of(torch.zeros_like(ctx.like.reshape(-1, width)[None, :1]))
        parts = []
        for start in range(0, width, UNIT_VECTORS):
            count = min(UNIT_VECTORS, width - start)
            unit = torch.zeros(1, count, width, dtype=ctx.like.dtype, device=ctx.like.device)
            unit[0, :, start : start + count].fill_diagonal_(1.0)
            parts.append(gradient @ (ctx.forward_of(unit) - bias)[0].float().T)
        return torch.cat(parts, dim=-1).to(ctx.like.dtype), None


class _Guarded:
    """The forward of a linear module; with the gradient of its action where autograd has none or another one."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward
        self.right: bool | None = None

    def __call__(self, rows: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if rest or named or rows.dtype not in FLOATS or not (torch.is_grad_enabled() and rows.requires_grad):
            return self.forward(rows, *rest, **named)
        if self.right is None:
            self.right = _gradient_is_right(self.forward, rows)
        output = self.forward(rows) if self.right else None
        return output if output is not None and output.requires_grad else _Transposed.apply(rows, self.forward)  # type: ignore[no-untyped-call]


def _gradient_is_right(forward: Any, like: torch.Tensor) -> bool:
    """Whether autograd's gradient of some rows agrees with the action on some unit vectors."""
    width = like.shape[-1]
    columns = (
        torch.linspace(0, width - 1, min(VECTORS_TRIED, width), dtype=torch.float64, device="cpu")
        .long()
        .to(like.device)
    )
    probe = torch.zeros(1, 2, width, dtype=like.dtype, device=like.device, requires_grad=True)
    with torch.enable_grad():
        output = forward(probe)
        slope = torch.ones_like(output)
        slope[..., ::2] = -1.0  # not the same for all, and exact in every dtype
        try:
            gradient: Any = torch.autograd.grad(output, probe, slope, allow_unused=True)[0]
        except (RuntimeError, NotImplementedError):
            gradient = None
    if gradient is None:
        return False
    with torch.no_grad():
        unit = torch.zeros(1, len(columns), width, dtype=like.dtype, device=like.device)
        unit[0].scatter_(1, columns[:, None], 1.0)
        expected = ((forward(unit) - output[:, :1])[0].float() @ slope[0, 0].float()).cpu()
    error = (gradient[0, :, columns].float().cpu() - expected).abs().max()
    return bool(error <= GRADIENT_TOLERANCE * expected.abs().max())


@contextmanager
def gradients_through(model: torch.nn.Module) -> Iterator[None]:
    """Inside, gradients pass linear modules whose weights are not plain, also those that autograd does not know."""
    modules = [module for module in model.modules() if _may_stop_gradients(module)]
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = _Guarded(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _may_stop_gradients(module: torch.nn.Module) -> bool:
    linear = hasattr(module, "in_features") and hasattr(module, "out_features") and not is_adapted(module)
    return (
        linear
        and "parametrizations" not in module._modules
        and not any(hasattr(child, "in_features") for child in module.children())
        and not all(map(is_plain, module.modules()))
    )
