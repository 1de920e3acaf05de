"""The theorems of geometry/README.md by simulation: coverage under the law, and what breaks it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse import GeosparseError
from geosparse.geometry.envelopes import inversions, level_envelope, mean_envelope, simulated_envelope, student_tail
from geosparse.geometry.fits import fit
from geosparse.geometry.moments import window_moments
from geosparse.geometry.separation import selection_order, separation
from geosparse.geometry.value_law import Law, covariance, sample_rows, sample_values, simulate

from ..field import rows, values
from ..utils.test_intervals import series_cdf

LAW = Law(level=2.0, compression=0.2, floor=0.3, drop=0.4, length=3.0, sink=-0.2, dimension=64)
BUDGETS = (2, 8, 32)


def row(length=256, spread=1.5, seed=0):
    alpha, _ = rows(1, length, torch.Generator().manual_seed(seed), (0, 40), spread=spread)
    sinks = torch.zeros(length, dtype=torch.bool)
    sinks[[0, 40]] = True
    return alpha[0], sinks


def outcomes(law, alpha, sinks, draws, seed, budgets=BUDGETS):
    generator = torch.Generator().manual_seed(seed)
    return simulate(law, alpha[None], torch.ones_like(alpha, dtype=torch.bool)[None], sinks, budgets, generator, draws)[
        :, 0
    ]


@given(st.floats(-0.999, 0.999), st.integers(1, 300))
@settings(max_examples=60)
def test_the_tail_is_students_and_below_its_exponential_bound(margin, dimension):
    tail = float(student_tail(torch.tensor([margin], dtype=torch.float64), dimension))
    expected = series_cdf(-math.sqrt(dimension) * margin / math.sqrt(1 - margin**2), dimension)
    assert tail == pytest.approx(expected, abs=1e-9)
    if margin >= 0:
        assert tail <= (1 - margin**2) ** (dimension / 2) + 1e-12


def test_sampled_values_have_the_covariance_of_the_law():
    sinks = torch.zeros(90, dtype=torch.bool)
    sinks[[0, 7]] = True
    value = sample_values(LAW, sinks, 200, torch.Generator().manual_seed(0)).double()
    place = torch.arange(90)
    expected = covariance(LAW, place, place, sinks)
    found = torch.einsum("wid,wjd->ij", value, value) / 200
    # 200 windows of 64 coordinates: entries scatter by at most sqrt(2 / 12800) = 0.0125 of level^2 = 4; 8100 entries.
    assert (found - expected).abs().max() < 4 * 0.0125 * 5
    assert torch.linalg.eigvalsh(expected).min() > -1e-9


@pytest.mark.parametrize("budget", BUDGETS)
def test_each_inversion_has_its_exact_probability(budget):
    alpha, sinks = row(64)
    pairs = inversions(LAW, alpha, sinks, budget)
    draws = 2000
    value = sample_values(LAW, sinks, draws, torch.Generator().manual_seed(1)).double()
    order = selection_order(alpha, torch.ones(64, dtype=torch.bool))
    y = (alpha[:, None] * value)[:, order]
    distance = (y - y[:, :budget].sum(1, keepdim=True)).norm(dim=-1)
    found = (distance[:, None, budget:] <= distance[:, :budget, None]).double().mean(0)
    scatter = (pairs.probability * (1 - pairs.probability) / draws).sqrt()
    assert ((found - pairs.probability).abs() <= 5 * scatter + 2 / draws).all()


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_mean_envelope_holds_the_means_and_is_not_vacuous(spread):
    alpha, sinks = row(spread=spread)
    found = outcomes(LAW, alpha, sinks, 400, 2)
    for column, budget in enumerate(BUDGETS):
        envelope = mean_envelope(inversions(LAW, alpha, sinks, budget))
        mean, error = found[:, column].mean(0), 4 * found[:, column].std(0) / 20 + 1e-6
        assert (envelope.lower <= mean + error).all()
        assert (mean - error <= envelope.upper).all()
        assert (envelope.upper - envelope.lower).min() < 0.7


def test_more_dimensions_and_wider_margins_separate_better():
    alpha = torch.full((256,), 0.2 / 252, dtype=torch.float64)
    alpha[[20, 90, 160, 230]] = 0.2
    sinks = torch.zeros(256, dtype=torch.bool)
    dimensions = (4, 16, 64, 256)
    pairs = [inversions(LAW._replace(dimension=d), alpha, sinks, 4) for d in dimensions]
    lower = [mean_envelope(found).lower for found in pairs]
    assert all((b >= a - 1e-12).all() for a, b in itertools.pairwise(lower))
    assert lower[-1].min() > 0.9 > lower[0].max()
    least = float(pairs[0].margin.min())
    assert least > 0
    for found, dimension in zip(pairs, dimensions, strict=True):
        assert float(found.probability.sum()) <= 4 * 252 * (1 - least**2) ** (dimension / 2) + 1e-12
    closer = inversions(LAW, alpha.sqrt() / alpha.sqrt().sum(), sinks, 4)
    assert closer.margin.max() < pairs[0].margin.min()


def test_the_level_envelope_covers_at_its_level():
    for dimension, seed in ((64, 3), (512, 4)):
        law = LAW._replace(dimension=dimension)
        alpha, sinks = row(spread=2.0, seed=seed)
        found = outcomes(law, alpha, sinks, 200, seed)
        for column, budget in enumerate(BUDGETS):
            envelope = level_envelope(inversions(law, alpha, sinks, budget), 0.9)
            inside = ((found[:, column] >= envelope.lower - 1e-6) & (found[:, column] <= envelope.upper + 1e-6)).all(-1)
            assert float(inside.double().mean()) >= 0.9


def test_the_simulated_envelope_covers_at_its_level():
    inside, width = [], []
    for seed in range(24):
        alpha, sinks = row(spread=1.0 + seed % 3 / 2, seed=seed)
        found = outcomes(LAW, alpha, sinks, 19 + 20, 100 + seed)
        envelope = simulated_envelope(found[:19], 0.9)
        inside.append(((found[19:] >= envelope.lower) & (found[19:] <= envelope.upper)).double().mean(0))
        width.append(envelope.upper - envelope.lower)
    # 24 envelopes; the coverage of one with 19 draws scatters by 0.065 (a beta law), their mean by 0.013.
    assert (torch.stack(inside).mean(0) >= 0.9 - 3 * 0.013).all()
    assert torch.stack(width).mean() < 0.6


@pytest.mark.parametrize("broken", ["norms", "similarity", "profile"])
def test_a_broken_assumption_costs_coverage(broken):
    generator = torch.Generator().manual_seed(5)
    length, budgets, held, kept = 256, (8, 32), [], []
    for _ in range(12):
        alpha, seen = rows(24, length, generator, (0,), spread=1.5)
        value = values(length, 64, generator, 0.1, 0.3, 3.0)
        fits = fit(window_moments(alpha[None], value[None], seen))
        law, sinks = Law.of(fits, (0,)), torch.arange(length) == 0
        last = seen[-1:]
        if broken == "profile":
            drawn = sample_rows(fits.profile, (0,), sinks, 39, generator)[:, None]
            envelope = simulated_envelope(simulate(law, drawn, last, sinks, budgets, generator).mean(1))
            flat, _ = rows(1, length, generator, (0,), spread=0.0, recency=0.0)
            alphas, others = (alpha[-1], flat[0]), (value, value)
        else:
            envelope = simulated_envelope(simulate(law, alpha[-1:], last, sinks, budgets, generator).mean(1))
            if broken == "norms":
                other = value * (1.5 * torch.randn(length, 1, generator=generator).double()).exp()
            else:
                topic = torch.randn(4, 64, generator=generator).double() / 8
                other = topic[torch.randint(4, (length,), generator=generator)]
            alphas, others = (alpha[-1], alpha[-1]), (value, other)
        for store, weights, v in zip((held, kept), alphas, others, strict=True):
            order = selection_order(weights[None], last)
            found = separation(weights[None], v, order, last, budgets)
            metric = torch.stack([found.precision, found.recall, found.f1], -1)[0]
            store.append(((metric >= envelope.lower - 1e-6) & (metric <= envelope.upper + 1e-6)).double().mean())
    assert torch.stack(kept).mean() < torch.stack(held).mean() - 0.1
    assert torch.stack(held).mean() > 0.85


def test_the_law_of_a_fit_is_the_law_that_made_the_values():
    generator = torch.Generator().manual_seed(6)
    alpha, seen = rows(48, 1024, generator)
    value = values(1024, 48, generator, 0.2, 0.5, 5.0, level=3.0)
    law = Law.of(fit(window_moments(alpha[None], value[None], seen)), (0,))
    assert law.level == pytest.approx(3.0, rel=0.05)
    assert law.floor == pytest.approx(0.2, abs=0.08)
    assert law.drop == pytest.approx(0.5, abs=0.08)
    assert law.length == pytest.approx(5.0, rel=0.3)
    assert law.dimension == pytest.approx(48, rel=0.25)
    assert law.sink**2 <= law.floor


def test_rows_of_the_profile_have_its_mass_and_recency():
    generator = torch.Generator().manual_seed(7)
    alpha, seen = rows(48, 512, generator, recency=4.0, reach=31, spread=0.5)
    profile = fit(window_moments(alpha[None], values(512, 16, generator)[None], seen)).profile
    sinks = torch.arange(512) == 0
    drawn = sample_rows(profile, (0,), sinks, 200, generator)
    assert torch.allclose(drawn.sum(-1), torch.ones(200, dtype=torch.float64))
    assert float(drawn[:, 0].mean()) == pytest.approx(0.3, abs=0.02)
    weight = (4 * (1 - torch.log2(1 + torch.arange(511.0)) / 5).clamp_min(0.0)).exp()
    assert float(drawn[:, -16:].sum(-1).mean()) == pytest.approx(0.7 * float(weight[:16].sum() / weight.sum()), rel=0.1)


def test_what_has_no_envelope_is_refused():
    alpha, sinks = row(16 + 48)
    with pytest.raises(GeosparseError, match="1 <= N < 64"):
        inversions(LAW, alpha, sinks, 64)
    with pytest.raises(GeosparseError, match="39 simulated"):
        simulated_envelope(torch.zeros(38, 3))
    with pytest.raises(GeosparseError, match="between 0 and 1"):
        level_envelope(inversions(LAW, alpha, sinks, 2), 1.0)
