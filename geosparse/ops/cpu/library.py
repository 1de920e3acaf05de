"""The compiled kernels: found, loaded, and their calls described to ctypes.

The shared library is built when the package is installed. It holds OpenMP code but is not linked to an OpenMP
library: its symbols come from the one that torch has loaded, so that both share one pool of threads.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...errors import GeosparseError

ABI = 13
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# Every kernel of kernels.cpp and what it takes: a packed call, or a structure.
KERNELS = {
    "gs_decode": ctypes.c_char_p,
    "gs_product": ctypes.c_char_p,
    "gs_norm": ctypes.c_char_p,
    "gs_read_rows": ctypes.c_char_p,
    "gs_prefill": ctypes.c_void_p,
    "gs_weigh": ctypes.c_void_p,
    "gs_separate": ctypes.c_void_p,
}
# enum Fault in kernels.cpp: what a kernel says of a call that it does not follow.
FAULTS = {
    2: "Its sizes do not fit together or are none that the kernel knows: check the shapes",
    3: "Every head keeps at least 1 token, and a budget is below 1: pass larger budgets",
    4: "A selector or kind is none that this kernel knows: choose another one",
    5: "A first visible key or a window is outside of the keys: check the mask",
    6: "A place is outside of the rows that it points into: check the indices",
}

# DecodeCall in calls.h, packed by `decode`: 16 pointers, 27 whole numbers, the factors of the logits.
DECODE_CALL = struct.Struct("=16Q27q2d")


def _fields(pointers: str, numbers: str, factors: str = "scaling softcap") -> list[tuple[str, type]]:
    """Pointers, then whole numbers, then factors (of the logits): 8 bytes each."""
    return [
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int64) for name in numbers.split()),
        *((name, ctypes.c_double) for name in factors.split()),
    ]


class WeighCall(ctypes.Structure):
    """Mirrors WeighCall in kernels.cpp."""

    _fields_ = _fields(
        "packed scores q k v out missing kept n_keep tails selectors first mask sink",
        "batch heads kv_heads queries keys dim value_dim q_batch q_head q_row k_batch k_head k_row v_batch v_head "
        "v_row out_batch out_head mask_batch mask_row n_batch n_head n_row window threads",
    )


class SeparateCall(ctypes.Structure):
    """Mirrors SeparateCall in kernels.cpp."""

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
        for name, takes in KERNELS.items():
            kernel = getattr(loaded, name)
            kernel.argtypes, kernel.restype = [takes], ctypes.c_int64
    except (OSError, AttributeError) as error:
        return None, f"does not load: {error}"
    if loaded.gs_abi() != ABI:
        return None, "built from another version of geosparse: install it again"
    return loaded, ""


def run(name: str, call: Any, dtype: torch.dtype) -> None:
    """Let the kernel `name` follow `call`, a packed call or the address of a structure, on tensors of `dtype`.

    Raises:
        GeosparseError: The call is none that can be followed; nothing was read or written.
        TypeError: The kernel was built without `dtype`.
    """
    loaded = library()
    assert loaded is not None
    fault = getattr(loaded, name)(call)
    if fault in FAULTS:
        raise GeosparseError(f"The CPU kernel {name.removeprefix('gs_')} refused a call. {FAULTS[fault]}.")
    if fault:
        raise TypeError(f"the CPU kernels of this machine do not know {dtype}")


def isa() -> str:
    """The instruction set in use, a name in ISAS; "none" without the kernels."""
    loaded = library()
    return "none" if loaded is None else ISAS[loaded.gs_isa()]
