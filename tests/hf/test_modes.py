"""A model is looked at as it is written, whatever is around it at that moment."""

import pytest
import torch

import geosparse as gs
from geosparse.errors import GeosparseError
from geosparse.hf.modes import evaluating

from ..tiny import tiny_model

IDS = torch.arange(3, 33)[None]


def compiled_whole(model):
    model.compile(backend="eager")


def compiled_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")


def compiled_and_wrapped(model):
    layer = model.model.layers[0]
    layer.self_attn = torch.compile(layer.self_attn, backend="eager")


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


@pytest.mark.parametrize("compile_", [compiled_whole, compiled_layers, compiled_and_wrapped, compiled_forward])
def test_hooks_of_the_check_are_seen_in_compiled_modules(compile_):
    plain, model = tiny_model("llama"), tiny_model("llama")
    compile_(model)
    ran = []
    with evaluating(model), torch.no_grad():
        hooks = [module.register_forward_hook(lambda *_: ran.append(1)) for module in model.modules()]
        model(IDS, use_cache=False)
    for hook in hooks:
        hook.remove()
    assert len(ran) >= 10
    if compile_ is not compiled_and_wrapped:  # its layer has another name, which makes it another model
        with torch.no_grad(), gs.sparsified(plain, gs.Plan.uniform(plain, 4)):
            expected = plain(IDS, use_cache=False).logits
        gs.sparsify_(model, gs.Plan.uniform(plain, 4))
        with evaluating(model), torch.no_grad():
            assert torch.equal(model(IDS, use_cache=False).logits, expected)


def test_a_model_is_accepted_under_autocast():
    model = tiny_model("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        dense = model(IDS).logits
        with gs.sparsified(model, gs.Plan.uniform(model, 1000)):
            ours = model(IDS).logits
        with evaluating(model):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    # Of bfloat16, in which the linear layers multiply.
    assert (ours - dense).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * dense.abs().max()


def test_wrappers_are_refused_by_name():
    model = tiny_model("llama")
    plan = gs.Plan.uniform(model, 4)
    for wrapper, advice in (
        (torch.nn.DataParallel(model), "model.module"),
        (torch.compile(model, backend="eager"), "model._orig_mod"),
    ):
        with pytest.raises(GeosparseError, match=f"is a wrapper around a model: give {advice}, the model itself"):
            gs.sparsify_(wrapper, plan)
        with pytest.raises(GeosparseError, match="is a wrapper around a model"):
            gs.Plan.uniform(wrapper, 4)
