"""The smallest budget whose measured loss increase is within a tolerance, verified on text that was not searched on.

The loss increase is relative: (sparse NLL - dense NLL) / dense NLL of each window. Search: bisection of mean_keep, in
log, until the upper limit for a new window of the search text is within the tolerance. Verification: the same limit on
windows never used before; where it is exceeded the budget grows, and other windows verify it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError
from ..utils.bounds import as_number
from ..utils.intervals import mean_interval, student_quantile
from .loss import sparse_nll, token_nll

LEVEL = 0.95
RESOLUTION = 1.05
"""Bisection ends when the budgets that are and are not within the tolerance differ by this factor."""
GROWTH = 1.25
"""By how much a budget that fails its verification grows."""
ATTEMPTS = 4
FEWEST_WINDOWS = 4


class Measured(NamedTuple):
    """Relative loss increases of single windows, and what they say of the next one."""

    increases: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self.increases)

    @property
    def limit(self) -> float:
        """The one-sided upper limit at `LEVEL` for one new window: Student's prediction limit.

        Texts differ more than windows of one text do; a limit for the mean of many windows would not hold on the next.
        """
        count = len(self.increases)
        return self.mean + student_quantile(LEVEL, count - 1) * stdev(self.increases) * math.sqrt(1 + 1 / count)


class Trial(NamedTuple):
    """One budget tried."""

    mean_keep: float
    measured: Measured


def plan_within(
    model: Any,
    make: Callable[[float], Plan],
    tolerance: float,
    search: torch.Tensor,
    verify: torch.Tensor,
    *,
    show_progress: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> Plan:
    """The plan of the smallest mean_keep within `tolerance`.

    Args:
        model: The model, not sparsified.
        make: From a mean_keep to a plan, e.g. `lambda n: make_plan(profile, n)`.
        tolerance: Of the relative loss increase, e.g. 0.01.
        search: `[W, L]` token windows to search on, 4 or more.
        verify: `[W', L]` windows of other text, 4 or more: the first half verifies, the rest serves where that fails.
        show_progress: Progress bars on a terminal.
        say: Told of every budget that is tried.

    Returns:
        The plan; `verified` holds the tolerance, mean increase, its 95 % interval, the limit, how many windows, how
        many budgets failed, and the trials of the search.

    Raises:
        GeosparseError: No budget is within the tolerance, or there are too few windows.
    """
    tolerance = as_number("tolerance", tolerance)
    if not 0 < tolerance < math.inf:
        raise GeosparseError(f"The tolerance is a relative loss increase above 0, e.g. 0.01, found {tolerance:g}.")
    for what, windows in (("search", search), ("verification", verify)):
        if len(windows) < FEWEST_WINDOWS:
            raise GeosparseError(
                f"A tolerance needs {FEWEST_WINDOWS} windows of {what} text or more, found {len(windows)}: give "
                "longer text or a smaller length."
            )
    length = search.shape[1]
    dense = token_nll(model, search, "dense", show_progress)
    trials: list[Trial] = []

    def passes(mean_keep: float) -> bool:
        trials.append(Trial(mean_keep, _measure(model, make(mean_keep), search, dense, show_progress)))
        measured = trials[-1].measured
        say(f"mean N {mean_keep:.1f}: {measured.mean:+.3%}, limit {measured.limit:+.3%} on the search text")
        return measured.limit <= tolerance

    plan = _search(passes, float(length))
    return _verified(model, make, tolerance, plan, length, verify, trials, show_progress, say)


def _search(passes: Callable[[float], bool], most: float) -> float:
    """The smallest budget that passes, within RESOLUTION; from 32 by factors of 2 to a bracket, then by bisection."""
    high = min(32.0, most)
    low = 0.0
    while not passes(high):
        if high >= most:
            return most
        low, high = high, min(2 * high, most)
    while not low and high > 1:
        middle = max(1.0, high / 2)
        if passes(middle):
            high = middle
        else:
            low = middle
    while low and high / low > RESOLUTION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _verified(
    model: Any,
    make: Callable[[float], Plan],
    tolerance: float,
    mean_keep: float,
    length: int,
    windows: torch.Tensor,
    trials: Sequence[Trial],
    show_progress: bool,
    say: Callable[[str], object],
) -> Plan:
    """The plan at `mean_keep` or, as long as its verification fails, at more."""
    parts = _parts(windows)
    for failed, part in enumerate(parts):
        plan = make(mean_keep)
        measured = _measure(model, plan, part, token_nll(model, part, "dense", show_progress), show_progress)
        say(f"mean N {mean_keep:.1f}: {measured.mean:+.3%}, limit {measured.limit:+.3%} on text never used before")
        if measured.limit <= tolerance:
            verified = {
                "tolerance": tolerance,
                "increase": measured.mean,
                "interval": list(mean_interval(measured.increases, LEVEL) or ()),
                "limit": measured.limit,
                "windows": len(part),
                "length": windows.shape[1],
                "failed": failed,
                "search": [
                    {"mean_keep": t.mean_keep, "increase": t.measured.mean, "limit": t.measured.limit} for t in trials
                ],
            }
            return replace(plan, budget={"tolerance": tolerance}, verified=verified)
        if failed + 1 < len(parts):
            say(f"the verification failed: the budget grows from {mean_keep:.1f}")
        mean_keep = min(mean_keep * max(GROWTH, math.sqrt(measured.limit / tolerance)), float(length))
    raise GeosparseError(
        f"No budget up to {mean_keep:.0f} was verified within {tolerance:g} in {len(parts)} attempts, the last at "
        f"{measured.limit:.2g}: give a larger tolerance, or text that is more like the calibration."
    )


def _parts(windows: torch.Tensor) -> list[torch.Tensor]:
    """Disjoint parts, one per attempt: half of the windows first; every other window, so that each spans the text."""
    parts: list[torch.Tensor] = []
    while len(windows) >= 2 * FEWEST_WINDOWS and len(parts) < ATTEMPTS - 1:
        parts.append(windows[::2])
        windows = windows[1::2]
    return [*parts, windows]


def _measure(model: Any, plan: Plan, windows: torch.Tensor, dense: torch.Tensor, show_progress: bool) -> Measured:
    sparse = sparse_nll(model, plan, windows, f"mean N {plan.mean_keep:.1f}", show_progress)[0].double().mean(1)
    base = dense.double().mean(1)
    return Measured(tuple(((sparse - base) / base).tolist()))
