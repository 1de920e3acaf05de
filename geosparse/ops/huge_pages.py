"""Large buffers on huge pages: gathering rows from small ones costs a walk of the page table for each row."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

HUGE_PAGE = 2 << 20
# Below this a huge page would be mostly empty.
LEAST = HUGE_PAGE // 2


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """`torch.empty`, on huge pages where it is large, on a CPU, and the system has them to give."""
    size = math.prod(shape) * dtype.itemsize
    plain = torch.device(device).type != "cpu" or size < LEAST or torch.compiler.is_compiling()
    if plain or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(*shape, dtype=dtype, device=device)
    # One page more than needed: a mapping starts anywhere.
    room = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        room.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return torch.empty(*shape, dtype=dtype, device=device)
    whole = torch.frombuffer(room, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + size].view(dtype).view(*shape)
