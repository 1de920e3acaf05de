"""The presses of kvpress as methods; they need the environment that `eval.baselines.environment` builds."""

from __future__ import annotations

import pytest
import torch

from eval.baselines.presses import MASK_ATTRIBUTE, PRESSES
from eval.harness.methods import Method
from eval.tasks.decode import Decode
from tests.eval.baselines.tiny_press import LENGTH, SCORED, press


@pytest.mark.parametrize("name", sorted(PRESSES))
def test_presses_keep_what_they_are_asked_to_and_leave_nothing_behind(name: str, task: Decode) -> None:
    pytest.importorskip("kvpress", reason="kvpress is in the environment of the peers only")
    model = task.setting.model
    dense = task.score(0, Method()).values["nll"]
    found = task.score(0, press(model, name, 0.25))
    assert found.values["nll"] != pytest.approx(dense, abs=1e-6)
    assert not any(getattr(module, MASK_ATTRIBUTE, None) for module in model.modules())
    # Dense attention is what it was.
    assert task.score(0, Method()).values["nll"] == pytest.approx(dense, abs=1e-6)
    prompt = LENGTH - SCORED - 1
    one_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, dimension, fp32
    held = found.timing["cache_bytes"] / one_token - SCORED
    if name in ("adakv", "lukv"):
        assert held == prompt
        masked = press(model, name, 0.25)
        masked.shrunken_cache(model, task.prompt(0))
        dropped = sum(len(mask[2]) for _, mask in masked._masks)
        assert 1 - dropped / (2 * 2 * prompt) == pytest.approx(0.25, abs=0.01)
    else:
        assert held == pytest.approx(0.25 * prompt, abs=1)


@pytest.mark.parametrize("name", sorted(PRESSES))
def test_one_pass_for_all_is_what_each_press_would_do(name: str, task: Decode) -> None:
    pytest.importorskip("kvpress", reason="kvpress is in the environment of the peers only")
    from transformers import DynamicCache

    model, theirs = task.setting.model, DynamicCache()
    ours, own = press(model, name, 0.25), press(model, name, 0.25)
    cache = ours.shrunken_cache(model, task.prompt(0))
    with torch.no_grad(), own._press()(model):
        model.model(input_ids=task.windows[0][None, : -SCORED - 1], past_key_values=theirs)
    for one, other in zip(cache.layers, theirs.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)
    for module, mask in ours._masks:
        assert all((a == b).all() for a, b in zip(mask, getattr(module, MASK_ATTRIBUTE), strict=True))


def test_everything_kept_is_dense(task: Decode) -> None:
    pytest.importorskip("kvpress", reason="kvpress is in the environment of the peers only")
    dense = task.score(0, Method()).values["nll"]
    found = task.score(0, press(task.setting.model, "snapkv", 1.0))
    assert found.values["nll"] == pytest.approx(dense, abs=1e-5)
