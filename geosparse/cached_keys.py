"""Keys that a `SparseCache` hands to a dense model on the CPU: single queries over them go to geosparse's kernel.

transformers' SDPA attention ends in one call of torch's function. A tensor may answer such a call itself
(`__torch_function__`), so nothing is patched: the model and torch stay as they are, and everything else that is done
with these keys is done with a plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .dense import decode_dense

SDPA = torch.nn.functional.scaled_dot_product_attention


class CachedKeys(torch.Tensor):
    """Keys `[B, Hkv, S, D]`; a view of the tensor that it is made of."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """`func`, which is torch's; of all functions only SDPA is served otherwise, and that only where it can be."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is SDPA:
                output = _decode(*args, **kwargs)
                if output is not None:
                    return output
            return func(*args, **kwargs)


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """What SDPA would return of one query per row that sees every key; None for any other call."""
    if query.dim() != 4 or query.shape[2] != 1 or attn_mask is not None or dropout_p or is_causal:
        return None
    heads, kv_heads = query.shape[1], key.shape[1]
    if query.dtype != key.dtype or heads % kv_heads or (heads != kv_heads and not enable_gqa):
        return None
    return decode_dense(query, key, value, None, query.shape[-1] ** -0.5 if scale is None else scale)


def serve_dense(key: torch.Tensor) -> torch.Tensor:
    """`key` as CachedKeys where that can help: on the CPU, outside of a compiled graph and of autograd."""
    plain = key.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_grad_enabled()
    return key if plain else key.as_subclass(CachedKeys)
