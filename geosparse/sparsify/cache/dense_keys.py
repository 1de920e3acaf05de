"""Keys that a `SparseCache` hands to a dense model on the CPU: single queries over them go to geosparse's kernel.

transformers' SDPA attention ends in one call of torch's function. A tensor may answer such a call itself
(`__torch_function__`), so nothing is patched: the model and torch stay as they are, and everything else that is done
with these keys is done with a plain tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ...hf.dense import decode_dense

SDPA = torch.nn.functional.scaled_dot_product_attention


class CachedKeys(torch.Tensor):
    """Keys `[B, Hkv, S, D]`; a view of the tensor that it is made of. Copies and pickles are plain tensors."""

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = copy.deepcopy(self.as_subclass(torch.Tensor), memo)
        return copied


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
    """What SDPA would return where the queries of a row all see the same keys; None for any other call.

    transformers asks for that in two ways: one query per row, or, where padding makes a mask, the query heads of a KV
    head in the place of queries.
    """
    if query.dim() != 4 or dropout_p or is_causal or query.dtype != key.dtype:
        return None
    batch, heads, queries, dim = query.shape
    if heads % key.shape[1] or (heads != key.shape[1] and not enable_gqa):
        return None
    if queries != 1 and (attn_mask is None or attn_mask.shape[-2] != 1):
        return None
    single = query.reshape(batch, heads * queries, 1, dim)
    key = key.as_subclass(torch.Tensor)
    output = decode_dense(single, key, value, attn_mask, dim**-0.5 if scale is None else scale)
    return None if output is None else output.view(batch, heads, queries, -1)


def serve_dense(key: torch.Tensor) -> torch.Tensor:
    """`key` as CachedKeys where that can help: on the CPU, outside of a compiled graph and of autograd."""
    plain = key.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_grad_enabled()
    return key if plain else key.as_subclass(CachedKeys)
