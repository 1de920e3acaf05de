"""Bands: the envelope of each head's last query, the same every time, and its measured coverage."""

from dataclasses import replace

import pytest
import torch

import geosparse as gs
from geosparse.geometry.envelopes import Envelope
from geosparse.reports.bands import Bands, bands

from .test_profile import measured  # noqa: F401


def test_bands_are_bounds_and_repeat(measured):  # noqa: F811
    found, again = bands(measured), bands(measured)
    assert torch.equal(found.envelope.lower.nan_to_num(-1), again.envelope.lower.nan_to_num(-1))
    assert found.envelope.lower.shape == (2, 6, 3, 3)
    assert ((found.envelope.lower >= 0) & (found.envelope.lower <= found.envelope.upper)).all()
    assert (found.envelope.upper <= 1).all()
    final = measured.geometry("f1", place="final")
    assert torch.equal(found.measured[..., 2], final)
    assert ((found.coverage() >= 0) & (found.coverage() <= 1)).all()


def test_bands_do_not_depend_on_threads(measured):  # noqa: F811
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = bands(measured)
        torch.set_num_threads(3)
        three = bands(measured)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.envelope.upper.nan_to_num(-1), three.envelope.upper.nan_to_num(-1))


def test_coverage_counts_what_lies_within_and_leaves_out_the_trivial():
    lower, upper = torch.full((1, 1, 2, 3), 0.2), torch.full((1, 1, 2, 3), 0.6)
    seen = torch.full((4, 1, 1, 2, 3), 0.4)
    seen[0, ..., 1, :] = 0.7
    seen[..., 0, :] = 1.0  # N = 1, outside and of no account
    seen[1, ..., 1, 2] = torch.nan
    found = Bands(Envelope(lower, upper), seen, 0.95)
    assert float(found.coverage()) == pytest.approx(8 / 11)


def test_budgets_that_leave_nothing_out_have_no_bounds(measured):  # noqa: F811
    narrow = replace(measured, limits=(64, 8))
    found = bands(narrow)
    assert torch.isnan(found.envelope.lower[1, :, 2]).all()
    assert torch.isfinite(found.envelope.lower[0]).all()


def test_a_level_that_few_draws_cannot_give(measured):  # noqa: F811
    with pytest.raises(gs.GeosparseError, match=r"A level of 0\.99 needs 199 simulated queries"):
        bands(measured, 0.99)


def test_no_envelope_is_made_of_more_tokens_than_memory_holds(measured, monkeypatch):  # noqa: F811
    monkeypatch.setattr("geosparse.reports.bands.LONGEST", max(measured.limits) - 1)
    longest = torch.tensor(measured.limits) == max(measured.limits)
    lower = bands(measured).envelope.lower
    assert torch.isnan(lower[longest]).all()
    assert not torch.isnan(lower[~longest]).all() or longest.all()
