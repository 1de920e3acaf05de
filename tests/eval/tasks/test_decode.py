"""The decode protocol on a tiny model."""

from __future__ import annotations

from itertools import accumulate, cycle
from typing import Any

import pytest

from eval.harness.methods import Method
from eval.harness.task import Setting
from eval.tasks import TASKS, decode
from geosparse.artifacts.plan import Plan
from geosparse.measure.loss import token_nll


def test_decode_scores_every_method_on_the_same_tokens(setting: Setting, asked: Any) -> None:
    settings = asked("{task: decode, length: 200, scored: 40, timed: 3, samples: 2}")
    task = TASKS["decode"](settings, setting)
    dense, whole = Method(), Method("whole", Plan.uniform(setting.model, 4096, "drop"))
    few = Method("few", Plan.uniform(setting.model, 4))
    found = {method.id: task.score(0, method) for method in (dense, whole, few)}
    expected = float(token_nll(setting.model, task.windows[:1])[0, -40:].double().mean())
    assert found["dense"].values["nll"] == pytest.approx(expected, abs=1e-5)
    assert found["whole"].values["nll"] == pytest.approx(expected, abs=1e-4)
    assert found["few"].values["nll"] != pytest.approx(expected, abs=1e-6)
    heads = setting.model.config.num_hidden_layers * setting.model.config.num_attention_heads
    assert few.counted[0] == 40 * heads * 4
    assert whole.counted[0] == whole.counted[1]
    bytes_of_cache = 2 * 2 * 2 * 8 * 199 * 4  # layers, keys and values, KV heads, dimension, tokens, fp32
    assert found["dense"].timing["cache_bytes"] == bytes_of_cache
    assert all(each.timing["ms_per_token"] > 0 for each in found.values())
    assert found["few"].timing["ms_per_token_torch_products"] > 0
    assert "ms_per_token_torch_products" not in found["dense"].timing


def test_decode_is_timed_in_turns_with_dense(setting: Setting, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = accumulate(cycle((0.5, 1.0, 3.0)))  # between steps, of the method's step, of the dense one
    monkeypatch.setattr(decode, "_now", lambda device: next(clock))
    settings = asked("{task: decode, length: 200, scored: 40, timed: 3, samples: 1}")
    timing = TASKS["decode"](settings, setting).score(0, Method("few", Plan.uniform(setting.model, 4))).timing
    for which in ("", "_torch_products"):
        assert timing[f"ms_per_token{which}"] == pytest.approx(1000)
        assert timing[f"times_dense{which}"] == pytest.approx(3)
