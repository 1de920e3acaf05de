"""The stages as operators of torch, `torch.ops.geosparse_triton.NAME`, opaque to the graphs that torch builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import page_sums, stages

STAGES: tuple[Callable[..., Any], ...] = (
    stages.score_pages,
    stages.score_tokens,
    stages.select,
    stages.list_pages,
    stages.list_tokens,
    stages.attend,
    page_sums.spread_pages,
)


def _operator(stage: Callable[..., Any]) -> Any:
    """`stage` as an operator; without data it only makes tensors of the right shapes, as its kernels are not run."""
    made = torch.library.custom_op(f"geosparse_triton::{stage.__name__}", stage, mutates_args=())
    made.register_fake(stage)
    return made


_operators = {stage: _operator(stage) for stage in STAGES}


def operator(stage: Callable[..., Any], like: torch.Tensor) -> Callable[..., Any]:
    """`stage` itself, or the operator where a graph is being built or tensors like `like` hold no data.

    An operator costs tens of microseconds more a call than the function.
    """
    symbolic = torch.compiler.is_compiling() or type(like) is not torch.Tensor
    return _operators[stage] if symbolic else stage
