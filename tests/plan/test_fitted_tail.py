"""The fitted tail: shares by least squares from second moments."""

from dataclasses import replace

import pytest
import torch

import geosparse as gs
from geosparse.artifacts.tail_moments import PARTS, error_at, pack, unpack
from geosparse.ops.tails import TAIL_RULES, TailShares
from geosparse.plan.candidates import Candidates
from geosparse.plan.fitted_tail import MOST, NAMED, fit_shares, fitted, shares_at

from ..synthetic import synthetic


def products(shares, noise=0.0, rows=400, scale=1.0, seed=0):
    """Mean products `[PARTS, PARTS]` of parts whose first is `shares` of the others, and noise."""
    generator = torch.Generator().manual_seed(seed)
    added = torch.randn(rows, PARTS - 1, generator=generator, dtype=torch.float64)
    lack = added @ torch.tensor(shares, dtype=torch.float64) + noise * torch.randn(
        rows, generator=generator, dtype=torch.float64
    )
    parts = scale * torch.cat([lack[:, None], added], 1)
    return parts.T @ parts / rows


def test_pairs_are_packed_and_unpacked():
    whole = products([0.1, 0.2, 0.3, 0.4])
    assert unpack(pack(whole)).equal(whole)


def test_error_at_is_the_mean_square():
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(50, PARTS, generator=generator, dtype=torch.float64)
    shares = torch.tensor([0.5, -0.5, 1.0, 2.0], dtype=torch.float64)
    expected = (parts[:, 1:] @ shares - parts[:, 0]).square().mean()
    torch.testing.assert_close(error_at(parts.T @ parts / 50, shares), expected)


def test_without_a_ridge_least_squares_is_found_whatever_the_units():
    wanted = [0.7, -0.2, 0.1, 0.9]
    for scale in (1e-6, 1.0, 1e6):
        found = fit_shares(products(wanted, 0.1, scale=scale), products(wanted, 0.1), 0.0, 0.0)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=0.02, rtol=0)


def test_a_ridge_draws_to_the_best_named_tail():
    near = products([0.5, 0.5, 0.05, 0.1], 0.3)
    free, drawn = (fit_shares(near, near, 0.0, ridge) for ridge in (0.0, 100.0))
    best = torch.tensor(TAIL_RULES["blend50"].shares, dtype=torch.float64)
    assert (drawn - best).norm() < 0.05 * (free - best).norm() + 0.01
    assert error_at(near, free) <= error_at(near, drawn)


def test_a_share_that_adds_nothing_stays_that_of_the_named_tail():
    whole = products([0.5, 0.5, 0.0, 0.0], 0.1)
    whole[4], whole[:, 4] = 0.0, 0.0
    found = fit_shares(whole, whole, 0.5, 0.1)
    assert found[3] == 0.0
    assert torch.isfinite(found).all()


def test_heads_that_miss_nothing_have_finite_shares():
    nothing = torch.zeros(3, PARTS, PARTS, dtype=torch.float64)
    found = fit_shares(nothing, nothing)
    assert torch.isfinite(found).all()
    assert (found.unsqueeze(-2) == NAMED).all(-1).any(-1).all()


def test_shares_stay_within_bounds():
    wild = products([50.0, -50.0, 3.0, 0.0], 0.1)
    assert fit_shares(wild, wild, 0.0, 0.0).abs().max() <= MOST


def two_kinds(**changes):
    """A profile of two kinds of text."""
    profile = synthetic(tail_moments=True, **changes)
    return replace(profile, calibration=profile.calibration | {"kinds": ["text", "builtin:code"]})


def test_plans_of_several_kinds_have_fitted_tails(tmp_path):
    plan = gs.make_plan(two_kinds(), 8)
    assert plan.tail == "fitted"
    assert plan.head_tails is None
    assert plan.tail_shares.shape == (2, 4, 4)
    assert (plan.tail_shares[..., 3] - 0.9).abs().max() < 0.5
    again = gs.Plan.load(plan.save(tmp_path / "plan.json"))
    assert again.tail_shares.equal(plan.tail_shares)
    assert again.digest() == plan.digest()
    assert again.tails_of(1)[2] == TailShares(*plan.tail_shares[1, 2].tolist())
    assert replace(plan, tail_shares=plan.tail_shares + 0.25).digest() != plan.digest()


def test_one_kind_old_profiles_and_selectors_without_scores_get_named_tails():
    assert gs.make_plan(synthetic(), 8).tail == "blend"
    assert gs.make_plan(synthetic(tail_moments=True), 8).tail == "blend"
    assert gs.make_plan(two_kinds(), 8, robust=False).tail == "blend"
    assert gs.make_plan(replace(two_kinds(), tail_moments=None), 8).tail == "blend"
    profile = two_kinds(selectors=("topn", "sink_recent"))
    assert gs.make_plan(profile, 8, selector="sink_recent").tail == "blend"
    with pytest.raises(gs.GeosparseError, match="make it again with `geosparse profile`"):
        gs.make_plan(synthetic(), 8, tail="fitted")


def test_the_fit_is_better_than_every_named_tail_on_what_it_was_fitted_to():
    profile = synthetic(tail_moments=True)
    fisher, _ = profile.tail_products("topn")
    named = error_at(fisher.unsqueeze(-3), NAMED.expand(*fisher.shape[:-2], *NAMED.shape)).amin(-1)
    assert (fitted(profile, "topn").fisher < named).all()


def test_shares_between_measured_budgets_lie_between_theirs():
    profile = synthetic(tail_moments=True)
    shares = fitted(profile, "topn").shares
    at = shares_at(profile, "topn", torch.full((2, 4), 8))
    torch.testing.assert_close(at, shares[:, :, profile.budgets.index(8)])
    middle = shares_at(profile, "topn", torch.full((2, 4), 11))
    part = (torch.tensor(11.0, dtype=torch.float64).log() - torch.tensor(8.0).log()) / torch.tensor(2.0).log()
    torch.testing.assert_close(middle, shares[:, :, 3] * (1 - part) + shares[:, :, 4] * part, atol=1e-6, rtol=0)
    torch.testing.assert_close(shares_at(profile, "topn", torch.full((2, 4), 60)), shares[:, :, -1])


def test_robust_plans_are_fitted_to_all_kinds():
    plan, own = (gs.make_plan(two_kinds(), 8, tail="fitted", robust=robust) for robust in (True, False))
    assert not torch.equal(plan.tail_shares, own.tail_shares)
    assert plan.kinds["builtin:code"] < own.kinds["builtin:code"]


def test_several_lengths_and_one_kind_beside():
    profile = synthetic(lengths=(64, 64, 128, 128), tail_moments=True)
    profile = replace(profile, calibration=profile.calibration | {"kinds": ["text", "builtin:code", "text", "text"]})
    for length in (64, 128, 100):
        plan = gs.make_plan(profile, 8, length=length)
        assert plan.growth is not None
        assert torch.isfinite(plan.tail_shares).all()
        assert plan.kinds.keys() == {"text", "builtin:code"}


def test_the_control_deals_shares_with_their_heads():
    profile = synthetic(tail_moments=True)
    plan, control = (gs.make_plan(profile, 8, policy, "fitted") for policy in ("fisher", "permuted"))
    assert not torch.equal(plan.tail_shares, control.tail_shares)
    assert sorted(plan.tail_shares.flatten(0, 1).tolist()) == sorted(control.tail_shares.flatten(0, 1).tolist())


def test_candidates_price_the_fitted_tail():
    profile = synthetic(tail_moments=True)
    candidates = Candidates.of(profile, "fitted", "topn")
    curves = candidates.curves("fisher")
    assert (curves[..., 1:] <= curves[..., :-1] + 1e-12).all()
    budgets = torch.full((2, 4), 8)
    assert candidates.total("fisher", budgets, candidates.at(budgets, "fisher")) > 0


def test_plans_refuse_shares_that_do_not_fit():
    plan = gs.make_plan(two_kinds(), 8)
    for shares in (plan.tail_shares[:, :, :3], plan.tail_shares.float(), plan.tail_shares * torch.nan, None):
        with pytest.raises(gs.GeosparseError, match="tail_shares"):
            replace(plan, tail_shares=shares)
    with pytest.raises(gs.GeosparseError, match="tail_shares go with the tail 'fitted' only"):
        replace(plan, tail="even")
    for damage in ([[1.0]], [[[1.0, 2.0, 3.0]] * 4] * 2, [[[1.0, 2.0, 3.0, "a"]] * 4] * 2):
        with pytest.raises(gs.GeosparseError, match="tail_shares"):
            gs.Plan.from_json(plan.to_json() | {"tail_shares": damage})


def test_profiles_hold_the_moments_of_tails(tmp_path):
    profile = synthetic(tail_moments=True, lengths=(64, 64, 128))
    again = gs.Profile.load(profile.save(tmp_path / "p.safetensors"))
    assert again.tail_moments.fisher.equal(profile.tail_moments.fisher)
    assert again.tail_moments.output.equal(profile.tail_moments.output)
    assert again.at(64).tail_moments.fisher.equal(profile.tail_moments.fisher[:2])
    assert gs.Profile.load(synthetic().save(tmp_path / "old.safetensors")).tail_moments is None
