"""Baselines that are not known or not installed."""

from __future__ import annotations

import pytest

from eval.baselines import baseline
from eval.baselines.skip_softmax import SkipSoftmax
from eval.tasks.decode import Decode
from geosparse.artifacts.plan import Plan
from geosparse.errors import GeosparseError
from tests.eval.baselines.tiny_press import press


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
