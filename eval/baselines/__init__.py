"""Baselines: the same model, text and number of kept tokens, in an environment of their own."""

from __future__ import annotations

from collections.abc import Callable

from geosparse.artifacts.plan import Plan
from geosparse.errors import GeosparseError, did_you_mean

from ..harness.methods import Method
from .presses import PLAN_PRESS, PRESSES, Press
from .skip_softmax import SKIP_SOFTMAX, SkipSoftmax


def baseline(id: str, name: str, density: float, plan: Callable[[], Plan]) -> Method:
    """The method of a variant that is not ours.

    Args:
        id: The variant's.
        name: A press of kvpress, or modelopt's "skip_softmax".
        density: The share of the context that it keeps.
        plan: Makes the plan of ours whose export a press may be fed with.

    Raises:
        GeosparseError: An unknown name.
    """
    if name == SKIP_SOFTMAX:
        return SkipSoftmax(id, density)
    if name not in PRESSES:
        raise GeosparseError(f"Unknown baseline {name!r}: {did_you_mean(name, (*PRESSES, SKIP_SOFTMAX))}")
    return Press(id, name, density, plan() if name == PLAN_PRESS else None)


__all__ = ["PLAN_PRESS", "baseline"]
