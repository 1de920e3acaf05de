"""The call of `call.c`, which a decode step makes without Python, where it was built and torch has what it needs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..types import Attended
from .library import library

Direct = Callable[..., Attended | None]


@cache
def direct() -> Direct | None:
    """`decode` of call.c, bound to the kernels and to torch; None where `decode` of decode.py makes the call.

    It needs DLPack's exchange table, which torch has from 2.10 on, and Python's headers when geosparse is installed.
    """
    loaded = library()
    exchange: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if loaded is None or exchange is None:
        return None
    try:
        from . import _call  # type: ignore[attr-defined]
    except ImportError:
        return None
    address = ctypes.cast(loaded.gs_decode, ctypes.c_void_p).value
    found: Direct = _call.decode
    return found if _call.bind(exchange, address, torch.empty_like, Attended) else None
