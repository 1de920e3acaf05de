"""Root mean square norms of a few rows, as a decode step has dozens: torch takes six operations for each."""

from __future__ import annotations

import torch

from .fast_call import direct

MOST = 1 << 16  # numbers, for which one thread is quick enough
KINDS = ("twice", "once", "shifted")


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float, kind: str) -> torch.Tensor | None:
    """`x / sqrt(mean(x^2) + eps) * weight` in fp32, where the kernel serves these tensors.

    Autograd, autocast and graphs that are being compiled stay with torch.

    Args:
        rows: `[..., D]`, contiguous, at most `MOST` numbers.
        weight: `[D]`, of the same dtype.
        eps: Added to the mean of the squares.
        kind: "once": rounded once, at the end; "twice": before the product with `weight` too, as Llama does; "shifted":
            `1 + weight` in the place of `weight`, as Gemma does.

    Returns:
        `[..., D]`; None where torch serves.
    """
    if (
        type(rows) is not torch.Tensor
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    call = direct()
    return None if call is None else call.norm(rows, weight, eps, KINDS.index(kind), MOST)
