"""Paired statistics against what is known of them."""

from __future__ import annotations

import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval.harness.paired import mcnemar, paired, recovery


@given(won=st.integers(0, 60), lost=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    expected = scipy.stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected)


def test_paired_differences() -> None:
    dense, variant = [1.0, 0.0, 1.0, 1.0] * 5, [1.0, 1.0, 0.0, 1.0] * 5
    found = paired(dense, variant, "accuracy")
    assert found is not None
    assert (found.difference, found.changed, found.mcnemar) == (0.0, 10, 1.0)
    assert found.interval[0] < 0 < found.interval[1]
    assert paired(dense, dense, "accuracy").interval is None
    assert paired([], [], "accuracy") is None


def test_intervals_of_accuracies_are_possible_and_never_points() -> None:
    assert paired([1.0, 1.0], [0.0, 1.0], "accuracy").interval == (-1.0, 1.0)
    assert paired([1.0, 1.0], [0.0, 0.0], "accuracy").interval is None


def test_few_samples_have_the_wider_interval_of_student() -> None:
    found = paired([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "nll")
    half = scipy.stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert found.mcnemar is None


def test_recovery() -> None:
    assert recovery(0.5, 0.4, "accuracy", True) == pytest.approx(0.8)
    assert recovery(2.0, 2.1, "nll", False) == pytest.approx(math.exp(-0.1))
    assert recovery(20.0, 25.0, "perplexity", False) == pytest.approx(0.8)
    assert recovery(0.0, 0.4, "accuracy", True) is None
    assert recovery(3.0, 4.0, "other", None) is None
