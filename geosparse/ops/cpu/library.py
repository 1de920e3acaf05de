"""The compiled kernels: found, loaded, and their calls described to ctypes.

The shared library is built when the package is installed. It holds OpenMP code but is not linked to an OpenMP
library: its symbols come from the one that torch has loaded, so that both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path

import torch

ABI = 11
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


# DecodeCall in calls.h, packed by `decode`: 15 pointers, 24 whole numbers, the factors of the logits.
DECODE_CALL = struct.Struct("=15Q24q2d")


def _fields(pointers: str, numbers: str, factors: str = "scaling softcap") -> list[tuple[str, type]]:
    """Pointers, then whole numbers, then factors (of the logits): 8 bytes each."""
    return [
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int64) for name in numbers.split()),
        *((name, ctypes.c_double) for name in factors.split()),
    ]


class WeighCall(ctypes.Structure):
    """Mirrors WeighCall in geosparse.cpp."""

    _fields_ = _fields(
        "packed scores q k v out missing kept n_keep tails selectors first mask sink",
        "batch heads kv_heads queries keys dim value_dim q_batch q_head q_row k_batch k_head k_row v_batch v_head "
        "v_row out_batch out_head mask_batch mask_row n_batch n_head n_row window threads",
    )


class SeparateCall(ctypes.Structure):
    """Mirrors SeparateCall in geosparse.cpp."""

    _fields_ = _fields(
        "square along size length picked most clear inversions outer inner",
        "rows tokens budget cosine",
        "step floor",
    )


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built or do not load here (see `load_error`)."""
    return _load()[0]


def load_error() -> str:
    """Why `library()` is None, in a few words; empty where it is not."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        return None, "not built: no C++ compiler when geosparse was installed"
    try:
        loaded = ctypes.CDLL(str(found[0]))
        loaded.gs_abi.restype = loaded.gs_isa.restype = loaded.gs_set_isa.restype = ctypes.c_int64
        loaded.gs_set_isa.argtypes = [ctypes.c_int64]
        loaded.gs_decode.restype = loaded.gs_product.restype = loaded.gs_norm.restype = ctypes.c_int64
        loaded.gs_decode.argtypes = loaded.gs_product.argtypes = loaded.gs_norm.argtypes = (
            loaded.gs_read_rows.argtypes
        ) = [ctypes.c_char_p]
        loaded.gs_read_rows.restype = None
        loaded.gs_weigh.argtypes = loaded.gs_prefill.argtypes = loaded.gs_separate.argtypes = [ctypes.c_void_p]
        loaded.gs_weigh.restype = loaded.gs_prefill.restype = loaded.gs_separate.restype = None
    except (OSError, AttributeError) as error:
        return None, f"does not load: {error}"
    if loaded.gs_abi() != ABI:
        return None, "built from another version of geosparse: install it again"
    return loaded, ""


def isa() -> str:
    """The instruction set in use, a name in ISAS; "none" without the kernels."""
    loaded = library()
    return "none" if loaded is None else ISAS[loaded.gs_isa()]
