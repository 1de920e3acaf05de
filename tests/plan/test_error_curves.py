"""Curves pass through what was measured, and for convex curves the greedy order is the optimum."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import geosparse as gs
from geosparse.plan.error_curves import FINE_TOKENS, budgets_at_price, complete, convex_hull, marginal_gains, spend

from ..synthetic import synthetic

CURVES = st.integers(2, 12).flatmap(
    lambda length: st.lists(st.lists(st.floats(0, 1e3), min_size=length, max_size=length), min_size=1, max_size=4)
)


@given(st.integers(1, 3), st.integers(2, 6), st.data())
@settings(max_examples=80)
def test_on_convex_curves_spending_is_the_optimum(heads, length, data):
    row = st.lists(st.integers(0, 20), min_size=length - 1, max_size=length - 1)
    falls = torch.tensor([sorted(data.draw(row), reverse=True) for _ in range(heads)], dtype=torch.float64)
    curves = torch.cat([falls.sum(-1, keepdim=True), falls.sum(-1, keepdim=True) - falls.cumsum(-1)], dim=-1)
    total = data.draw(st.integers(heads, heads * length))
    found = spend(curves[None], total)[0].tolist()
    assert sum(found) == total
    options = [n for n in itertools.product(range(1, length + 1), repeat=heads) if sum(n) == total]

    def damage(budgets):
        return sum(curves[head, n - 1].item() for head, n in enumerate(budgets))

    assert damage(found) == pytest.approx(min(map(damage, options)), abs=1e-9)


@given(CURVES)
def test_hull_is_the_largest_convex_function_below(rows):
    curves = torch.tensor(rows, dtype=torch.float64)
    hull = convex_hull(curves)
    slack = 1e-9 * (1 + curves.max().item())
    assert (hull <= curves + slack).all()
    assert torch.equal(hull[:, [0, -1]], curves[:, [0, -1]])
    assert (hull.diff(n=2, dim=-1) >= -slack).all() if hull.shape[-1] > 2 else True
    assert torch.allclose(convex_hull(hull), hull, atol=slack)
    # Largest: at every place, some chord between two points of the curve touches it.
    places = range(curves.shape[1])
    for row, curve in enumerate(rows):
        for place in places:
            chords = [
                curve[left] + (curve[right] - curve[left]) * (place - left) / max(right - left, 1)
                for left in places[: place + 1]
                for right in places[place:]
            ]
            assert hull[row, place].item() == pytest.approx(min(chords), abs=slack)


def test_curves_pass_through_the_measurements_and_fall_to_zero_at_the_limit():
    profile = synthetic(limits=(16, 64))
    measured = profile.fisher("drop")
    curves = complete(measured, profile)
    assert curves.shape == (2, 4, 64)
    for column, budget in enumerate(profile.budgets):
        assert torch.allclose(curves[1, :, budget - 1], measured[1, :, column])
        if budget < 16:
            assert torch.allclose(curves[0, :, budget - 1], measured[0, :, column])
    # Between the last budget below the limit, 8, and the limit, 16: a line, not a plunge towards the zero at 16.
    assert torch.allclose(curves[0, :, 11], measured[0, :, 3] / 2)
    assert (curves[0, :, 15:] == 0).all()
    assert (curves[1, :, 63] == 0).all()
    assert (curves.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_very_short_window(limit):
    profile = synthetic(limits=(limit, 64))
    assert (complete(profile.fisher("drop"), profile)[0, :, limit - 1 :] == 0).all()
    assert gs.make_plan(profile, 20).n_keep[0].max() <= limit


class _Elements(TorchDispatchMode):
    """Counts the operators that ran and the elements that they made."""

    operators = elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        self.elements += sum(value.numel() for value in tree_leaves(out) if isinstance(value, torch.Tensor))
        return out


def test_the_work_of_a_plan_is_linear_in_heads_and_tokens():
    """No clock, as a busy machine would decide: some 90 elements for a head and token and 380 operators for a layer,
    whatever the size."""
    for heads, length in ((8, 2048), (32, 4096)):
        profile = synthetic(layers=32, heads=heads, length=length, budgets=tuple(2**power for power in range(11)))
        with _Elements() as made:
            plan = gs.make_plan(profile, 32)
        assert plan.n_keep.sum() == 32 * heads * 32
        assert made.elements < 128 * 32 * heads * length
        assert made.operators < 512 * 32


def test_the_coarse_hull_is_that_of_every_token_where_curves_are_power_laws():
    n = torch.arange(1, 1001, dtype=torch.float64)
    curves = torch.stack([100 * n**-power for power in (0.5, 1.0, 2.0)])[None]
    exact = curves[..., :-1] - curves[..., 1:]
    gains = marginal_gains(curves)
    assert torch.allclose(gains[..., : FINE_TOKENS - 1], exact[..., : FINE_TOKENS - 1], rtol=1e-9)
    assert torch.allclose(gains[..., FINE_TOKENS:], exact[..., FINE_TOKENS:], rtol=0.06)
    assert torch.allclose(gains.sum(-1), exact.sum(-1))
    for price in (1e-2, 1e-4):
        assert budgets_at_price(-gains, price).tolist() == [[int((row > price).sum()) + 1 for row in gains[0]]]
