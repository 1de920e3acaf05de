"""Tail errors against their identities."""

import torch

from geosparse.geometry.separation import rank_of, selection_order
from geosparse.geometry.tail_error import kept_errors
from geosparse.ops import Span
from geosparse.ops.tails import TAIL_RULES
from geosparse.ops.visibility import page_mean


def test_tail_errors_are_the_identities():
    generator = torch.Generator().manual_seed(2)
    alpha = (3 * torch.randn(5, 40, generator=generator)).double().softmax(-1)
    value = torch.randn(40, 8, generator=generator).double()
    seen = torch.ones(5, 40, dtype=torch.bool)
    rank = rank_of(selection_order(alpha, seen))
    result = kept_errors(alpha, value, [(rank < n, None) for n in (1, 4, 16, 40)], seen)
    for column, n in enumerate([1, 4, 16]):
        kept = rank < n
        mass = (alpha * kept).sum(-1, keepdim=True)
        mu_s = (alpha * kept) @ value / mass
        mu_t = (alpha * ~kept) @ value / (1 - mass)
        missing = {"drop": mu_t, "renormalize": mu_t - mu_s, "centroid": mu_t - value.mean(0)}
        for tail, vector in missing.items():
            assert torch.allclose(result.error[tail][:, column], -(1 - mass) * vector, atol=1e-12)
        assert torch.allclose(result.mass[:, column], mass[:, 0])
    assert all(error[:, 3].abs().max() == 0 for error in result.error.values())


def test_a_set_that_holds_next_to_no_mass_is_renormalised_without_overflow():
    """Weights of 1e-9 beside a sum that rounds to more or less than 1: no sink is read into the rounding."""
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(64, 1000, generator=generator)
    scores[:, -1] = -20.0
    alpha, value = scores.softmax(-1), torch.randn(1000, 8, generator=generator)
    seen = torch.ones(64, 1000, dtype=torch.bool)
    keep = torch.zeros_like(seen)
    keep[:, -1] = True
    errors = kept_errors(alpha, value, [(keep, None)], seen)
    expected = value[-1] - alpha @ value
    assert torch.allclose(errors.error["renormalize"][:, 0], expected, atol=1e-4)


def test_a_believed_mass_scales_what_is_kept():
    """Against the definition: the others weigh what they are believed to, beside a sink that keeps its weight."""
    scores = torch.tensor([[2.0, 1.0, 0.5, -1.0]], dtype=torch.float64)
    believed = torch.tensor([[0.0, 0.0, 1.5, 0.25]], dtype=torch.float64)
    value = torch.eye(4, dtype=torch.float64)
    seen = torch.ones(1, 4, dtype=torch.bool)
    keep = torch.tensor([[True, True, False, False]])
    sink = 0.7
    weights = scores.exp()
    alpha = weights / (weights.sum() + sink)
    errors = kept_errors(alpha, value, [(keep, believed)], seen, scores)
    whole = weights[0, :2].sum() + believed[0, 2:].exp().sum() + sink
    kept = torch.cat([weights[0, :2], torch.zeros(2, dtype=torch.float64)]) / whole
    torch.testing.assert_close(errors.mass[0, 0], kept.sum())
    torch.testing.assert_close(errors.error["drop"][0, 0], kept - alpha[0])
    renormalized = kept / (kept.sum() + sink / whole)
    torch.testing.assert_close(errors.error["renormalize"][0, 0], renormalized - alpha[0])
    missing = believed[0, 2:].exp().sum() / whole
    torch.testing.assert_close(errors.error["centroid"][0, 0], kept + missing * value.mean(0) - alpha[0])


def test_parts_give_the_error_of_every_named_tail_and_of_pages():
    generator = torch.Generator().manual_seed(4)
    keys, value = 45, torch.randn(45, 8, generator=generator)
    seen = Span().mask(10, keys)[0, 0]
    scores = torch.randn(2, 10, keys, generator=generator).masked_fill(~seen, -torch.inf)
    believed = (scores + 0.3 * torch.randn(scores.shape, generator=generator)).masked_fill(~seen, -torch.inf)
    alpha = scores.softmax(-1)
    rank = rank_of(selection_order(scores, seen))
    for estimate in (None, believed):
        errors = kept_errors(alpha, value, [(seen & (rank < n), estimate) for n in (1, 7)], seen, scores)
        for tail, error in errors.error.items():
            shares = torch.tensor(TAIL_RULES[tail].shares)
            found = torch.einsum("s,...sd->...d", shares, errors.parts[..., 1:, :]) - errors.parts[..., 0, :]
            torch.testing.assert_close(found, error, atol=1e-5, rtol=1e-5)
        known = torch.where(rank < 7, scores, scores if estimate is None else estimate)
        weight = known.softmax(-1)
        expected = page_mean(weight.masked_fill(rank < 7, 0.0), seen) @ value
        torch.testing.assert_close(errors.parts[..., 1, 4, :], expected, atol=1e-5, rtol=1e-5)
