"""The counts of the selection geometry by a kernel: see `geometry.separation.compare`, which is their definition."""

from __future__ import annotations

import ctypes

import torch

from .. import buffers
from .library import SeparateCall, library, run


def separates(square: torch.Tensor) -> bool:
    """Whether `separate` takes these tensors."""
    return square.device.type == "cpu" and square.dtype == torch.float32 and library() is not None


def separate(
    square: torch.Tensor,
    along: torch.Tensor,
    size: torch.Tensor,
    length: torch.Tensor,
    picked: torch.Tensor,
    cosine: bool,
    step: float,
    floor: float,
) -> tuple[torch.Tensor, ...]:
    """Five int64 `[..., Q]`: most, clear, inversions, outer, inner.

    Args:
        square: `[..., Q, L]` fp32, infinite where a token is not visible; `along`, `size` of the same shape.
        along: See `geometry.separation.compare`.
        size: See there.
        length: `[..., Q, 1]`.
        picked: `[..., Q, N]` int64.
        cosine: The distance, else Euclidean.
        step: Relative size of a rounding step.
        floor: Added to the product of norms in the cosine distance.

    Raises:
        GeosparseError: The tensors do not fit together, or a place in `picked` is not one of the L tokens.
    """
    tokens, budget = square.shape[-1], picked.shape[-1]
    rows = square.shape[:-1]
    square, along, size, length = (part.contiguous() for part in (square, along, size, length))
    picked = picked.contiguous()
    for name, part in (("square", square), ("along", along), ("size", size)):
        buffers.check(name, part, torch.float32, (*rows, tokens))
    buffers.check("length", length, torch.float32, (*rows, 1))
    buffers.check("picked", picked, torch.int64, (*rows, budget))
    found = buffers.empty((5, *rows), torch.int64)
    if found.numel():
        pointers = [part.data_ptr() for part in (square, along, size, length, picked, *found)]
        call = SeparateCall(*pointers, found[0].numel(), tokens, budget, int(cosine), step, floor)
        run("gs_separate", ctypes.addressof(call), torch.float32)
    return tuple(found)
