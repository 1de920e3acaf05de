"""Exact: every key is scored."""

from __future__ import annotations

from .rule import selector
from .view import Choice, SelectorView


@selector("the N highest scores, exactly", ranks="scores", kernel=0, prefill_kernel=True)
def topn(view: SelectorView) -> Choice:
    """The N tokens that dense attention weighs most."""
    return view.highest(view.scores)
