"""Budgets that grow with what a query sees: the formula, its two implementations, and its limits."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import Budgets, budgets_of_row
from geosparse.ops.budgets import MOST

COUNTS = st.lists(st.integers(1, 5000), min_size=1, max_size=6)


@given(COUNTS, st.integers(1, 4000), st.lists(st.integers(0, 40000), min_size=1, max_size=5), st.data())
@settings(max_examples=200)
def test_tensor_and_row_agree_with_the_formula(n_keep, reference, visible, data):
    powers = data.draw(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 2), min_size=len(n_keep), max_size=len(n_keep))
    )
    budgets = Budgets(torch.tensor(n_keep), torch.tensor(powers, dtype=torch.float64), reference)
    found = budgets.at(torch.tensor(visible))
    assert found.shape == (len(n_keep), len(visible))
    assert found.dtype == torch.int64
    for place, seen in enumerate(visible):
        assert budgets_of_row(tuple(n_keep), tuple(powers), reference, seen) == tuple(found[:, place].tolist())
        for head, (n, power) in enumerate(zip(n_keep, powers, strict=True)):
            exact = min(n * max(1.0, seen / reference) ** power, MOST)
            # Half a token either way, and what fp64 knows of a power.
            assert abs(int(found[head, place]) - exact) <= 0.5 + 1e-8 + 1e-12 * exact
            assert int(found[head, place]) >= n


def test_halves_round_up_whatever_the_last_bit_of_a_power():
    budgets = Budgets(torch.tensor([1, 3, 5]), torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64), 2)
    assert budgets.at(torch.tensor([1, 2, 3, 8])).tolist() == [[1, 1, 2, 4], [3, 3, 4, 6], [5, 5, 6, 10]]
    for seen in range(2, 2000):
        root = Budgets(torch.tensor([1]), torch.tensor([0.5], dtype=torch.float64), 2).at(torch.tensor(2 * seen**2))
        assert int(root) == seen


def test_a_budget_beyond_every_context_stays_a_number():
    budgets = Budgets(torch.tensor([2**31 - 1]), torch.tensor([4.0], dtype=torch.float64), 1)
    assert budgets.at(torch.tensor([10**6])).tolist() == [[MOST]]
    assert budgets_of_row((2**31 - 1,), (4.0,), 1, 10**6) == (MOST,)


def test_without_growth_they_are_what_they_are():
    budgets = Budgets(torch.tensor([[1, 2], [3, 4]]))
    assert torch.equal(budgets.at(torch.tensor([5, 10**6])), budgets.n_keep[..., None].expand(2, 2, 2))
    assert torch.equal(budgets.of(1).at(torch.tensor(7)), torch.tensor([3, 4]))
    assert budgets_of_row((3, 4), None, 1, 10**6) == (3, 4)


@given(st.integers(1, 200), st.floats(0, 1), st.integers(1, 500), st.integers(1, 5000))
@settings(max_examples=100)
def test_more_tokens_never_lower_a_budget_and_small_powers_never_outgrow_them(n, power, reference, seen):
    budgets = Budgets(torch.tensor([n]), torch.tensor([power], dtype=torch.float64), reference)
    now, next_ = budgets.at(torch.tensor([seen, seen + 1]))[0].tolist()
    assert now <= next_
    assert now <= math.ceil(n * max(1, seen / reference)) + 1
