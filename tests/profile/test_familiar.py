"""Whether a text is like those that a plan's profile saw."""

from dataclasses import replace

import pytest
import torch

import geosparse as gs
from geosparse.artifacts.seen import Seen
from geosparse.profile.familiar import ALLOWED, MARGIN, NAMED, kept_mass, outside, unfamiliar

from ..tiny import tiny_model, tiny_tokenizer

TEXT = "one two three four five six seven eight " * 60


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=300)


@pytest.fixture(scope="module")
def profile(model):
    config = gs.ProfileConfig(length=64, windows=2, queries=60, kinds=("code",), second_pass=False)
    return gs.profile_model(model, tiny_tokenizer(), TEXT, config)


@pytest.fixture
def plan(profile):
    return gs.make_plan(profile, 8)


def window(text=TEXT):
    return gs.token_windows(tiny_tokenizer(), text, 64, 1)[0]


def test_a_plan_holds_the_range_of_every_heads_kept_mass(profile):
    plan = gs.make_plan(profile, 4, "uniform")
    column = profile.arrays["mass"][:, 0, :, :, profile.budgets.index(4)].double()
    assert plan.seen.length == 64
    assert torch.allclose(plan.seen.low, column.amin(0), atol=1e-6)
    assert torch.allclose(plan.seen.high, column.amax(0), atol=1e-6)
    alone = gs.make_plan(profile, 4, "uniform", robust=False)
    assert torch.allclose(alone.seen.high, column[:2].amax(0), atol=1e-6)


def test_kept_mass_is_that_of_the_profile(model, plan):
    # Every position counts in both, as there are hardly more than are sampled.
    mass = kept_mass(model, plan, window())
    assert bool((mass > plan.seen.low - 0.03).all())
    assert bool((mass < plan.seen.high + 0.03).all())


def test_the_calibration_text_is_familiar(model, plan):
    assert outside(model, plan, window()) == []
    assert unfamiliar(model, plan, window()) is None


def test_heads_outside_are_named_the_furthest_first(model, plan):
    seen = plan.seen
    low, high = seen.low.clone(), seen.high.clone()
    low[0, 1], high[1, 2] = high[0, 1] + 3 * MARGIN, low[1, 2] - 5 * MARGIN
    there = replace(plan, seen=Seen(64, low, high))
    assert [(each.layer, each.head) for each in outside(model, there, window())] == [(1, 2), (0, 1)]
    assert unfamiliar(model, there, window()) is None
    low[0, 3:5] = high[0, 3:5] + 2 * MARGIN
    assert NAMED == 4 > ALLOWED * plan.n_keep.numel()
    said = unfamiliar(model, replace(plan, seen=Seen(64, low, high)), window())
    assert f"4 of {plan.n_keep.numel()} heads" in said
    assert "most of all layer 1 head 2, layer 0 head 1, layer 0 head" in said


def test_nothing_is_said_where_nothing_is_known(model, plan):
    assert outside(model, gs.Plan.uniform(model, 8), window()) == []
    assert outside(model, plan, window()[:63]) == []


def test_the_range_survives_the_plans_file(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    loaded = gs.Plan.load(tmp_path / "plan.json")
    assert loaded.seen.length == 64
    assert torch.allclose(loaded.seen.low, plan.seen.low, atol=1e-4)
    data = plan.to_json()
    for seen in (7, {"length": 64}, data["seen"] | {"low": [[0.5]]}, data["seen"] | {"length": "long"}):
        with pytest.raises(gs.GeosparseError, match="seen"):
            gs.Plan.from_json(data | {"seen": seen})
    del data["seen"]
    assert gs.Plan.from_json(data).seen is None
