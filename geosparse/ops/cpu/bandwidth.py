"""Reads rows of a table in any order: the speed of memory, to hold a kernel's time against."""

from __future__ import annotations

import struct

import torch

from .. import buffers
from .library import library, run

AT_ONCE = 256  # rows of one sum, bandwidth.inc
WIDTH = 32  # a row is a multiple of it

# ReadCall in kernels.cpp: 3 pointers, 4 whole numbers.
_CALL = struct.Struct("=3Q4q")


def read_rows(table: torch.Tensor, rows: torch.Tensor) -> float:
    """The sum of rows of a table, each read once, by as many threads as torch has.

    Args:
        table: fp32 `[*, K]`, contiguous, K a multiple of `WIDTH`.
        rows: int64 `[M]`, contiguous, which to read: from 0 to `len(table) - 1`.

    Raises:
        RuntimeError: Without the compiled kernels.
        ValueError: For another dtype or layout, or a row that the table does not have.
    """
    if library() is None:
        raise RuntimeError("reading rows needs the compiled kernels.")
    if table.dtype != torch.float32 or table.dim() != 2 or table.shape[1] % WIDTH or not table.is_contiguous():
        raise ValueError(f"table has to be contiguous, fp32, and a multiple of {WIDTH} wide.")
    if rows.dtype != torch.int64 or rows.dim() != 1 or not rows.is_contiguous():
        raise ValueError("rows has to be contiguous and int64.")
    for name, part in (("table", table), ("rows", rows)):
        buffers.check(name, part, part.dtype, tuple(part.shape))
    sums = buffers.zeros((-(-len(rows) // AT_ONCE),), torch.float64)
    if len(rows) and table.shape[1]:
        addresses = table.data_ptr(), rows.data_ptr(), sums.data_ptr()
        call = _CALL.pack(*addresses, len(rows), table.shape[1], torch.get_num_threads(), len(table))
        run("gs_read_rows", call, torch.float32)
    return float(sums.sum())
