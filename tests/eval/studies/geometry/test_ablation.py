"""Starved and silenced heads are the ones that were asked for."""

import pytest
import torch

from eval.studies.geometry.ablation import MODES, damage, silenced, some_of
from geosparse.hf.layers import attention_layers
from geosparse.measure.loss import token_nll
from tests.tiny import tiny_model, tokens


@pytest.mark.parametrize("mode", MODES)
def test_touching_no_head_costs_nothing_and_touching_all_does(mode):
    model = tiny_model()
    windows = tokens(2, 48)
    dense = token_nll(model, windows)
    none = torch.zeros(2, 6, dtype=torch.bool)
    assert damage(model, windows, none, mode, dense).abs().max() < 1e-5
    assert damage(model, windows, ~none, mode, dense).abs().min() > 1e-4


def test_a_silenced_head_writes_nothing():
    model = tiny_model()
    ids = tokens(1, 12)
    heads = torch.zeros(2, 6, dtype=torch.bool)
    heads[1, 4] = True
    seen = []
    projection = attention_layers(model)[1].projection
    hook = projection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].view(1, 12, 6, 8)))
    with silenced(model, heads), torch.no_grad():
        model(ids)
    hook.remove()
    assert not seen[0][..., 4, :].any()
    assert seen[0][..., [0, 1, 2, 3, 5], :].abs().sum(-1).min() > 0


def test_random_sets_have_the_size_and_stay_inside():
    pool = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    one, two = (some_of(pool, 5, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for chosen in (one, two):
        assert int(chosen.sum()) == 5
        assert not (chosen & ~pool).any()
    assert not torch.equal(one, two)
