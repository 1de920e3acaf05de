"""The one dispatch point for attention: `reference` is the truth, the others are held against it."""

from __future__ import annotations

from collections.abc import Callable

from .chunked import chunked_attention
from .reference import causal_mask, reference_attention
from .select import top_n
from .types import TAILS, Attended, Tail

# Name -> attention path; all take the arguments of `reference_attention`.
PATHS: dict[str, Callable[..., Attended]] = {"reference": reference_attention, "torch": chunked_attention}

__all__ = ["PATHS", "TAILS", "Attended", "Tail", "causal_mask", "chunked_attention", "reference_attention", "top_n"]
