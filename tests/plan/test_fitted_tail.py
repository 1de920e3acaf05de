"""The fitted tail: shares by least squares from second moments."""

import torch

from geosparse.artifacts.tail_moments import PARTS, error_at, pack, unpack
from geosparse.ops.tails import TAIL_RULES
from geosparse.plan.fitted_tail import MOST, NAMED, fit_shares


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
