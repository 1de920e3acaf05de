"""A few rows times a matrix of weights: what most of a decode step's time goes into besides attention.

torch reads the weights of one row at a third to a half of the speed of memory (one thread of its matrix library in
fp32, much less in bf16); here each weight is read once, by all threads, for up to `MOST_ROWS` rows.
"""

from __future__ import annotations

import struct

import torch

from .library import DTYPES, library

MOST_ROWS = 8  # with more, torch's products of matrices are as fast

# ProductCall in geosparse.cpp: 4 pointers, 6 whole numbers.
_CALL = struct.Struct("=4Q6q")


def multiplies(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `product` takes these tensors; autograd, autocast and graphs being compiled stay with torch."""
    return (
        type(rows) is torch.Tensor
        and rows.dtype == weight.dtype
        and rows.dtype in DTYPES
        and rows.device.type == weight.device.type == "cpu"
        and 0 < rows.numel() <= MOST_ROWS * weight.shape[1]
        and rows.shape[-1] == weight.shape[1]
        and weight.stride(1) == 1
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` where `multiplies`, summed in fp32 and rounded once.

    Args:
        rows: `[..., K]`, at most `MOST_ROWS` of them.
        weight: `[N, K]`.
        bias: `[N]`, of the same dtype.

    Returns:
        `[..., N]`; each row as it would be alone.
    """
    rows = rows.contiguous()
    columns, width = weight.shape
    output = torch.empty(*rows.shape[:-1], columns, dtype=rows.dtype)
    loaded = library()
    assert loaded is not None
    # In the order of ProductCall in geosparse.cpp.
    call = _CALL.pack(
        rows.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        output.data_ptr(),
        rows.numel() // width,
        width,
        columns,
        weight.stride(0),
        DTYPES[rows.dtype],
        torch.get_num_threads(),
    )
    if loaded.gs_product(call):
        raise TypeError(f"the CPU kernels of this machine do not know {rows.dtype}")
    return output
