"""make_plan: budgets add up exactly, and what is wrong is refused in one sentence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geosparse as gs
from geosparse.geometry.regimes import SIGNATURES
from geosparse.ops import SELECTORS, TAIL_FAMILIES, TAILS
from geosparse.plan.candidates import SINK, SPREAD, Candidates
from geosparse.plan.error_curves import complete
from geosparse.plan.make_plan import predicted_damage
from geosparse.plan.policies import DEFAULT_POLICY, POLICIES

from ..synthetic import synthetic


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 70),
    st.floats(1, 100),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(TAILS),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=80)
def test_budgets_add_up_and_every_head_keeps_some(layers, heads, length, mean_keep, policy, tail, seed):
    plan = gs.make_plan(synthetic(layers, heads, length, seed), mean_keep, policy, tail, seed)
    assert plan.n_keep.shape == (layers, heads)
    assert plan.n_keep.sum() == min(round(mean_keep * layers * heads), length * layers * heads)
    assert 1 <= plan.n_keep.min() <= plan.n_keep.max() <= length
    assert (plan.policy, plan.tail, plan.reference_length) == (policy, tail, length)
    assert plan.budget == {"mean_keep": mean_keep}
    assert plan.predicted["damage"] >= 0


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


def test_damage_is_half_the_price_summed_over_heads():
    profile, budgets = synthetic(), torch.tensor([[1, 2, 4, 8], [16, 32, 8, 1]])
    places = budgets.double().log2().long()
    price = profile.price("centroid").gather(-1, places.unsqueeze(-1))
    assert predicted_damage(profile, budgets, "centroid") == pytest.approx(0.5 * float(price.sum()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((4, "fischer"), "Unknown policy 'fischer': did you mean 'fisher'?"),
        (
            (4, "zzz"),
            "Unknown policy 'zzz': choose from alone, entropy, fisher, mass, output_error, permuted, random, regime, "
            "separability, uniform.",
        ),
        ((4, DEFAULT_POLICY, "centrum"), "Unknown tail 'centrum': did you mean 'centroid'?"),
        (
            (4, DEFAULT_POLICY, "zzz"),
            "Unknown tail 'zzz': choose from best, blend, blend25, blend50, blend75, centroid, drop, "
            "even, fitted, renormalize.",
        ),
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


def test_density_is_a_fraction_of_the_length():
    profile = synthetic()
    plan = gs.make_plan(profile, density=0.125)
    assert plan.budget == {"density": 0.125}
    assert torch.equal(plan.n_keep, gs.make_plan(profile, 8).n_keep)
    assert gs.make_plan(profile, density=1).n_keep.unique().tolist() == [64]
    assert gs.make_plan(profile, density=1 / 64).n_keep.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({}, "found none: give one of them."),
        ({"mean_keep": 4, "density": 0.5}, "found mean_keep and density: give one of them."),
        ({"density": 0.0}, "above 0, up to 1, found 0."),
        ({"density": 1.5}, "above 0, up to 1, found 1.5."),
        ({"density": float("nan")}, "above 0, up to 1, found nan."),
        ({"density": 0.01}, "give 0.015625 or more."),
        ({"bytes_read": 0.0}, "above 0, found 0."),
        ({"bytes_read": -1.0}, "above 0, found -1."),
        ({"bytes_read": float("nan")}, "above 0, found nan."),
        ({"bytes_read": 0.5}, "give more bytes, or profile a selector that scans less."),
        ({"bytes_read": float("inf")}, "above 0, found inf."),
    ],
)
def test_budgets_that_do_not_fit(budget, sentence):
    with pytest.raises(gs.GeosparseError) as caught:
        gs.make_plan(synthetic(), **budget)
    assert str(caught.value).endswith(sentence)


def test_the_default_tail_is_the_best_of_each_head():
    profile = synthetic(seed=3)
    profile.arrays["signatures"].zero_()
    assert gs.make_plan(profile, 6).tail == "blend"
    assert (TAIL_FAMILIES["blend"], TAIL_FAMILIES["best"]) == (TAILS, TAILS[:3])
    for word, tails in TAIL_FAMILIES.items():
        plan = gs.make_plan(profile, 6, tail=word)
        for layer, head in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
            place = int(plan.n_keep[layer, head]) - 1
            costs = [complete(profile.fisher(tail), profile)[layer, head, place] for tail in tails]
            assert plan.tails_of(layer)[head] == tails[costs.index(min(costs))]
        damage = min(gs.make_plan(profile, 6, tail=tail).predicted["damage"] for tail in tails)
        assert plan.predicted["damage"] <= damage


@pytest.mark.parametrize("risky", ["centroid", "blend25"])
def test_heads_of_sinks_that_keep_few_tokens_leave_out_the_mean_of_all(risky):
    profile = synthetic(layers=2, heads=4, seed=3)
    safe, centroid = (TAILS.index(tail) for tail in ("renormalize", risky))
    profile.arrays["fisher"][:, :, [place for place in range(len(TAILS)) if place != safe]] = 10.0
    profile.arrays["fisher"][:, :, centroid] = 0.5 * profile.arrays["fisher"][:, :, safe]
    mass = profile.arrays["signatures"][..., SIGNATURES.index("sink_mass")]
    assert (SINK, SPREAD) == (0.5, 8)
    mass[:], mass[:, 0, 0], mass[:, 1, 2] = 0.4, 0.6, 0.7
    candidates = Candidates.of(profile, "blend", "topn")
    budgets = torch.full((2, 4), SPREAD - 1)
    expected = torch.full((2, 4), centroid)
    expected[0, 0] = expected[1, 2] = safe
    assert torch.equal(candidates.at(budgets, "fisher").tails, expected)
    assert (candidates.at(budgets + 1, "fisher").tails == centroid).all()
    # Tokens are spent by the same curves.
    curve, halves = candidates.curve("fisher", "topn"), complete(profile.fisher(risky), profile)
    whole = complete(profile.fisher("renormalize"), profile)
    assert torch.equal(curve[0, 0, : SPREAD - 1], whole[0, 0, : SPREAD - 1])
    assert torch.equal(curve[0, 0, SPREAD - 1 :], halves[0, 0, SPREAD - 1 :])
    assert torch.equal(curve[0, 1], halves[0, 1])
    # What was asked for is done.
    assert (gs.make_plan(profile, 6, tail=risky).tails_of(0)) in (risky, (risky,) * 4)


def test_at_every_budget_the_cheapest_tail_and_selector():
    profile = synthetic(seed=6, selectors=("topn", "lowbit"))
    profile.arrays["signatures"].zero_()
    candidates = Candidates.of(profile, "blend", "auto")
    words = list(candidates.allowed)
    costs = torch.stack([complete(profile.fisher(tail, word), profile) for word in words for tail in TAILS])
    for n in range(1, profile.length + 1):
        chosen, least = candidates.at(torch.full((2, 4), n), "alone"), costs[..., n - 1].min(0)
        assert torch.equal(chosen.tails, least.indices % len(TAILS))
        places = torch.tensor([SELECTORS.names.index(word) for word in words])
        assert torch.equal(chosen.selectors, places[least.indices // len(TAILS)])


@pytest.mark.parametrize(
    ("tail", "among"), [("centroid", False), ("renormalize", True), ("best", True), ("blend", True)]
)
def test_sink_recent_is_a_candidate_where_its_tail_is(tail, among):
    candidates = Candidates.of(synthetic(selectors=("topn", "lowbit", "sink_recent")), tail, "auto")
    assert list(candidates.allowed) == ["topn", "lowbit"] + ["sink_recent"] * among


def test_controls_are_drawn_from_seed_0():
    profile = synthetic(seed=4)
    assert torch.equal(gs.make_plan(profile, 6, "permuted").n_keep, gs.make_plan(profile, 6, "permuted", seed=0).n_keep)


def test_the_permuted_control_deals_whole_heads():
    profile = synthetic(seed=4)
    plan, control = gs.make_plan(profile, 6), gs.make_plan(profile, 6, "permuted", seed=5)

    def heads(one):
        return list(zip(one.n_keep.flatten().tolist(), one.head_tails.flatten().tolist(), strict=True))

    assert sorted(heads(control)) == sorted(heads(plan))
    assert heads(control) != heads(plan)
