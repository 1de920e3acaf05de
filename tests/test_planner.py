"""Budgets add up exactly, and for convex curves the greedy order is the optimum."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geosparse as gs
from geosparse.identity import ModelIdentity
from geosparse.ops import TAILS
from geosparse.planner import DEFAULT_POLICY, POLICIES, _complete, convex_hull, predicted_damage, spend
from geosparse.profile import ARRAYS

CURVES = st.integers(2, 12).flatmap(
    lambda length: st.lists(st.lists(st.floats(0, 1e3), min_size=length, max_size=length), min_size=1, max_size=4)
)


def synthetic(layers=2, heads=4, length=64, seed=0, limits=None, order=None, budgets=(1, 2, 4, 8, 16, 32)):
    """A profile of falling random curves; `order` permutes its heads."""
    budgets = tuple(budget for budget in budgets if budget < length)
    sizes = {"tails": len(TAILS), "layers": layers, "heads": heads, "budgets": len(budgets)}
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for name, dimensions in ARRAYS.items():
        array = torch.rand((2, *(sizes[dimension] for dimension in dimensions)), generator=generator)
        if "budgets" in dimensions:
            array = array.sort(dim=-1, descending=True).values
        if order is not None:
            array = array.index_select(-2 if "budgets" in dimensions else -1, torch.tensor(order))
        arrays[name] = array
    return gs.Profile(
        arrays=arrays,
        budgets=budgets,
        length=length,
        queries=8,
        limits=tuple(limits or [length] * layers),
        model=ModelIdentity("m", "A", layers, heads, heads, 8, "f"),
        calibration={"windows": 2, "length": length, "sha256": "0"},
        nll=2.0,
    )


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 70),
    st.floats(1, 100),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(TAILS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=80, deadline=None)
def test_budgets_add_up_and_every_head_keeps_some(layers, heads, length, mean_keep, policy, tail, seed):
    plan = gs.make_plan(synthetic(layers, heads, length, seed), mean_keep, policy, tail, seed)
    assert plan.n_keep.shape == (layers, heads)
    assert plan.n_keep.sum() == min(round(mean_keep * layers * heads), length * layers * heads)
    assert 1 <= plan.n_keep.min() <= plan.n_keep.max() <= length
    assert (plan.policy, plan.tail, plan.reference_length) == (policy, tail, length)
    assert plan.budget == {"mean_keep": mean_keep}
    assert plan.predicted["damage"] >= 0


@given(st.integers(1, 3), st.integers(2, 6), st.data())
@settings(max_examples=80, deadline=None)
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
@settings(deadline=None)
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


@pytest.mark.parametrize("policy", ["fisher", "output_error"])
def test_permuting_heads_permutes_the_plan(policy):
    order = [2, 0, 3, 1]
    for mean_keep in (1.5, 7.3, 30):
        plain = gs.make_plan(synthetic(), mean_keep, policy)
        moved = gs.make_plan(synthetic(order=order), mean_keep, policy)
        assert torch.equal(plain.n_keep[:, order], moved.n_keep)


def test_permuted_control_deals_the_same_budgets():
    profile = synthetic()
    plans = [gs.make_plan(profile, 7.3, "permuted", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(plans[0].n_keep, plans[1].n_keep)
    assert not torch.equal(plans[0].n_keep, plans[2].n_keep)
    best = gs.make_plan(profile, 7.3, "fisher").n_keep.flatten().sort().values
    assert torch.equal(plans[2].n_keep.flatten().sort().values, best)


def test_uniform_differs_by_one_token_at_most():
    plan = gs.make_plan(synthetic(), 7.3, "uniform")
    assert plan.n_keep.flatten().tolist() == [8, 8, 7, 7, 7, 7, 7, 7]
    assert plan.mean_keep == pytest.approx(58 / 8)


def test_more_than_the_length_keeps_everything():
    for mean_keep in (64, 1000, 1e300):
        plan = gs.make_plan(synthetic(), mean_keep)
        assert plan.n_keep.unique().tolist() == [64]
        assert plan.predicted["damage"] == 0


def test_more_tokens_never_predict_more_damage():
    profile = synthetic()
    damage = [gs.make_plan(profile, n, "fisher").predicted["damage"] for n in range(1, 65, 3)]
    assert damage == sorted(damage, reverse=True)
    assert damage[3] <= gs.make_plan(profile, 10, "uniform", "centroid").predicted["damage"]


def test_heads_of_a_window_get_no_more_than_they_can_see():
    plan = gs.make_plan(synthetic(limits=(16, 64)), 30)
    assert plan.n_keep[0].max() <= 16
    assert plan.n_keep.sum() == 240


def test_curves_pass_through_the_measurements_and_fall_to_zero_at_the_limit():
    profile = synthetic(limits=(16, 64))
    measured = profile.fisher("drop")
    curves = _complete(measured, profile)
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
    assert (_complete(profile.fisher("drop"), profile)[0, :, limit - 1 :] == 0).all()
    assert gs.make_plan(profile, 20).n_keep[0].max() <= limit


@pytest.mark.parametrize("budgets", [(1,), (4,), (3, 9)])
def test_unusual_budgets(budgets):
    assert gs.make_plan(synthetic(budgets=budgets), 5).n_keep.sum() == 40


def test_curves_without_any_error():
    profile = synthetic()
    profile.arrays["fisher"].zero_()
    plan = gs.make_plan(profile, 5)
    assert plan.n_keep.sum() == 40
    assert plan.predicted["damage"] < 1e-100


def test_damage_beyond_the_length_is_none():
    profile = synthetic()
    assert predicted_damage(profile, torch.full((2, 4), 10**6), "drop") == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((4, "fischer"), "Unknown policy 'fischer': did you mean 'fisher'?"),
        ((4, "zzz"), "Unknown policy 'zzz': choose from fisher, output_error, permuted, uniform."),
        ((4, DEFAULT_POLICY, "centrum"), "Unknown tail 'centrum': did you mean 'centroid'?"),
        ((4, DEFAULT_POLICY, "zzz"), "Unknown tail 'zzz': choose from centroid, drop, renormalize."),
        ((4, "permuted", "drop", -1), "seed is a whole number from 0 to 2147483647, found -1."),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence):
    with pytest.raises(gs.GeosparseError) as caught:
        gs.make_plan(synthetic(), *arguments)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("mean_keep", [0, -1, 0.5, float("nan"), float("inf"), float("-inf")])
def test_budgets_that_are_none(mean_keep):
    with pytest.raises(gs.GeosparseError, match="give a finite number from 1, found ") as caught:
        gs.make_plan(synthetic(), mean_keep)
    assert str(caught.value).endswith(f"found {mean_keep}.")
