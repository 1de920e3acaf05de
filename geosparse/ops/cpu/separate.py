"""The counts of the selection geometry by a kernel: see `geometry.compared`, which is their definition."""

from __future__ import annotations

import ctypes

import torch

from .library import SeparateCall, library


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
        along: See `geometry.compared`.
        size: See there.
        length: `[..., Q, 1]`.
        picked: `[..., Q, N]` int64.
        cosine: The distance, else Euclidean.
        step: Relative size of a rounding step.
        floor: Added to the product of norms in the cosine distance.
    """
    tokens, budget = square.shape[-1], picked.shape[-1]
    square, along, size, length = (part.contiguous() for part in (square, along, size, length))
    picked = picked.contiguous()
    found = torch.empty(5, *picked.shape[:-1], dtype=torch.int64)
    loaded = library()
    assert loaded is not None
    pointers = [part.data_ptr() for part in (square, along, size, length, picked, *found)]
    rows = found[0].numel()
    call = SeparateCall(*pointers, rows, tokens, budget, int(cosine), step, floor)
    loaded.gs_separate(ctypes.addressof(call))
    return tuple(found)
