"""What a profile costs: the pass it is held against, and the ratios."""

import pytest

from eval.benchmarks.profile_cost import compare, pass_once
from geosparse.measure.loss import token_nll
from tests.tiny import tiny_model, tokens


def test_the_pass_is_the_models_own_loss():
    model, window = tiny_model(), tokens(1, 40)[0]
    assert pass_once(model, window) == pytest.approx(float(token_nll(model, window[None]).mean()), rel=1e-5)
    assert not model.get_input_embeddings()._forward_hooks


def test_ratios_are_of_medians_and_peaks():
    def runs(*seconds):
        return [{"seconds": s, "processor_seconds": 2 * s, "peak_bytes": 1000 * s} for s in seconds]

    table = compare({"pass": runs(1.0, 2.0, 9.0), "profile": runs(3.0, 3.0, 10.0), "planning": runs(8.0)})
    assert table["time_ratio"] == pytest.approx(1.5)
    assert table["extra_bytes"] == 1000
    assert table["planning_ratio"] == pytest.approx(4)
    assert table["within"] == {"time": True, "memory": True}
