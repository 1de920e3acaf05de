"""Whether triton's kernels run here, and on what."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec

import torch

# Programs that keep one multiprocessor busy while others of its programs wait for memory.
PROGRAMS = 4


def installed() -> bool:
    """Whether triton can be imported; nothing is."""
    return find_spec("triton") is not None


@cache
def interpreting() -> bool:
    """Whether the kernels run in triton's interpreter (TRITON_INTERPRET=1), on CPU tensors too."""
    if "triton" in sys.modules or os.environ.get("TRITON_INTERPRET"):
        from triton import knobs

        return bool(knobs.runtime.interpret)
    return False


def runs_on(device: torch.device) -> bool:
    """Whether the kernels take tensors of `device`."""
    return installed() and (device.type == "cuda" or (device.type == "cpu" and interpreting()))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def shares(device: torch.device, pairs: int, most: int) -> int:
    """Programs per pair of batch row and KV head that fill the device, at most `most`."""
    return max(1, min(most, -(-PROGRAMS * processors(device) // pairs)))


def precision(dtype: torch.dtype) -> str:
    """How kernels multiply tensors of `dtype`: exactly, with fp32 sums."""
    return "ieee" if interpreting() or dtype == torch.float32 else "half"


def mixed_precision(dtype: torch.dtype) -> str:
    """How kernels multiply queries of `dtype` and fp32: tf32 holds any fp16 or bf16 exactly."""
    return "ieee" if interpreting() or dtype == torch.float32 else "tf32"
