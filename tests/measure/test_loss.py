"""Losses against a computation by hand, and paired differences."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import geosparse as gs
from geosparse.hf.layers import check_context, context_limit
from geosparse.measure.loss import check_windows, excess, policy_label, score, sparse_nll, summary, token_nll

from ..tiny import tiny_model, tokens


def test_loss_of_every_token_but_the_first():
    model, windows = tiny_model(), tokens(3, 20)
    found = token_nll(model, windows)
    assert found.shape == (3, 19)
    assert found.dtype == torch.float32
    for row in range(3):
        chances = model(windows[row : row + 1]).logits[0].double().log_softmax(-1)
        for place in range(1, 20):
            assert found[row, place - 1].item() == pytest.approx(
                -chances[place - 1, windows[row, place]].item(), abs=1e-5
            )


def test_summary():
    assert summary(torch.full((2, 3), 2.0)) == {"nll": 2.0, "perplexity": pytest.approx(math.e**2)}
    assert summary(torch.full((2, 3), 1e4))["perplexity"] is None


def test_excess_is_paired():
    dense = torch.rand(4, 10)
    assert excess(dense, dense) == {"excess_nll": 0.0, "excess_nll_interval": [0.0, 0.0]}
    per_window = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = excess(torch.zeros(4, 10), per_window[:, None].expand(4, 10))
    assert found["excess_nll"] == pytest.approx(0.25)
    half = 3.182446 * per_window.double().std().item() / 2
    assert found["excess_nll_interval"] == pytest.approx([0.25 - half, 0.25 + half], abs=1e-5)
    assert excess(dense[:1], dense[:1]) == {"excess_nll": 0.0, "excess_nll_interval": None}


def test_a_full_budget_costs_nothing():
    model, windows = tiny_model(), tokens(2, 30)
    result = score(model, gs.Plan.uniform(model, 30), windows)
    assert json.loads(json.dumps(result)) == result
    assert (result["windows"], result["length"], result["tokens"]) == (2, 30, 58)
    assert result["sparse"]["density"] == 1.0
    assert result["sparse"]["mean_kept"] == 15.5
    assert abs(result["sparse"]["excess_nll"]) < 1e-5
    assert "sparse" not in score(model, None, windows)


def test_a_small_budget_is_counted_exactly():
    model, windows = tiny_model(), tokens(2, 30)
    nll, receipt = sparse_nll(model, gs.Plan.uniform(model, 4), windows)
    assert nll.shape == (2, 29)
    assert receipt.mean_kept == pytest.approx((1 + 2 + 3 + 27 * 4) / 30)
    assert receipt.density == pytest.approx((1 + 2 + 3 + 27 * 4) / (30 * 31 / 2))
    assert (nll - token_nll(model, windows)).abs().max() > 1e-3


def test_losses_that_are_not_finite():
    model = tiny_model()
    model.lm_head.weight[7] = torch.nan
    with pytest.raises(gs.GeosparseError, match=r"The loss is not finite \(dense\): .*use a sound checkpoint"):
        score(model, None, tokens(1, 20))


def test_a_window_beyond_the_context_of_the_model():
    model = tiny_model(max_position_embeddings=16)
    token_nll(model, tokens(1, 16))
    with pytest.raises(gs.GeosparseError) as caught:
        token_nll(model, tokens(1, 17))
    assert str(caught.value) == (
        "A context of 17 tokens is longer than the 16 that this LlamaForCausalLM allows (max_position_embeddings): "
        "give a smaller --length."
    )


def test_context_limit():
    assert context_limit(tiny_model()) == 512
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 1e4}
    model = tiny_model()
    model.config.rope_parameters = stretched
    assert context_limit(model) == 2048
    model.config.rope_parameters = {"full_attention": stretched, "sliding_attention": {"rope_type": "default"}}
    assert context_limit(model) == 2048
    model.config.rope_parameters = None
    assert context_limit(model) == 512


@pytest.mark.parametrize("config", [SimpleNamespace(), SimpleNamespace(max_position_embeddings=-1)])
def test_a_model_that_does_not_say_its_context(config):
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    assert context_limit(model) is None
    check_context(model, 10**9, "unused")


def test_labels_and_notes():
    model = tiny_model()
    assert policy_label(gs.Plan.uniform(model, 32)) == "uniform/renormalize 32"
    assert check_windows(tokens(2, 8), 2) == ()
    assert check_windows(tokens(2, 8), None) == ()
    assert check_windows(tokens(2, 8), 5) == ("the text holds only 2 windows of 8 tokens, not 5",)
