"""The fits recover what the values and rows were made with, and say so when an assumption is broken."""

import pytest
import torch

from geosparse import GeosparseError
from geosparse.geometry.fits import fit, holds, met
from geosparse.geometry.moments import Moments, lag_bins, total, window_moments

from ..field import rows, values


def fitted(seed=0, windows=4, length=512, dim=64, **changes):
    """Fits of one head; `changes` go to the values or the rows that know them."""
    generator = torch.Generator().manual_seed(seed)
    of_rows = {key: changes.pop(key) for key in ("sink_mass", "recency", "reach", "spread") if key in changes}
    sinks = changes.get("sinks", (0,))
    parts = []
    for _ in range(windows):
        alpha, seen = rows(48, length, generator, sinks, **of_rows)
        parts.append(window_moments(alpha[None], values(length, dim, generator, **changes)[None], seen))
    return fit(total(parts))


def test_norms_and_sink_compression_are_recovered():
    norm = fitted(level=3.0, compression=0.2, sinks=(0, 60)).norm
    assert float(norm.level) == pytest.approx(3.0, rel=0.02)
    assert float(norm.compression) == pytest.approx(0.2, rel=0.2)
    assert float(norm.sinks) == 2
    assert float(norm.first) == 1
    # The norm of a Gaussian vector of 64 dimensions has the relative deviation 1 / sqrt(2 * 64) = 0.088.
    assert float(norm.spread) == pytest.approx(0.088, rel=0.1)
    assert float(norm.mae) == pytest.approx(0.088 * 0.8, rel=0.15)


def test_similarity_decay_floor_and_dimension_are_recovered():
    similarity = fitted(floor=0.1, drop=0.5, decay=6.0).similarity
    assert float(similarity.floor) == pytest.approx(0.1, abs=0.03)
    assert float(similarity.drop) == pytest.approx(0.5, abs=0.05)
    assert float(similarity.length) == pytest.approx(6.0, rel=0.2)
    assert float(similarity.r2) > 0.98
    assert float(similarity.mae) < 0.02
    assert float(similarity.dimension) == pytest.approx(64, rel=0.15)
    assert abs(float(similarity.sink)) < 0.1


def test_a_negative_floor_stays_visible():
    length = 128
    alternating = torch.ones(length, 1, dtype=torch.float64)
    alternating[length // 2 :] = -1
    alpha, seen = rows(16, length, torch.Generator().manual_seed(0), ())
    similarity = fit(window_moments(alpha[None], alternating[None], seen)).similarity
    assert float(similarity.floor) < -0.5


def test_the_profile_has_its_breakpoints_where_they_were_put():
    profile = fitted(length=1024, recency=4.0, reach=31, spread=0.5, sink_mass=0.3).profile
    assert float(profile.sink_mass) == pytest.approx(0.3)
    assert float(profile.r2) > 0.95
    assert float(profile.mae) < 0.2
    # The line falls by 4 nats over 5 doublings up to lag 31 and is flat from there.
    assert float(profile.slope[0, 0]) == pytest.approx(-0.8, abs=0.1)
    assert 16 <= int(profile.ends[0, 1]) <= 64 or 16 <= int(profile.ends[0, 0]) <= 64
    assert profile.spread[0].tolist() == pytest.approx([0.5] * 3, rel=0.15)
    assert float(profile.mass.sum() + profile.sink_mass) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"drop": 0.0, "floor": 0.0}, ["A2"]),
        ({"recency": 0.0, "spread": 1.0}, ["A3"]),
    ],
)
def test_the_verdict_names_the_assumption_that_is_broken(changes, broken):
    verdict = holds(fitted(length=1024, **({"recency": 4.0, "spread": 0.5} | changes)))
    assert [name for name, flags in verdict.items() if not bool(flags)] == broken


def test_unstable_norms_break_the_first_assumption():
    generator = torch.Generator().manual_seed(0)
    alpha, seen = rows(48, 512, generator)
    value = values(512, 64, generator) * torch.randn(512, 1, generator=generator).double().exp()
    assert not bool(holds(fit(window_moments(alpha[None], value[None], seen)))["A1"])


def test_heads_are_fitted_independently_and_counted():
    generator = torch.Generator().manual_seed(4)
    layers = []
    for _ in range(2):
        alpha, seen = rows(24, 256, generator)
        flat, _ = rows(24, 256, generator, recency=0.0)
        layers.append(window_moments(torch.stack([alpha, flat]), values(256, 32, generator)[None], seen))
    together, alone = fit(Moments.stack(layers)), fit(layers[1])
    for name in ("norm", "similarity", "profile"):
        for found, expected in zip(getattr(together, name), getattr(alone, name), strict=True):
            assert torch.allclose(found[1].double(), expected.double(), equal_nan=True)
    counts = met(together)
    assert counts["heads"] == 4
    assert counts["all"] <= min(counts["A1"], counts["A2"], counts["A3"])


def test_bins_cover_every_lag_once():
    for length in (16, 100, 1024):
        for first in (0, 1):
            edges = lag_bins(length, first)
            assert int(edges[0]) == first
            assert int(edges[-1]) == length
            assert bool((edges.diff() > 0).all())


def test_too_short_a_window_is_refused():
    alpha, seen = rows(4, 6, torch.Generator().manual_seed(0), ())
    with pytest.raises(GeosparseError, match="three pieces"):
        fit(window_moments(alpha[None], values(6, 4, torch.Generator().manual_seed(0), sinks=())[None], seen))
