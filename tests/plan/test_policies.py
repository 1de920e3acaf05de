"""What each policy promises beyond a sum: order, place and spread of its budgets."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geosparse as gs
from geosparse.artifacts.profile import RANKINGS
from geosparse.plan.policies import POLICIES
from geosparse.plan.policies.apportion import apportion, caps
from geosparse.plan.policies.separability import operating_point

from ..synthetic import synthetic

CONTROLS = {"permuted", "random"}
MEASURED = sorted(POLICIES.keys() - CONTROLS - {"uniform"})


@pytest.mark.parametrize("policy", MEASURED)
def test_permuting_heads_permutes_the_plan(policy):
    order = [2, 0, 3, 1]
    for mean_keep in (1.5, 7.3, 30):
        plain = gs.make_plan(synthetic(), mean_keep, policy)
        moved = gs.make_plan(synthetic(order=order), mean_keep, policy)
        assert torch.equal(plain.n_keep[:, order], moved.n_keep)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_profile_gives_the_same_plan(policy):
    plans = [gs.make_plan(synthetic(), 7.3, policy, seed=5) for _ in range(2)]
    assert torch.equal(plans[0].n_keep, plans[1].n_keep)
    other = gs.make_plan(synthetic(), 7.3, policy, seed=6).n_keep
    assert torch.equal(plans[0].n_keep, other) == (policy not in CONTROLS)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("limits", [(1, 64), (16, 64), (2, 2)])
def test_every_policy_takes_short_windows(policy, limits):
    for mean_keep in (1, 1.9, 2, 20, 64):
        assert gs.make_plan(synthetic(limits=limits), mean_keep, policy).n_keep.sum() == round(8 * mean_keep)


@pytest.mark.parametrize("policy", ["fisher", "output_error", "mass", "separability", "random"])
def test_no_head_gets_more_than_it_can_see_while_others_can_use_it(policy):
    assert gs.make_plan(synthetic(limits=(16, 64)), 30, policy).n_keep[0].max() <= 16


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


def test_mass_gives_tokens_to_the_head_that_misses_more():
    profile = synthetic(layers=1, heads=2)
    misses = torch.tensor([0.5, 0.25, 0.12, 0.06, 0.03, 0.015])
    profile.arrays["mass"] = torch.stack([1 - misses, 1 - misses / 10]).expand(2, 1, 1, 2, -1).contiguous()
    low, high = sorted(gs.make_plan(profile, 8, "mass").n_keep.flatten().tolist())
    assert gs.make_plan(profile, 8, "mass").n_keep.flatten().tolist() == [high, low]
    assert high > low


def test_mass_is_least_among_all_splits():
    profile = synthetic(layers=1, heads=3, length=12, budgets=tuple(range(1, 12)))
    falls = torch.linspace(9, 1, 11).cumsum(0)
    profile.arrays["mass"] = torch.stack([falls / 80, falls / 60, falls / 55]).expand(2, 1, 1, 3, -1).contiguous()
    missing = torch.cat([1 - profile.kept_mass()[0], torch.zeros(3, 1)], dim=-1)
    missing[:, -1] = 0

    def lost(budgets):
        return sum(missing[head, n - 1].item() for head, n in enumerate(budgets))

    options = [n for n in itertools.product(range(1, 12), repeat=3) if sum(n) == 15]
    assert lost(gs.make_plan(profile, 5, "mass").n_keep[0].tolist()) == pytest.approx(min(map(lost, options)), abs=1e-6)


def with_excess(rows):
    """A profile of one layer whose F in excess of random is `rows` at N = 1, 2, 4, 8, 16, 32."""
    profile = synthetic(layers=1, heads=len(rows))
    profile.arrays["f1"].zero_()
    profile.arrays["f1"][:, 0, 0, RANKINGS.index("attention")] = torch.tensor(rows)
    return profile


NAN = math.nan


def test_separability_is_proportional_to_the_best_budget():
    profile = with_excess(
        [
            [1.0, 0.9, 0.5, 0.4, 0.3, 0.2],
            [1.0, 0.1, 0.2, 0.6, 0.3, 0.2],
            [1.0, 0.1, 0.2, 0.3, 0.3, NAN],
            [1.0, NAN, NAN, NAN, NAN, NAN],
        ]
    )
    wanted, excess = operating_point(profile)
    assert wanted.tolist() == [[2, 8, 8, 2]]
    assert excess[0].tolist() == pytest.approx([0.9, 0.6, 0.3, 0.0])
    assert gs.make_plan(profile, 5, "separability").n_keep.tolist() == [[2, 8, 8, 2]]
    assert gs.make_plan(profile, 10, "separability").n_keep.tolist() == [[4, 16, 16, 4]]
    # One token more than the proportion: of the two largest fractions, the larger excess gets it.
    assert gs.make_plan(profile, 21 / 4, "separability").n_keep.tolist() == [[2, 9, 8, 2]]
    assert gs.make_plan(profile, 1, "separability").n_keep.tolist() == [[1, 1, 1, 1]]


def test_separability_of_a_window_that_was_not_measured_everywhere():
    profile = synthetic()
    profile.arrays["f1"][0] = NAN
    seen = profile.excess_f1()[1]
    assert torch.equal(operating_point(profile)[1], seen[..., 1:].amax(-1))
    profile.arrays["f1"][:] = NAN
    assert gs.make_plan(profile, 7, "separability").n_keep.unique().tolist() == [7]
    assert operating_point(synthetic(budgets=(1,)))[0].unique().tolist() == [2]


def test_random_is_spread_evenly_in_log():
    n_keep = gs.make_plan(synthetic(layers=20, heads=50, length=512), 32, "random").n_keep.double().flatten()
    top = n_keep.max().log()
    # Mean 32 of exp(u log top) with u uniform: (top - 1) / log(top) = 32, top near 183.
    assert 140 <= top.exp() <= 230
    for quantile in (0.25, 0.5, 0.75):
        assert n_keep.quantile(quantile).log() == pytest.approx(quantile * top.item(), abs=0.35)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), st.integers(1, 40), st.data())
@settings(max_examples=80)
def test_scaling_is_proportional_but_for_rounding(weights, length, data):
    shape = torch.tensor([weights], dtype=torch.float64)
    total = data.draw(st.integers(len(weights), len(weights) * length))
    found = apportion(lambda factor: shape * factor, total, torch.full((1, len(weights)), length))
    assert found.sum() == total
    assert found.min() >= 1
    assert found.max() <= length
    for (a, n), (b, m) in itertools.combinations(zip(weights, found[0].tolist(), strict=True), 2):
        assert n <= m + 1 if a <= b else m <= n + 1


def test_caps_are_what_can_be_seen_or_the_length():
    profile = synthetic(layers=2, heads=1, limits=(16, 64))
    assert caps(profile, 80).flatten().tolist() == [16, 64]
    assert caps(profile, 81).flatten().tolist() == [64, 64]
