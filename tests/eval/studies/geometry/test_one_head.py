"""One head alone against the whole model sparsified."""

import pytest

import geosparse as gs
from eval.studies.geometry.one_head import HeadTrial, one_head_losses
from geosparse.measure.loss import token_nll
from tests.tiny import tiny_model, tokens

LENGTH = 40


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("tail", ["drop", "renormalize"])
def test_one_head_alone_costs_what_a_plan_says(kind, tail):
    model, window = tiny_model(kind), tokens(1, LENGTH)[0]
    trials = [HeadTrial(0, 1, 3), HeadTrial(1, 5, 1), HeadTrial(0, 4, 8), HeadTrial(1, 0, 2)]
    dense, found = one_head_losses(model, window, trials, tail)
    assert dense == pytest.approx(token_nll(model, window[None]).mean().item(), rel=1e-5)
    for trial in trials:
        plan = gs.Plan.uniform(model, LENGTH, tail)
        plan.n_keep[trial.layer, trial.head] = trial.n_keep
        with gs.sparsified(model, plan):
            expected = token_nll(model, window[None]).mean().item()
        assert found[trial] == pytest.approx(expected, rel=1e-5)
    assert not any("forward" in module.__dict__ for module in model.modules())
