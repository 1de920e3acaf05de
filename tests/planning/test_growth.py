"""The budget law: exponents that are there are found, noise is drawn to the median, and plans grow by it."""

import pytest
import torch

import geosparse as gs
from geosparse.planning.growth import MOST, fit_growth

from ..synthetic import synthetic

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
    assert 0 <= law.exponents.min() <= law.exponents.max() <= MOST


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
