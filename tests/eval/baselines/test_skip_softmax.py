"""modelopt's skip-softmax as a method; it needs the environment that `eval.baselines.environment` builds."""

from __future__ import annotations

import pytest

from eval.baselines.skip_softmax import SkipSoftmax
from eval.harness.methods import Method
from eval.tasks.decode import Decode
from tests.eval.baselines.tiny_press import LENGTH, SCORED

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
