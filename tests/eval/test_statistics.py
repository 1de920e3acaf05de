"""Rank correlation against its definition, and intervals that mean something."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import bootstrap, ranks, spearman


@given(st.lists(st.integers(0, 6), min_size=3, max_size=30))
@settings(max_examples=40)
def test_ranks_share_ties_and_keep_their_sum(numbers):
    values = torch.tensor(numbers, dtype=torch.float64)
    found = ranks(values)
    assert float(found.sum()) == pytest.approx(len(numbers) * (len(numbers) + 1) / 2)
    for value, rank in zip(numbers, found.tolist(), strict=True):
        below, same = sum(n < value for n in numbers), numbers.count(value)
        assert rank == below + (same + 1) / 2


def test_spearman_sees_order_only_and_leaves_out_what_is_not_known():
    first = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan])
    assert spearman(first, first.exp()) == pytest.approx(1.0)
    assert spearman(first, -first) == pytest.approx(-1.0)
    # The difference formula without ties: 1 - 6 * (1 + 1) / (4 * 15).
    assert spearman(first[:4], torch.tensor([2.0, 1.0, 3.0, 4.0])) == pytest.approx(0.8)
    assert math.isnan(spearman(first[:4], torch.ones(4)))
    assert math.isnan(spearman(first[:2], first[:2]))


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
