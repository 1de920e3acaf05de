"""Student's t against published quantiles, and intervals of few values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geosparse.statistics import bootstrap_interval, mean_interval, student_cdf, student_quantile

# Two-sided 95 % and 99 %, from the tables in any textbook.
PUBLISHED = {
    0.975: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 15: 2.131, 30: 2.042, 120: 1.980},
    0.995: {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 9: 3.250, 30: 2.750},
}


@pytest.mark.parametrize(
    ("level", "freedom", "quantile"), [(p, f, q) for p, t in PUBLISHED.items() for f, q in t.items()]
)
def test_quantiles_are_the_published_ones(level, freedom, quantile):
    assert student_quantile(level, freedom) == pytest.approx(quantile, abs=6e-4)


@given(st.floats(-50, 50), st.integers(1, 200))
def test_distribution_is_symmetric_and_rises(t, freedom):
    assert student_cdf(t, freedom) + student_cdf(-t, freedom) == pytest.approx(1.0, abs=1e-12)
    assert student_cdf(t, freedom) <= student_cdf(t + 0.5, freedom) + 1e-12


@given(st.floats(0.51, 0.9999), st.integers(1, 200))
def test_quantile_inverts_the_distribution(probability, freedom):
    assert student_cdf(student_quantile(probability, freedom), freedom) == pytest.approx(probability, abs=1e-9)


def test_quantiles_equal_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed: nothing to compare with")
    for freedom in (1, 2, 3, 8, 31, 100):
        for probability in (0.6, 0.9, 0.975, 0.999):
            assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-8)


def test_interval_of_a_worked_example():
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert low == pytest.approx(2.5 - half, abs=1e-5)
    assert high == pytest.approx(2.5 + half, abs=1e-5)


def test_one_value_has_no_interval():
    assert mean_interval([]) is None
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)


def test_the_bootstrap_over_documents_covers_their_mean():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(torch.randn(30, 2, generator=generator).double() + 1.0)
        hits += int(((low < 1) & (high > 1)).sum())
    # 400 intervals of 95 %; the percentile bootstrap of 30 documents is a little narrow.
    assert 0.88 <= hits / 400 <= 0.98


def test_the_bootstrap_resamples_whole_documents_and_leaves_nan_out():
    values = torch.tensor([[0.0, 5.0], [1.0, math.nan], [2.0, 5.0]])
    low, high = bootstrap_interval(values)
    assert (low[1], high[1]) == (5.0, 5.0)
    assert 0 <= low[0] < 1 < high[0] <= 2
    assert bootstrap_interval(values[:1]) is None
    assert torch.equal(bootstrap_interval(values, seed=3)[0], bootstrap_interval(values, seed=3)[0])
