"""A tolerance is found by measurement, verified elsewhere, and the budget grows where that fails."""

import pytest
import torch

import geosparse as gs
from geosparse.measure import tolerance as module
from geosparse.measure.tolerance import Measured, _parts, _search, plan_within

from ..tiny import tiny_model, tokens


@pytest.mark.parametrize("wanted", [1.0, 3.0, 17.3, 32.0, 40.0, 1000.0])
def test_the_search_brackets_the_smallest_budget_that_passes(wanted):
    tried = []

    def passes(mean_keep):
        tried.append(mean_keep)
        return mean_keep >= wanted

    found = _search(passes, 1024.0)
    assert wanted <= found <= wanted * module.RESOLUTION
    assert len(tried) < 14
    assert _search(lambda mean_keep: False, 64.0) == 64.0


def test_the_limit_is_students_prediction_limit():
    measured = Measured((0.01, 0.03, 0.02, 0.02))
    # t(0.95, 3) = 2.3534, standard deviation 0.00816.
    assert measured.limit == pytest.approx(0.02 + 2.3534 * 0.0081650 * 1.25**0.5, rel=1e-4)


def test_parts_of_the_verification_are_disjoint():
    windows = torch.arange(30)[:, None]
    parts = _parts(windows)
    assert len(parts) <= module.ATTEMPTS
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(30))
    assert min(map(len, parts)) >= module.FEWEST_WINDOWS


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def make_for(model):
    return lambda mean_keep: gs.Plan.uniform(model, max(1, round(mean_keep)), "renormalize")


def test_a_plan_within_the_tolerance(model, tmp_path):
    said = []
    plan = plan_within(model, make_for(model), 0.01, tokens(4, 48), tokens(4, 48, seed=1), say=said.append)
    assert plan.verified["limit"] <= 0.01
    assert plan.verified["windows"] == 4
    assert plan.budget == {"tolerance": 0.01}
    assert plan.verified["interval"][0] <= plan.verified["increase"] <= plan.verified["interval"][1]
    assert "never used before" in said[-1]
    assert gs.Plan.load(plan.save(tmp_path / "plan.json")).verified == plan.verified


def test_a_failed_verification_grows_the_budget_and_says_so(model, monkeypatch):
    answers = iter([0.005, *[0.02] * 20])
    monkeypatch.setattr(module, "_search", lambda passes, most: 8.0)
    monkeypatch.setattr(module, "_measure", lambda *rest: Measured((next(answers),) * 4))
    said = []
    answers = iter([0.02, 0.005])
    plan = plan_within(model, make_for(model), 0.01, tokens(4, 48), tokens(12, 48), say=said.append)
    assert plan.verified["failed"] == 1
    assert plan.mean_keep == round(8 * 2**0.5)
    assert any("the verification failed" in line for line in said)
    answers = iter([0.02] * 9)
    with pytest.raises(gs.GeosparseError, match=r"was verified within 0\.01 in 2 attempts"):
        plan_within(model, make_for(model), 0.01, tokens(4, 48), tokens(12, 48))


def test_what_cannot_be_measured_is_refused(model):
    with pytest.raises(gs.GeosparseError, match="a relative loss increase above 0"):
        plan_within(model, make_for(model), 0.0, tokens(4, 48), tokens(4, 48))
    with pytest.raises(gs.GeosparseError, match="needs 4 windows of verification text or more, found 3"):
        plan_within(model, make_for(model), 0.1, tokens(4, 48), tokens(3, 48))
