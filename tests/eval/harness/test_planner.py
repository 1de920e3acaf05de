"""Plans are made once per context length, and baselines are handed a plan only when they ask for one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.harness.methods import Method
from eval.harness.planner import Planner
from eval.harness.recipe import Variant
from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import Profile
from geosparse.profile.profiler import ProfileConfig, profile_model
from tests.tiny import tiny_model, tiny_tokenizer

VARIANT = Variant("fisher", "centroid", None, 0, 8.0, None, None, None)


@pytest.fixture(scope="module")
def profile() -> Profile:
    model = tiny_model(vocab_size=300)
    return profile_model(
        model, tiny_tokenizer(), "one two three four " * 50, ProfileConfig(length=64, windows=1, kinds=())
    )


def test_a_plan_is_made_once_per_length(profile: Profile) -> None:
    profiles: list[int] = []

    def measure() -> Profile:
        profiles.append(1)
        return profile

    planner = Planner(measure, {}, lambda *arguments: pytest.fail("no baseline was named"))
    assert planner.method(VARIANT, 64).plan is planner.method(VARIANT, 64).plan
    assert planner.method(replace(VARIANT, length=32), 64).plan is planner.plans["fisher-centroid-8-at32", 32]
    assert len(profiles) == 1
    assert set(planner.plans) == {("fisher-centroid-8", 64), ("fisher-centroid-8-at32", 32)}


def test_a_baseline_makes_its_own_method(profile: Profile) -> None:
    plans: list[Plan] = []

    def baseline(id: str, name: str, density: float, plan: object) -> Method:
        assert (name, density) == ("a press", 0.25)
        plans.append(plan())  # type: ignore[operator]
        return Method(id)

    planner = Planner(lambda: profile, {}, baseline)
    method = planner.method(replace(VARIANT, mean_keep=None, density=0.25, peer="a press"), 64)
    assert method.plan is None
    assert plans[0].share_kv
