"""What is remembered of a model holds for as long as the model is the same."""

import copy

import pytest
import torch

import geosparse as gs
from geosparse import GeosparseError
from geosparse.hf.layers import attention_layers
from geosparse.hf.signature import Remembered, Signature

from ..tiny import tiny_model, tokens

CHANGES = {
    "a module": lambda model: setattr(model.model.layers[0], "mlp", copy.deepcopy(model.model.layers[0].mlp)),
    "a weight": lambda model: setattr(
        model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ),
    "a dtype": lambda model: model.to(torch.bfloat16),
    "a field of the config": lambda model: setattr(model.config, "rms_norm_eps", 0.1),
    "fewer layers": lambda model: model.model.layers.__delitem__(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    model = tiny_model("llama")
    before = Signature(model)
    assert before.holds(model)
    CHANGES[change](model)
    assert not before.holds(model)


def test_what_does_not_change_the_meaning_is_no_change():
    model = tiny_model("llama")
    before = Signature(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.set_attn_implementation("eager")
    with gs.sparsified(model, gs.Plan.uniform(model, 4)):
        assert before.holds(model)
    assert before.holds(model)


def test_it_is_found_once_for_each_state_of_the_model():
    runs = []
    remembered = Remembered(lambda model: runs.append(model) or len(runs))
    model = tiny_model("llama")
    assert remembered.known(model) is None
    assert [remembered(model), remembered(model)] == [1, 1]
    model.to(torch.bfloat16)
    assert [remembered(model), remembered(model)] == [2, 2]


def test_a_layer_that_is_replaced_after_the_first_use_is_the_one_that_is_served():
    model = tiny_model("llama")
    attention_layers(model)
    model.model.layers[0] = copy.deepcopy(model.model.layers[0])
    layers = attention_layers(model)
    assert layers[0].module is model.model.layers[0].self_attn
    ids = tokens(1, 30)
    with torch.no_grad():
        dense = model(ids).logits
        with gs.sparsified(model, gs.Plan.uniform(model, 10**6)) as receipt:
            assert (model(ids).logits - dense).abs().max() <= 1e-4 * dense.abs().max()
            assert receipt.queries.all()


def test_an_attention_of_another_kind_put_in_after_the_first_use_is_noticed():
    model = tiny_model("llama")
    with gs.sparsified(model, gs.Plan.uniform(model, 4)):
        pass
    attention = copy.deepcopy(model.model.layers[0].self_attn)
    attend = type(attention).forward
    attention.forward = lambda *args, **kwargs: attend(attention, *args, **kwargs, position_bias=torch.ones(1))
    model.model.layers[0].self_attn = attention
    with pytest.raises(GeosparseError, match="position_bias"):
        gs.sparsify_(model, gs.Plan.uniform(model, 4))
