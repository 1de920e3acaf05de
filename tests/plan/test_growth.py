"""The budget law: exponents that are there are found, noise is drawn to the median, and plans grow by it."""

import numpy as np
import pytest
import torch

import geosparse as gs
from geosparse.ops import SELECTORS, TAILS
from geosparse.plan.candidates import Candidates
from geosparse.plan.cost_model import TokenBytes, split_bytes
from geosparse.plan.error_curves import marginal_gains
from geosparse.plan.growth import MAX_GROWTH_EXPONENT, fit_growth, law_of
from geosparse.plan.policies import POLICIES
from geosparse.utils.files import MAX_COUNT

from ..synthetic import synthetic

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
LENGTHS = (256, 512, 1024, 2048)


def power_law_gains(exponents, lengths=LENGTHS, scale=16.0):
    """Gains of heads that want scale (L / 256)^exponent tokens at a price of 1: gain of token n is (wanted / n)^2."""
    exponents = torch.tensor([exponents], dtype=torch.float64)
    gains = {}
    for length in lengths:
        n = torch.arange(1, length, dtype=torch.float64)
        gains[length] = (scale * (length / 256) ** exponents.unsqueeze(-1) / n).square()
    return gains


def test_known_exponents_are_found():
    wanted = [0.0, 0.25, 0.5, 0.75, 1.0]
    law = fit_growth(power_law_gains(wanted), 1.0, torch.tensor([2048]))
    assert law.exponents[0].tolist() == pytest.approx(wanted, abs=0.03)
    assert law.typical == pytest.approx(0.5, abs=0.03)
    assert law.left_out < 0.03


def test_noise_is_drawn_to_the_median():
    gains = power_law_gains([0.5] * 200)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        length: gain * torch.exp(torch.randn(1, 200, 1, generator=generator, dtype=torch.float64))
        for length, gain in gains.items()
    }
    law = fit_growth(noisy, 1.0, torch.tensor([2048]))
    # Noise of one nat in the gain is half a nat in N: slopes of single heads scatter by 0.5 / sqrt(sum x^2) = 0.32.
    assert law.exponents.std() < 0.16
    assert law.typical == pytest.approx(0.5, abs=0.1)


def test_exponents_stay_in_their_range_and_windows_do_not_grow():
    gains = power_law_gains([3.0, 0.1])
    law = fit_growth(
        {length: torch.cat([gain, gain]) for length, gain in gains.items()}, 1.0, torch.tensor([128, 2048])
    )
    assert law.exponents[0].tolist() == [0.0, 0.0]
    assert 0 <= law.exponents.min() <= law.exponents.max() <= MAX_GROWTH_EXPONENT


def test_two_lengths_leave_none_out():
    assert fit_growth(power_law_gains([0.5], (256, 512)), 1.0, torch.tensor([512])).left_out is None


def test_a_profile_of_one_length_has_no_law():
    assert gs.make_plan(synthetic(), 8).growth is None
    with pytest.raises(gs.GeosparseError, match="windows of 64 tokens only and says nothing about 128"):
        gs.make_plan(synthetic(), 8, length=128)


@pytest.mark.parametrize("policy", ["fisher", "uniform", "permuted", "mass", "regime"])
@pytest.mark.parametrize("length", [None, 16, 32, 48, 200])
def test_plans_are_for_the_length_asked(policy, length, tmp_path):
    profile = synthetic(lengths=(16, 32, 32, 64, 64))
    plan = gs.make_plan(profile, 6, policy, length=length)
    assert plan.reference_length == (length or 64)
    assert plan.n_keep.sum() == 48
    assert plan.n_keep.max() <= plan.reference_length
    assert plan.growth.shape == (2, 4)
    assert bool((plan.at(plan.reference_length * 4) >= plan.n_keep).all())
    assert plan.predicted["growth"] >= 0
    assert plan.predicted["growth_left_out_error"] >= 0
    assert torch.equal(gs.Plan.load(plan.save(tmp_path / "p.json")).growth, plan.growth)


def test_density_is_a_fraction_of_the_length_planned_for():
    profile = synthetic(lengths=(16, 32, 64))
    assert gs.make_plan(profile, density=0.0625, length=128).n_keep.sum() == 64
    with pytest.raises(gs.GeosparseError, match=r"0\.05 of 16 tokens is less than the 1 token"):
        gs.make_plan(profile, density=0.05, length=16)


def long_profile(heads=4, **changes):
    """Prices of heads that want 2 (L / 16)^exponent tokens, with exponents from 0.2 to 0.8, of all tails; they fall
    with N or with its cube, in turn. The first layer sees 16 tokens."""
    profile = synthetic(**({"lengths": (16, 32, 64), "limits": (16, 64), "heads": heads} | changes))
    powers = torch.tensor([1.0, 3.0]).repeat(heads)[:heads, None]
    exponents = torch.linspace(0.2, 0.8, heads)[:, None]
    weights = 1 + torch.arange(len(TAILS))[:, None, None] / 10  # of the tails
    for window, length in enumerate(profile.lengths):
        wanted = 2 * (length / 16) ** exponents
        price = (wanted / torch.tensor(profile.budgets)) ** powers  # [heads, budgets]
        profile.arrays["fisher"][window] = (weights * price)[None, :, None]
    return profile


@pytest.mark.parametrize("policy", ["fisher", "alone"])
@pytest.mark.parametrize("length", [48, 200])
def test_a_plan_is_that_of_the_nearest_length_grown_by_the_law(policy, length):
    profile = long_profile(heads=12)
    plan = gs.make_plan(profile, 6, policy, length=length)
    candidates = Candidates.of(profile.at(64), "blend", "topn")
    stretch = (length / 64) ** plan.growth
    grown = [POLICIES[policy](candidates, start, 0) * stretch for start in range(72, 216)]
    closest = min(grown, key=lambda budgets: abs(float(budgets.sum()) - 144))
    # What is left is one rounding, and a common factor for the tokens that no start meets exactly.
    assert plan.n_keep.sum() == 144
    assert (plan.n_keep - closest).abs().max() <= 1 + 0.02 * closest.max()


def test_the_law_of_a_plan_is_that_of_its_policy():
    profile = long_profile()
    candidates = Candidates.of(profile.at(64), "blend", "topn")
    law = law_of(profile, candidates, "fisher", 48)
    assert torch.equal(gs.make_plan(profile, 6).growth, law.exponents)
    uniform = gs.make_plan(profile, 6, "uniform").growth
    assert uniform.tolist() == [[0.0] * 4, [law.typical] * 4]
    assert gs.make_plan(long_profile(limits=(32, 64)), 6, "uniform").growth[0].min() > 0
    permuted = gs.make_plan(profile, 6, "permuted", seed=3).growth
    assert not torch.equal(permuted, law.exponents)
    assert permuted.flatten().sort().values.tolist() == law.exponents.flatten().sort().values.tolist()


@pytest.mark.parametrize("length", [64, 200])
def test_what_a_plan_of_another_length_predicts(length):
    profile = long_profile()
    plan = gs.make_plan(profile, 6, length=length)
    candidates = Candidates.of(profile.at(64), "blend", "topn")
    there = (plan.n_keep / (length / 64) ** plan.growth).round().long()
    chosen = candidates.at(there, "fisher")
    assert torch.equal(plan.head_tails, chosen.tails)
    assert plan.predicted["damage"] == pytest.approx(0.5 * candidates.total("fisher", there, chosen))
    exact = torch.full((2, 4), SELECTORS.names.index("topn"))
    assert plan.predicted["bytes"] == split_bytes(plan.n_keep, exact, 4, [16, length], TokenBytes(8, 8))


@pytest.mark.parametrize("policy", ["fisher", "output_error"])
def test_a_plan_of_bytes_grows_by_the_law_too(policy):
    profile = long_profile()
    candidates = Candidates.of(profile.at(64), "blend", "auto")
    plan = gs.make_plan(profile, bytes_read=18_000, policy=policy, length=200)
    assert torch.equal(plan.growth, law_of(profile, candidates, policy, 8 * 32).exponents)
    assert 15_000 < plan.predicted["bytes"] <= 18_000
    # Whole tokens at the length that was profiled, grown and rounded.
    stretch = (200 / 64) ** plan.growth
    bought = (plan.n_keep / stretch).round()
    assert ((bought * stretch).round() - plan.n_keep).abs().max() == 0
    assert gs.make_plan(profile, bytes_read=14_100, policy=policy, length=200).n_keep.min() == 1


def test_groups_share_their_budgets_at_other_lengths_too():
    profile = long_profile(heads=6, kv_heads=2)
    plan = gs.make_plan(profile, 7, length=200, share_kv=True)
    assert plan.n_keep.sum() == 84
    groups = plan.n_keep.view(2, 2, 3)
    assert torch.equal(groups, groups[..., :1].expand(-1, -1, 3))
    assert len(groups[..., 0].unique()) > 1


def test_the_shortest_and_the_longest_context():
    profile = long_profile()
    assert gs.make_plan(profile, 1, length=1).n_keep.unique().tolist() == [1]
    assert gs.make_plan(profile, 6, length=MAX_COUNT).n_keep.sum() == 48
    for length in (0, MAX_COUNT + 1):
        with pytest.raises(gs.GeosparseError, match=f"a whole number of tokens from 1, found {length}"):
            gs.make_plan(profile, 6, length=length)


def test_a_tail_that_is_asked_for_holds_at_every_length():
    plan = gs.make_plan(long_profile(), 6, length=200, tail="drop")
    assert plan.tail == "drop"
    assert plan.head_tails is None
    assert plan.tails_of(1) in ("drop", ("drop",) * 4)
    assert "drop" in TAILS


def test_the_typical_exponent_is_of_what_grows():
    """Layers with a window do not count, unless there are no others."""
    gains = {length: gain.repeat(2, 1, 1) for length, gain in power_law_gains([0.5, 0.5, 0.5]).items()}
    mixed = fit_growth(gains, 1.0, torch.tensor([128, 2048]))
    assert mixed.typical == pytest.approx(0.5, abs=0.03)
    assert fit_growth(gains, 1.0, torch.tensor([128, 128])).typical == 0


def test_the_length_left_out_is_predicted_by_the_others():
    """A head that wants 16 tokens at three lengths is guessed to want 16 at the fourth, where it wants 32."""
    gains = power_law_gains([0.0, 0.0])
    gains[2048] = power_law_gains([0.0, 0.0], (2048,), scale=32.0)[2048]
    assert fit_growth(gains, 1.0, torch.tensor([2048])).left_out == pytest.approx(0.5, abs=0.05)


def test_no_exponent_is_above_one_and_a_half():
    law = fit_growth(power_law_gains([2.0, 2.0, 2.0]), 1.0, torch.tensor([2048]))
    assert law.exponents.max() == 1.5


def test_a_budget_beyond_all_tokens_has_a_law():
    profile = synthetic(lengths=(16, 32, 32, 64, 64))
    candidates = Candidates.of(profile, "blend", "topn")
    heads = profile.model.layers * profile.model.heads
    assert law_of(profile, candidates, "fisher", 10 * 64 * heads).exponents.shape == (2, 4)


def by_hand(lengths, budgets):
    """Exponents from the formulas: `budgets` length -> [prices][heads], none of them in a window."""
    x = np.log(lengths) - np.mean(np.log(lengths))
    slopes, errors = [], []
    for head in range(len(budgets[lengths[0]][0])):
        lines, squares = [], []
        for price in range(len(budgets[lengths[0]])):
            y = np.log([budgets[length][price][head] for length in lengths])
            slope = (x * (y - y.mean())).sum() / (x**2).sum()
            lines.append(slope)
            squares.append((y, slope))
        slope = np.mean(lines)
        # Squared errors of a line through the prices' mean slope; the standard error of that slope.
        left = np.mean([(((y - y.mean()) - x * slope) ** 2).sum() for y, _ in squares])
        slopes.append(slope)
        errors.append(left / max(1, len(lengths) - 2) / (x**2).sum())
    slopes, errors = np.array(slopes), np.array(errors)
    centre = np.sort(slopes)[(len(slopes) - 1) // 2]
    real = max(0.0, ((slopes - centre) ** 2).mean() - errors.mean())
    return np.clip(centre + real / (real + errors) * (slopes - centre), 0.0, 1.5)


@pytest.mark.parametrize("lengths", [(256, 512), (256, 512, 1024), (256, 512, 1024, 4096)])
def test_exponents_by_hand(lengths):
    generator = torch.Generator().manual_seed(1)
    gains = {
        length: gain * torch.exp(0.5 * torch.randn(1, 7, 1, generator=generator, dtype=torch.float64))
        for length, gain in power_law_gains([0.1, 0.2, 0.4, 0.5, 0.6, 1.0, 1.2], lengths).items()
    }
    price = 0.7
    budgets = {
        length: [[1 + int((gains[length][0, head] > price * factor).sum()) for head in range(7)] for factor in FACTORS]
        for length in lengths
    }
    law = fit_growth(gains, price, torch.tensor([4096]))
    assert law.exponents[0].tolist() == pytest.approx(by_hand(lengths, budgets).tolist(), rel=1e-9)
    if len(lengths) == 2:
        return
    *earlier, before, last = lengths
    guess = [
        n * (last / before) ** exponent
        for n, exponent in zip(budgets[before][2], by_hand((*earlier, before), budgets), strict=True)
    ]
    off = sum(abs(n - m) for n, m in zip(guess, budgets[last][2], strict=True))
    assert law.left_out == pytest.approx(off / sum(budgets[last][2]))


def test_the_price_of_a_law_is_what_the_last_token_is_worth():
    profile = long_profile()
    candidates = Candidates.of(profile.at(64), "blend", "topn")
    gains = {
        length: marginal_gains(Candidates.of(profile.at(length), "blend", "topn").curves("fisher"))
        for length in profile.distinct_lengths
    }
    worth = gains[64].flatten().sort(descending=True).values
    for tokens in (9, 10, 48, 100):
        law = fit_growth(gains, float(worth[tokens - 8 - 1]), torch.tensor(profile.limits))
        assert torch.equal(law_of(profile, candidates, "fisher", tokens).exponents, law.exponents)
