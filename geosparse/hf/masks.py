"""A mask that is stored only where somebody looks into it: what geosparse hands out through AttentionMaskInterface.

Most models pass their mask on untouched, and a Span says all of it in a few numbers. Some cut it to the last queries,
index it, pad it or combine it with one of their own. For these it is a tensor like any other, made when it is touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ..ops import Span


class SpanMask(torch.Tensor):
    """`[B, 1, T, S]`, bool or added to the logits; every operation but a move between devices stores it first."""

    span: Span
    lengths: tuple[int, int]

    @staticmethod
    def __new__(
        cls, span: Span, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str
    ) -> SpanMask:
        """A mask that is not stored.

        Args:
            span: What is visible.
            shape: `[B, 1, T, S]`.
            dtype: bool, or that of a mask that is added to the logits.
            device: Where it would lie.
        """
        mask: SpanMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device(device))
        mask.span, mask.lengths = span, shape[2:]
        return mask

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What the operation gives for the stored mask."""
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") in (None, args[0].dtype):
            device = kwargs.get("device") or args[0].device
            return cls(args[0].span, tuple(args[0].shape), args[0].dtype, device)
        return function(*tree_map_only(cls, cls.stored, args), **tree_map_only(cls, cls.stored, kwargs))

    def __repr__(self) -> str:  # type: ignore[override]
        """What it stands for."""
        return f"SpanMask({self.span}, shape={list(self.shape)}, dtype={self.dtype})"

    def stored(self) -> torch.Tensor:
        """The mask as a plain tensor `[B, 1, T, S]`."""
        batch, _, queries, keys = self.shape
        seen = self.span.mask(queries, keys, self.device).expand(batch, 1, queries, keys)
        return seen if self.dtype == torch.bool else added(seen, self.dtype)

    def of(self, queries: int, keys: int) -> Span | torch.Tensor | None:
        """What the attention of `queries` over `keys` sees: a Span, or None for plain causality; as a plain tensor
        where it was made for other lengths."""
        if self.lengths != (queries, keys):
            return self.stored()
        return None if self.span.is_causal else self.span


def added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as what is added to the logits: 0 where something is seen, the least number of `dtype` elsewhere."""
    least = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=seen.device)
    return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), least)
