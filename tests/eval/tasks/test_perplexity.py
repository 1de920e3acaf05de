"""Perplexity by position on a tiny model."""

from __future__ import annotations

from typing import Any

import pytest

from eval.harness.methods import Method
from eval.harness.task import Setting
from eval.tasks import TASKS
from geosparse.artifacts.plan import Plan
from geosparse.measure.loss import token_nll
from geosparse.sparsify.patch import sparsified


def test_perplexity_is_the_loss_of_whole_windows(setting: Setting, asked: Any) -> None:
    task = TASKS["perplexity"](asked("{task: perplexity, length: 700, samples: 2, chunk: 90}"), setting)
    plan = Plan.uniform(setting.model, 16)
    with sparsified(setting.model, plan):
        values = task.score(1, Method("sparse", plan)).values
        whole = token_nll(setting.model, task.windows[1:2])[0].double()
    assert values["nll"] == pytest.approx(float(whole.mean()), abs=1e-5)
    assert values["nll 256-511"] == pytest.approx(float(whole[255:511].mean()), abs=1e-5)
    assert set(values) == set(task.metrics) == {"nll", "nll 1-255", "nll 256-511", "nll 512-699"}
    parts = {"nll 1-255": 255, "nll 256-511": 256, "nll 512-699": 188}
    assert sum(values[name] * count for name, count in parts.items()) / 699 == pytest.approx(values["nll"])
