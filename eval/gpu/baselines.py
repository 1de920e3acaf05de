"""Dense attention as others have it: SDPA's flash backend, FlexAttention, and flash-attn where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from .shapes import ModelShape

Baseline = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def baselines(shape: ModelShape, context: int) -> dict[str, Baseline]:
    """By name, functions of query `[B, Hq, D]`, keys and values `[B, Hkv, S, D]`: one query per row, mask-free."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    grouped = shape.heads != shape.kv_heads

    def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(query[:, :, None], key, value, enable_gqa=grouped)

    known: dict[str, Baseline] = {"sdpa flash": sdpa, "flex attention": _flex(grouped)}
    if find_spec("flash_attn") is not None:
        known["flash-attn"] = _flash_attn()
    return known


def _flex(grouped: bool) -> Baseline:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda query, key, value: compiled(query[:, :, None], key, value, enable_gqa=grouped)


def _flash_attn() -> Baseline:
    from flash_attn import flash_attn_with_kvcache

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = flash_attn_with_kvcache(query[:, None], key.transpose(1, 2), value.transpose(1, 2))
        return output

    return run


def dense_prefill(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention `[B, Hq, T, D]` by SDPA's flash backend, or by flash-attn where it is installed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_func

        output: torch.Tensor = flash_attn_func(*(part.transpose(1, 2) for part in (query, key, value)), causal=True)
        return output.transpose(1, 2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
