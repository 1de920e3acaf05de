"""Student's t against published quantiles and against its finite series, and intervals of few values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosparse.utils.intervals import mean_interval, student_quantile

# Two-sided 95 % and 99 %, from the tables in any textbook.
PUBLISHED = {
    0.975: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 15: 2.131, 30: 2.042, 120: 1.980},
    0.995: {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 9: 3.250, 30: 2.750},
}


def series_cdf(t: float, freedom: int) -> float:
    """P(T <= t) by the finite series of Abramowitz and Stegun 26.7.3-4, which knows nothing of scipy."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    series = 0.0
    for k in range(1 + odd, freedom, 2):
        series += term
        term *= cosine * cosine * k / (k + 1)
    inside = (2 / math.pi) * (theta + math.sin(theta) * series) if odd else math.sin(theta) * series
    return 0.5 + 0.5 * inside


@pytest.mark.parametrize(
    ("level", "freedom", "quantile"), [(p, f, q) for p, t in PUBLISHED.items() for f, q in t.items()]
)
def test_quantiles_are_the_published_ones(level, freedom, quantile):
    assert student_quantile(level, freedom) == pytest.approx(quantile, abs=6e-4)


@given(st.floats(0.51, 0.9999), st.integers(1, 200))
def test_quantile_inverts_the_distribution(probability, freedom):
    assert series_cdf(student_quantile(probability, freedom), freedom) == pytest.approx(probability, abs=1e-12)


def test_interval_of_a_worked_example():
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305284263 * math.sqrt(5 / 3) / 2
    assert low == pytest.approx(2.5 - half, rel=1e-12)
    assert high == pytest.approx(2.5 + half, rel=1e-12)


def test_one_value_has_no_interval():
    assert mean_interval([]) is None
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)
