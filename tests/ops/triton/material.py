"""Where the kernels are tested, random attention problems for them, and how far rounding may take a result."""

import pytest
import torch

from geosparse.ops.triton.library import runs_on

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def runs():
    """Whether a kernel with a loop of unknown length runs here, and why not."""
    if not runs_on(DEVICE):
        return False, "triton is not installed, or was imported without its interpreter"
    if DEVICE.type == "cpu":
        import numpy
        import triton

        old = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)
        if old and tuple(int(part) for part in numpy.__version__.split(".")[:2]) >= (2, 4):
            return False, "the interpreter of triton 3.6 cannot loop with numpy 2.4"
    return True, ""


needs_kernels = pytest.mark.skipif(not runs()[0], reason=runs()[1])


def tensors(batch, heads, kv_heads, keys, dim, seed=0, value_dim=None, dtype=torch.float32):
    """Query `[B, Hq, 1, D]`, keys and values behind which the buffers are full of NaN."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, 1, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, value_dim or dim)]
    query, key, value = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    return query, poisoned(key), poisoned(value)


def poisoned(tensor, spare=13):
    """A view of the first keys of a buffer whose others are NaN."""
    batch, heads, keys, dim = tensor.shape
    buffer = tensor.new_full((batch, heads, keys + spare, dim), torch.nan)
    buffer[:, :, :keys] = tensor
    return buffer[:, :, :keys]


def tolerance(query, key, value, scaling, capped=False):
    """Of fp32 against fp64: weights are off by what their logits are, sums of at most a few hundred values by rounding.

    A logit is a sum of D products: its error is at most some units of their summed sizes; a soft cap adds its own.
    """
    eps = torch.finfo(torch.float32).eps
    groups = query.shape[1] // key.shape[1]
    sizes = query.abs().double() @ key.abs().double().repeat_interleave(groups, 1).transpose(-1, -2)
    logit = 2 * eps * (float(sizes.max()) * scaling + (8 if capped else 0))
    return (2 * logit + 64 * eps) * float(value.abs().max())
