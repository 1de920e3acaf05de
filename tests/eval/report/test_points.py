"""Axes and names of plots, from a few points."""

import pytest

from eval.report.points import Panel, Point, log_range


def panel(*xs):
    points = tuple(Point("fisher", x, 1.0, None, None, ()) for x in xs)
    return Panel("title", "density", "recovery", points, log_x=True, is_loss=False)


def test_a_logarithmic_axis_holds_all_marks_with_room():
    low, high = log_range(panel(0.01, 1.0))
    assert low < -2
    assert high > 0


def test_equal_marks_still_span_a_factor_of_four():
    low, high = log_range(panel(0.1, 0.1))
    assert 10 ** (high - low) == pytest.approx(10**0.6)
    assert (low + high) / 2 == pytest.approx(-1.0)
