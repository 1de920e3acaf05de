"""Plans by bytes: what they read stays within the budget, and a cheap selector is chosen where it is as good."""

import pytest
import torch

import geosparse as gs
from geosparse.ops import SELECTORS
from geosparse.plan.byte_budget import Market
from geosparse.plan.cost_model import TokenBytes, dense_bytes, layer_bytes, shared_rows, split_bytes
from geosparse.plan.policies import POLICIES

from ..synthetic import synthetic

ALL = SELECTORS.built_in


def profile(**changes):
    return synthetic(**({"kv_heads": 2, "selectors": ("topn", "lowbit", "sink_recent")} | changes))


def test_layer_bytes_by_hand():
    rows = TokenBytes(key_dim=64, value_dim=32, itemsize=2)
    n_keep = torch.tensor([4, 4, 4])
    share = shared_rows(3)
    assert share * 3 == pytest.approx(1.75)
    assert layer_bytes(n_keep, "topn", 1, 100, rows) == pytest.approx(100 * 128 + 3 * share * 4 * 64)
    assert layer_bytes(n_keep, "lowbit", 1, 100, rows) == pytest.approx(100 * (32 + 16) + 3 * share * 4 * 192)
    assert layer_bytes(n_keep, "paged", 1, 100, rows) == pytest.approx(100 * 16 + 3 * share * 4 * 192)
    assert layer_bytes(n_keep, "sink_recent", 1, 100, rows) == pytest.approx(3 * share * 4 * 192)
    # One head keeps most: the union is no smaller than its own rows.
    assert layer_bytes(torch.tensor([90, 1, 1]), "sink_recent", 1, 100, rows) == 90 * 192
    assert layer_bytes(torch.tensor([500]), "sink_recent", 1, 100, rows) == 100 * 192


@pytest.mark.parametrize("share_kv", [False, True])
@pytest.mark.parametrize("policy", ["fisher", "output_error"])
def test_bytes_are_within_the_budget_and_more_cost_less(policy, share_kv):
    source = profile(layers=3, heads=6, length=512, budgets=(1, 2, 4, 8, 16, 32, 64, 128))
    dense = dense_bytes(2, [512] * 3, TokenBytes(8, 8))
    damages = []
    for fraction in (0.4, 0.6, 0.8):
        plan = gs.make_plan(source, bytes_read=fraction * dense, policy=policy, share_kv=share_kv)
        read = split_bytes(plan.n_keep, plan.selector_places, 2, [512] * 3, TokenBytes(8, 8), share_kv)
        assert read == pytest.approx(plan.predicted["bytes"])
        assert 0.85 * fraction * dense < read <= fraction * dense
        damages.append(plan.predicted["damage"])
    if policy == "fisher":
        assert damages == sorted(damages, reverse=True)


def test_a_selector_that_is_as_good_and_reads_less_is_chosen():
    source = profile(length=512)
    for name in ("fisher", "output_error"):
        source.arrays[name][:, 1] = source.arrays[name][:, 0]
        source.arrays[name][:, 2] = source.arrays[name][:, 0] + 1e6
    plan = gs.make_plan(source, bytes_read=0.3 * dense_bytes(2, [512] * 2, TokenBytes(8, 8)))
    assert plan.selector == "lowbit"
    assert plan.head_selectors is None
    for name in ("fisher", "output_error"):
        source.arrays[name][:, 2] = 0
    assert gs.make_plan(source, bytes_read=20_000).selector == "sink_recent"


def test_too_few_bytes_are_refused():
    with pytest.raises(gs.GeosparseError, match="No plan reads 10 bytes or less: the cheapest reads"):
        gs.make_plan(profile(), bytes_read=10)
    with pytest.raises(gs.GeosparseError, match="goes with the policies fisher, alone, output_error only, found"):
        gs.make_plan(profile(), bytes_read=10_000, policy="mass")


@pytest.mark.parametrize("share_kv", [False, True])
def test_codes_are_the_usual_way_where_their_errors_are_those_of_exact_selection(share_kv):
    source = profile(selectors=("topn", "lowbit"))
    for name in ("fisher", "output_error"):
        source.arrays[name][:, 1] = 1.04 * source.arrays[name][:, 0]
    for policy in ("fisher", "output_error", "mass", "uniform", "permuted"):
        plan = gs.make_plan(source, 6, policy, share_kv=share_kv and POLICIES[policy].shareable)
        assert plan.selector == "lowbit"
        assert plan.head_selectors is None
    source.arrays["fisher"][:, 1] = 1.06 * source.arrays["fisher"][:, 0]
    assert gs.make_plan(source, 6, share_kv=share_kv).selector == "topn"
    assert gs.make_plan(source, 6, "output_error", share_kv=share_kv).selector == "lowbit"
    assert gs.make_plan(source, 6, selector="lowbit", share_kv=share_kv).selector == "lowbit"


def test_codes_are_the_usual_way_beside_windows():
    source = profile(selectors=("topn", "lowbit"), limits=[16, 64])
    for name in ("fisher", "output_error"):
        source.arrays[name][:, 1] = source.arrays[name][:, 0]
    plan = gs.make_plan(source, 6)
    assert plan.selector_places[0].tolist() == [SELECTORS.names.index("topn")] * 4
    assert plan.selector_places[1].tolist() == [SELECTORS.names.index("lowbit")] * 4
    only_windows = profile(selectors=("topn", "lowbit"), limits=[16, 16])
    assert gs.make_plan(only_windows, 6).selector == "topn"


def test_where_one_was_not_measured_the_other_serves():
    assert gs.make_plan(profile(selectors=("topn",)), 6).selector == "topn"
    assert gs.make_plan(profile(selectors=("lowbit",)), 6).selector == "lowbit"


def test_indexed_selectors_do_not_serve_in_windows():
    source = profile(limits=(16, 64))
    for plan in (gs.make_plan(source, 6, selector="lowbit"), gs.make_plan(source, 6, selector="auto")):
        assert not (plan.selector_places[0] == SELECTORS.names.index("lowbit")).any()
    assert gs.make_plan(source, 6, selector="lowbit").selector_places[0].unique().tolist() == [0]


def test_sink_recent_renormalizes():
    plan = gs.make_plan(profile(), 6, selector="sink_recent")
    assert plan.selector == "sink_recent"
    assert set(plan.tails_of(0)) == {"renormalize"}
    with pytest.raises(gs.GeosparseError, match="the tail 'renormalize' only, found 'centroid'"):
        gs.make_plan(profile(), 6, selector="sink_recent", tail="centroid")


def test_selectors_that_were_not_measured_are_refused():
    with pytest.raises(gs.GeosparseError, match="has not measured the selector 'paged', only topn, lowbit, sink"):
        gs.make_plan(profile(), 6, selector="paged")
    with pytest.raises(gs.GeosparseError, match="did you mean 'lowbit'"):
        gs.make_plan(profile(), 6, selector="lowbits")


@pytest.mark.parametrize("policy", ["fisher", "output_error", "mass", "uniform"])
@pytest.mark.parametrize("lengths", [(64, 64), (16, 32, 64)])
def test_shared_budgets_are_equal_within_a_group(policy, lengths):
    source = profile(heads=6, lengths=lengths)
    plan = gs.make_plan(source, 7.3, policy, share_kv=True, selector="auto", length=64)
    assert plan.share_kv
    assert 7.3 * 12 - 3 < plan.n_keep.sum() <= 7.3 * 12
    grown = plan.at(200).view(2, 2, 3)
    assert torch.equal(grown.amin(-1), grown.amax(-1))


def test_sharing_with_other_policies_is_refused():
    with pytest.raises(gs.GeosparseError, match="share_kv goes with the policies fisher"):
        gs.make_plan(profile(), 6, "permuted", share_kv=True)


@pytest.mark.parametrize("policy", ["fisher", "permuted", "random", "entropy"])
def test_plans_with_every_selector_load_again(policy, tmp_path):
    source = profile(selectors=ALL, length=256)
    plan = gs.make_plan(source, 9, policy, selector="auto")
    again = gs.Plan.load(plan.save(tmp_path / "plan.json"))
    assert torch.equal(again.selector_places, plan.selector_places)
    assert split_bytes(plan.n_keep, plan.selector_places, 2, [256, 256], TokenBytes(8, 8)) > 0


def test_the_error_at_every_budget_is_that_of_a_convex_curve():
    n = torch.arange(1, 33, dtype=torch.float64)
    curve = (1 / n).expand(2, 3, 32)
    market = Market({"topn": curve}, 1, TokenBytes(8, 8), torch.tensor([32, 32]), torch.ones(2, 3, dtype=torch.float64))
    assert torch.allclose(market.errors["topn"], curve)


def falling(seed, *shape):
    """Random convex curves `[*shape]` that fall to 0."""
    gains = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(descending=True)
    return gains.values.flip(-1).cumsum(-1).flip(-1) - gains.values[..., -1:]


@pytest.mark.parametrize("price", [1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 1.0])
def test_what_is_bought_costs_least_of_all_there_is(price):
    """Every N of every head under every selector of its group, one after the other."""
    layers, heads, members, length, visible = 2, 4, 2, 40, (40, 90)
    rows = TokenBytes(8, 16, 4)
    curves = {word: falling(seed, layers, heads, length) for seed, word in enumerate(("topn", "lowbit", "sink_recent"))}
    curves["sink_recent"] += 0.5
    curves["lowbit"][0] = torch.inf
    stretch = torch.tensor([[1.0, 0.5, 2.0, 1.5], [3.0, 1.0, 1.0, 2.0]], dtype=torch.float64)
    places, amounts = Market(curves, members, rows, torch.tensor(visible), stretch).buy(price)
    n = torch.arange(1, length + 1, dtype=torch.float64)

    def cost(word, layer, head):
        row = price * rows.kept(word) * shared_rows(members) * stretch[layer, head]
        return curves[word][layer, head] + row * n

    for layer in range(layers):
        for group in range(heads // members):
            least = torch.inf
            for word in curves:
                total, found = price * rows.scanned(word) * visible[layer], []
                for head in range(group * members, (group + 1) * members):
                    offers = {each: cost(each, layer, head).min(0) for each in {word, "sink_recent"}}
                    name = min(offers, key=lambda each: float(offers[each].values))
                    total += float(offers[name].values)
                    found.append((SELECTORS.names.index(name), int(offers[name].indices) + 1))
                if total < least:
                    least, expected = total, found
            at = slice(group * members, (group + 1) * members)
            assert list(zip(places[layer, at].tolist(), amounts[layer, at].tolist(), strict=True)) == expected
