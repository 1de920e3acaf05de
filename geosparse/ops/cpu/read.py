"""Reads rows of a table in any order: the speed of memory, to hold a kernel's time against."""

from __future__ import annotations

import struct

import torch

from .library import library

AT_ONCE = 256  # rows of one sum, read.inc
WIDTH = 32  # a row is a multiple of it

# ReadCall in geosparse.cpp: 3 pointers, 3 whole numbers.
_CALL = struct.Struct("=3Q3q")


def read_rows(table: torch.Tensor, rows: torch.Tensor) -> float:
    """The sum of rows of a table, each read once, by as many threads as torch has.

    Args:
        table: fp32 `[*, K]`, contiguous, K a multiple of `WIDTH`.
        rows: int64 `[M]`, contiguous, which to read: from 0 to `len(table) - 1`, unchecked.

    Raises:
        RuntimeError: Without the compiled kernels.
        ValueError: For another dtype or layout.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError("reading rows needs the compiled kernels.")
    if table.dtype != torch.float32 or table.shape[1] % WIDTH or not table.is_contiguous():
        raise ValueError(f"table has to be contiguous, fp32, and a multiple of {WIDTH} wide.")
    if rows.dtype != torch.int64 or not rows.is_contiguous():
        raise ValueError("rows has to be contiguous and int64.")
    sums = torch.empty(-(-len(rows) // AT_ONCE), dtype=torch.float64)
    loaded.gs_read_rows(
        _CALL.pack(
            table.data_ptr(), rows.data_ptr(), sums.data_ptr(), len(rows), table.shape[1], torch.get_num_threads()
        )
    )
    return float(sums.sum())
