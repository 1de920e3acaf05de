"""Calls that `fast_call.c` puts together without Python, where it was built and torch has what it needs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from ..spec import Attended
from .library import library


class Direct(NamedTuple):
    """Functions of fast_call.c: decode.py, linear.py and rms_norm.py in C, or None for tensors they are not for."""

    decode: Callable[..., Attended | None]
    product: Callable[..., torch.Tensor | None]
    norm: Callable[..., torch.Tensor | None]


@cache
def direct() -> Direct | None:
    """The functions of fast_call.c, bound to the kernels and to torch; None where Python puts the calls together.

    They need DLPack's exchange table, which torch has from 2.10 on, and Python's headers when geosparse is installed.
    """
    loaded = library()
    exchange: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if loaded is None or exchange is None:
        return None
    try:
        from . import _fast_call  # type: ignore[attr-defined]
    except ImportError:
        return None
    functions = loaded.gs_decode, loaded.gs_product, loaded.gs_norm
    kernels = (ctypes.cast(each, ctypes.c_void_p).value for each in functions)
    bound = _fast_call.bind(exchange, *kernels, torch.empty_like, torch.Tensor, torch.nn.Parameter, Attended)
    return Direct(_fast_call.decode, _fast_call.product, _fast_call.norm) if bound else None
