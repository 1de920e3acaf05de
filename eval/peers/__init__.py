"""Baselines: the same model, text and number of kept tokens, in an environment of their own."""

from __future__ import annotations

from collections.abc import Callable

from geosparse.errors import GeosparseError, did_you_mean
from geosparse.plan import Plan

from ..methods import Method
from .presses import NEEDS_PLAN, PRESSES, Press
from .skip_softmax import NAME, SkipSoftmax


def peer(id: str, name: str, density: float, plan: Callable[[], Plan]) -> Method:
    """The method of a variant that is not ours.

    Args:
        id: The variant's.
        name: A press of kvpress, or modelopt's "skip_softmax".
        density: The share of the context that it keeps.
        plan: Makes the plan of ours whose export a press may be fed with.

    Raises:
        GeosparseError: An unknown name.
    """
    if name == NAME:
        return SkipSoftmax(id, density)
    if name not in PRESSES:
        raise GeosparseError(f"Unknown peer {name!r}: {did_you_mean(name, (*PRESSES, NAME))}")
    return Press(id, name, density, plan() if name == NEEDS_PLAN else None)


__all__ = ["NEEDS_PLAN", "peer"]
