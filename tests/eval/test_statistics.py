"""Correlation and agreement against their definitions, and intervals that mean something."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import bootstrap, bootstrap_interval, cohen_kappa, spearman
from geosparse import GeosparseError


def mean_ranks(numbers):
    """Ranks by their definition, ties at their mean rank."""
    return [sum(n < value for n in numbers) + (numbers.count(value) + 1) / 2 for value in numbers]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=30))
@settings(max_examples=40)
def test_spearman_is_the_correlation_of_mean_ranks(pairs):
    first, second = (list(numbers) for numbers in zip(*pairs, strict=True))
    found = spearman(torch.tensor(first).double(), torch.tensor(second).double())
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(found)
    else:
        x, y = (np.array(mean_ranks(numbers)) - (len(numbers) + 1) / 2 for numbers in (first, second))
        assert found == pytest.approx(float(x @ y / math.sqrt((x @ x) * (y @ y))), abs=1e-12)


def test_spearman_sees_order_only_and_leaves_out_what_is_not_known():
    first = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan])
    assert spearman(first, first.exp()) == pytest.approx(1.0)
    assert spearman(first, -first) == pytest.approx(-1.0)
    # The difference formula without ties: 1 - 6 * (1 + 1) / (4 * 15).
    assert spearman(first[:4], torch.tensor([2.0, 1.0, 3.0, 4.0])) == pytest.approx(0.8)
    assert math.isnan(spearman(first[:4], torch.ones(4)))
    assert math.isnan(spearman(first[:2], first[:2]))
    assert math.isnan(spearman(first[:0], first[:0]))


def test_kappa_is_cohens():
    # The worked example of 50 proposals, 35 agreed upon: p_o = 0.7, p_e = 0.5.
    first = torch.tensor([1] * 25 + [0] * 25)
    second = torch.tensor([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1.0
    assert cohen_kappa(torch.zeros(3), torch.zeros(3)) == 1.0
    assert cohen_kappa(torch.tensor([0, 1]), torch.tensor([1, 0])) == pytest.approx(-1.0)
    with pytest.raises(GeosparseError, match="shapes"):
        cohen_kappa(first, second[:4])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=60)
def test_kappa_follows_its_formula(pairs):
    first, second = (list(labels) for labels in zip(*pairs, strict=True))
    observed = sum(a == b for a, b in pairs) / len(pairs)
    expected = sum(first.count(label) * second.count(label) for label in range(4)) / len(pairs) ** 2
    right = 1.0 if expected == 1 else (observed - expected) / (1 - expected)
    assert cohen_kappa(torch.tensor(first), torch.tensor(second)) == pytest.approx(right, abs=1e-12)


def test_the_bootstrap_interval_covers_the_mean_of_a_sample():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for seed in range(60):
        sample = torch.randn(40, generator=generator)
        low, high = bootstrap(lambda rows, sample=sample: float(sample[rows].mean()), 40, seed)
        inside += low <= 0.0 <= high
    # 60 intervals at 95 %: fewer than 50 within has a probability below 1e-3.
    assert inside >= 50
    assert bootstrap(lambda rows: 0.0, 2, 0) is None
    assert bootstrap(lambda rows: math.nan, 9, 0) is None


def test_the_bootstrap_is_that_of_scipy_but_for_its_draws():
    sample = torch.randn(60, generator=torch.Generator().manual_seed(1)).double()
    mean = scipy.stats.bootstrap((sample.numpy(),), np.mean, method="percentile", n_resamples=9999, rng=0)
    width = mean.confidence_interval.high - mean.confidence_interval.low
    for low, high in (
        bootstrap(lambda rows: float(sample[rows].mean()), 60, 0),
        bootstrap_interval(sample[:, None]),
    ):
        assert float(low) == pytest.approx(mean.confidence_interval.low, abs=0.08 * width)
        assert float(high) == pytest.approx(mean.confidence_interval.high, abs=0.08 * width)


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
