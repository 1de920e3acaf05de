"""Numbers within bounds: what an argument or a field may be, said in one sentence that names it."""

from __future__ import annotations

import math
import operator
from typing import Any

from ..errors import GeosparseError
from .files import MAX_COUNT

MAX_BYTES = 1e18
"""More than any cache has."""
MAX_TOLERANCE = 1000.0
"""Of a relative loss increase: far more than the loss of random guesses."""


def check_whole(name: str, value: Any, least: int | None = None, most: int = MAX_COUNT) -> int:
    """`value` as an int.

    Args:
        name: Of the argument, field or option, for the error.
        value: Anything that Python can take for an index, or a float without a fraction; bool is none.
        least, most: Smallest (None: any) and largest accepted value.

    Raises:
        GeosparseError: It is no whole number, or out of bounds.
    """
    number = as_whole(value)
    if number is None:
        bounds = "" if least is None else f" from {least}"
        raise GeosparseError(f"{name} must be a whole number{bounds}, found {value!r}.")
    if reason := whole_fault(number, least, most):
        raise GeosparseError(f"{name} {reason}, found {number}.")
    return number


def as_whole(value: Any) -> int | None:
    """`value` as an int where it is a whole number; None for everything else, bool too."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def as_number(name: str, value: Any) -> float:
    """`value` as a float, which may be NaN or infinite.

    Raises:
        GeosparseError: It is no number, or none that fp64 holds.
    """
    try:
        if not isinstance(value, bool | str | bytes):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise GeosparseError(f"{name} must be a number, found {str(value)[:40]!r}.")


def check_number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, most: float = MAX_COUNT
) -> float:
    """`value` as a float.

    Args:
        name: Of the argument, field or option, for the error.
        value: A number; bool is none.
        least: Smallest accepted value, or
        above: what it must be larger than.
        most: Largest accepted value.

    Raises:
        GeosparseError: It is no number, not finite, or out of bounds.
    """
    number = as_number(name, value)
    if reason := number_fault(number, least, above, most):
        raise GeosparseError(f"{name}: {reason}, found {number:g}.")
    return number


def whole_fault(number: int, least: int | None, most: int) -> str:
    """Why a whole number is out of bounds, as a clause; empty where it is not."""
    if least is not None and number < least:
        return f"must be at least {least}"
    return f"must be at most {most}" if number > most else ""


def number_fault(number: float, least: float | None, above: float | None, most: float) -> str:
    """Why a number is not finite or out of bounds, as a clause; empty where it is neither."""
    too_large = math.isfinite(number) and number > most
    too_small = (above is not None and number <= above) or (least is not None and number < least)
    if math.isfinite(number) and not too_large and not too_small:
        return ""
    low = f"from {least:g}" if above is None else f"above {above:g}"
    # A bound that only keeps absurd numbers out says nothing about those below the others.
    return f"give a finite number {low}" + (f", up to {most:g}" if too_large or most <= 1 else "")
