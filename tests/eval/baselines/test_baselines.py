"""The presses of kvpress as methods; they need the environment that `eval.baselines.environment` builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eval.baselines import baseline
from eval.baselines.environment import PACKAGES, inside
from eval.baselines.presses import MASK_ATTRIBUTE, PRESSES, Press
from eval.baselines.skip_softmax import SkipSoftmax
from eval.harness.methods import Method
from eval.harness.task import Setting
from eval.tasks.decode import Decode, DecodeSettings
from geosparse.errors import GeosparseError
from geosparse.identity import identify
from geosparse.plan import Plan
from tests.tiny import tiny_model, tiny_tokenizer

LENGTH, SCORED = 240, 20


@pytest.fixture
def task(tmp_path: Path) -> Decode:
    (tmp_path / "a.txt").write_text("the cat sat on the mat and looked at the dog. " * 40)
    model = tiny_model(vocab_size=300, max_position_embeddings=4096)
    settings = DecodeSettings("data:a.txt", LENGTH, SCORED, 8, 2, 2)
    return Decode(settings, Setting(model, tiny_tokenizer(), tmp_path, tmp_path, True))


def press(model: Any, name: str, density: float) -> Press:
    keep = torch.full((2, 6), round(density * (LENGTH - SCORED - 1)), dtype=torch.int64)
    plan = Plan(keep, "centroid", LENGTH - SCORED - 1, "uniform", {}, identify(model), share_kv=True)
    return Press("peer", name, density, plan if name == "lukv" else None)


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


# modelopt's imports warn of what torch is to lose.
theirs = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@theirs
@pytest.mark.parametrize("density", [0.3, 0.6])
def test_skip_softmax_keeps_what_it_is_asked_to_and_leaves_nothing_behind(
    density: float, task: Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelopt", reason="modelopt is in the environment of the peers only")
    monkeypatch.setattr("eval.baselines.skip_softmax.BLOCK_TOKENS", 4)
    model, method = task.setting.model, SkipSoftmax("peer", density)
    before = model.config._attn_implementation
    dense = task.score(0, Method()).values["nll"]
    found = task.score(0, method)
    kept, visible = method.counted
    # Ties and drift from the prompt's end to the scored tokens.
    assert kept / visible == pytest.approx(density, abs=0.1)
    assert visible == 2 * 6 * sum(range(LENGTH - SCORED, LENGTH))
    assert found.values["nll"] != pytest.approx(dense, abs=1e-6)
    assert model.config._attn_implementation == before
    assert task.score(0, Method()).values["nll"] == pytest.approx(dense, abs=1e-6)


@theirs
def test_nothing_skipped_is_dense(task: Decode) -> None:
    pytest.importorskip("modelopt", reason="modelopt is in the environment of the peers only")
    dense = task.score(0, Method()).values["nll"]
    assert task.score(0, SkipSoftmax("peer", 1.0)).values["nll"] == pytest.approx(dense, abs=1e-5)


def test_unknown_peers_and_a_missing_kvpress_are_one_sentence(task: Decode, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GeosparseError, match="did you mean 'snapkv'"):
        baseline("x", "snapvk", 0.1, Plan)
    monkeypatch.setitem(__import__("sys").modules, "kvpress", None)
    with pytest.raises(GeosparseError, match="environment: peers"):
        task.score(0, press(task.setting.model, "tova", 0.1))
    for name in ("modelopt", "modelopt.torch.sparsity.attention_sparsity.methods.flash_skip_softmax"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(GeosparseError, match="skip_softmax needs nvidia-modelopt"):
        task.score(0, SkipSoftmax("x", 0.1))


def test_the_environment_pins_what_is_compared() -> None:
    assert not inside()
    assert any(package.startswith("kvpress==") for package in PACKAGES)
    assert any(package.startswith("transformers==") for package in PACKAGES)
