"""Robust plans: every kind of text counts, relative to what the same N for all heads loses there."""

from dataclasses import replace

import pytest
import torch

import geosparse as gs
from geosparse.plan.make_plan import TYPICAL_KEEP
from geosparse.plan.robust import MAX_RATIO, kinds_of, robust, uniform_loss

from ..synthetic import synthetic


def of_kinds(kinds, lengths=(64, 64), scales=None, **changes):
    """A synthetic profile whose windows are of `kinds`, the errors of each multiplied by its scale."""
    profile = synthetic(lengths=lengths, **changes)
    arrays = dict(profile.arrays)
    for name in ("fisher", "output_error"):
        by = torch.tensor(scales or [1.0] * len(kinds)).view(-1, *[1] * (arrays[name].dim() - 1))
        arrays[name] = arrays[name] * by
    return replace(profile, arrays=arrays, calibration=profile.calibration | {"kinds": list(kinds)})


def with_hungry_heads(heads_of_kinds, length=64):
    """Per kind one window in which its own head of layer 0 loses a hundred times as much as others."""
    profile = of_kinds([kind for kind, _ in heads_of_kinds], lengths=(length,) * len(heads_of_kinds))
    arrays = dict(profile.arrays)
    for name in ("fisher", "output_error"):
        array = arrays[name][:1].expand_as(arrays[name]).clone()
        for window, (_, head) in enumerate(heads_of_kinds):
            array[window, :, :, 0, head] *= 100
        arrays[name] = array
    return replace(profile, arrays=arrays)


def test_one_kind_of_text_is_planned_for_as_it_is():
    profile = synthetic()
    assert robust(profile, 8) is profile
    pair = gs.make_plan(profile, 8), gs.make_plan(profile, 8, robust=False)
    assert torch.equal(pair[0].n_keep, pair[1].n_keep)
    assert pair[0].kinds.keys() == {"text"}


def test_a_head_that_another_kind_needs_gets_its_tokens():
    profile = with_hungry_heads([("text", 0), ("builtin:code", 1)])
    specialised, plan = gs.make_plan(profile, 8, robust=False), gs.make_plan(profile, 8)
    assert plan.n_keep.sum() == specialised.n_keep.sum()
    assert plan.n_keep[0, 1] > 2 * specialised.n_keep[0, 1]
    assert plan.kinds.keys() == {"text", "builtin:code"}
    assert plan.kinds["builtin:code"] < specialised.kinds["builtin:code"]
    assert plan.kinds["text"] > specialised.kinds["text"]


def test_specialised_plans_know_the_text_that_was_given_only():
    profile = with_hungry_heads([("text", 0), ("builtin:code", 1)])
    alone = gs.make_plan(profile.of_kinds("text"), 8)
    specialised = gs.make_plan(profile, 8, robust=False)
    assert torch.equal(alone.n_keep, specialised.n_keep)
    assert torch.equal(alone.head_tails, specialised.head_tails)


def test_how_much_a_kind_loses_in_all_does_not_matter():
    """A kind on which every head loses a hundred times as much weighs no more than the other."""
    near, far = (of_kinds(("text", "builtin:code"), scales=scales) for scales in ([1.0, 1.0], [1.0, 100.0]))
    found = [gs.make_plan(profile, 8).n_keep for profile in (near, far)]
    assert torch.equal(*found)


def test_predictions_are_half_the_summed_price():
    profile = of_kinds(("text", "builtin:code"), scales=[1.0, 7.0])
    plan = gs.make_plan(profile, 8, "uniform", "blend50", selector="topn")
    for kind, part in kinds_of(profile).items():
        assert plan.kinds[kind] == pytest.approx(uniform_loss(part, 8), rel=1e-6)
    assert plan.predicted["damage"] == pytest.approx(sum(plan.kinds.values()) / 2, rel=1e-4)


def test_other_lengths_are_moved_as_the_length_with_all_kinds_is():
    profile = of_kinds(("text", "builtin:code", "text"), lengths=(64, 64, 128), scales=[1.0, 3.0, 1.0])
    together = robust(profile, 8)
    assert together.lengths == (64, 128)
    own, both = profile.own().at(64).arrays["fisher"][0], together.arrays["fisher"][0]
    ratio = (both / own).clamp(1 / MAX_RATIO, MAX_RATIO)
    assert torch.allclose(together.arrays["fisher"][1], profile.arrays["fisher"][2] * ratio, rtol=1e-4)
    plan = gs.make_plan(profile, 8)
    assert plan.reference_length == 128
    assert plan.growth is not None
    assert plan.kinds.keys() == {"text", "builtin:code"}


def test_budgets_in_bytes_and_controls_take_all_kinds():
    profile = of_kinds(("text", "builtin:code"))
    assert profile.length >= TYPICAL_KEEP
    assert gs.make_plan(profile, bytes_read=12000).kinds.keys() == {"text", "builtin:code"}
    for policy in ("uniform", "permuted", "random", "mass", "regime", "separability", "entropy", "output_error"):
        assert gs.make_plan(profile, 8, policy).n_keep.sum() == 8 * 8


def test_kinds_survive_the_plans_file(tmp_path):
    plan = gs.make_plan(of_kinds(("text", "builtin:code")), 8)
    plan.save(tmp_path / "plan.json")
    assert gs.Plan.load(tmp_path / "plan.json").kinds == plan.kinds
    data = plan.to_json()
    del data["kinds"]
    assert gs.Plan.from_json(data).kinds == {}
    with pytest.raises(gs.GeosparseError, match="kinds holds no numbers"):
        gs.Plan.from_json(plan.to_json() | {"kinds": {"text": "much"}})
