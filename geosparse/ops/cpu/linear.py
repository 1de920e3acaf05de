"""A few rows times a matrix of weights: what most of a decode step's time goes into besides attention.

torch reads the weights of one row at a third to two thirds of the speed of memory in fp32, as processors go, and much
slower in bf16; here each weight is read once, by all threads, for up to `MOST_ROWS` rows.
"""

from __future__ import annotations

import struct

import torch

from .. import buffers
from .fast_call import direct
from .library import DTYPES, library, run

MOST_ROWS = 8  # with more, torch's products of matrices are as fast

# ProductCall in calls.h: 4 pointers, 6 whole numbers.
_CALL = struct.Struct("=4Q6q")


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """`torch.nn.functional.linear`, summed in fp32 and rounded once, where the kernel serves these tensors.

    Autograd, autocast and graphs that are being compiled stay with torch.

    Args:
        rows: `[..., K]`, at most `MOST_ROWS` of them.
        weight: `[N, K]`, a plain tensor or parameter.
        bias: `[N]`, of the same dtype.

    Returns:
        `[..., N]`, each row as it would be alone; None where torch serves.
    """
    if (
        type(rows) is not torch.Tensor
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    call = direct()
    if call is not None:
        found = call.product(rows, weight, bias, MOST_ROWS, torch.get_num_threads())
        if found is not None:
            return found
    return _by_python(rows, weight, bias) if _serves(rows, weight, bias) else None


def _serves(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    given = (rows, weight) if bias is None else (rows, weight, bias)
    return (
        rows.dtype in DTYPES
        and all(type(each) in buffers.PLAIN and each.dtype == rows.dtype and each.is_cpu for each in given)
        and rows.dim() > 0
        and weight.dim() == 2
        and 0 < rows.numel() <= MOST_ROWS * weight.shape[1]
        and rows.shape[-1] == weight.shape[1]
        and len(weight) > 0
        and weight.stride(1) == 1
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and all(buffers.has_memory(each) for each in given)
        and library() is not None
    )


def _by_python(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`product` where `_serves`, the call put together here."""
    rows = rows.contiguous()
    columns, width = weight.shape
    output = buffers.empty((*rows.shape[:-1], columns), rows.dtype)
    # In the order of calls.h.
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
    run("gs_product", call, rows.dtype)
    return output
