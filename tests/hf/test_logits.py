"""Logits in parts: the model's own for every architecture, never whole, and the model as before."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geosparse.hf import logits as module
from geosparse.hf.layers import attention_layers
from geosparse.hf.logits import last_states
from geosparse.measure.loss import token_nll
from geosparse.profile.capture import forward_backward

from ..tiny import EXTRA, MORE, tiny_model, tokens

LENGTH = 40


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)


class Largest(TorchDispatchMode):
    """The most rows of any tensor of `width` columns that was computed inside."""

    def __init__(self, width):
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        computed = isinstance(result, torch.Tensor) and not function.is_view and result.dim() > 0
        if computed and result.shape[-1] == self.width:
            self.rows = max(self.rows, result.numel() // self.width)
        return result


@pytest.mark.parametrize("kind", [*EXTRA, *MORE])
def test_parts_are_the_models_own_logits(kind):
    model, ids = tiny_model(kind), tokens(1, LENGTH)[0]
    with torch.no_grad():
        expected = model(ids[None], use_cache=False).logits[0]
        states = last_states(model, ids)
        parts = [states.logits(rows) for rows in states.predicting()]
    assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 4]
    # The same products, cut otherwise: rounding of sums of H terms.
    assert torch.allclose(torch.cat(parts), expected[:-1], rtol=1e-5, atol=1e-5)
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite"])
def test_gradients_are_those_of_the_whole(kind):
    model, ids = tiny_model(kind), tokens(1, LENGTH)[0]
    layers, where = attention_layers(model), torch.arange(0, LENGTH, 3)
    found = forward_backward(model, layers, ids, where, where)
    embedded = model.get_input_embeddings()(ids).detach()[None].requires_grad_()
    outputs = []
    hooks = [layer.projection.register_forward_pre_hook(lambda _, given: outputs.append(given[0])) for layer in layers]
    loss = torch.nn.functional.cross_entropy(model(inputs_embeds=embedded).logits[0, :-1], ids[1:], reduction="sum")
    expected = torch.autograd.grad(loss, outputs)
    for hook in hooks:
        hook.remove()
    assert found[0] == pytest.approx(loss.item(), rel=1e-5)
    for layer, gradient, whole in zip(layers, found[2], expected, strict=True):
        by_head = whole[0].view(LENGTH, layer.heads, -1).transpose(0, 1)[:, where]
        assert torch.allclose(gradient, by_head, rtol=1e-3, atol=1e-5 * float(by_head.abs().max()))


def test_no_tensor_holds_the_logits_of_a_window():
    model, ids = tiny_model("llama"), tokens(1, LENGTH)[0]
    layers, where = attention_layers(model), torch.arange(4)
    with Largest(model.config.vocab_size) as scored:
        token_nll(model, ids[None])
    with Largest(model.config.vocab_size) as profiled:
        forward_backward(model, layers, ids, where, where)
    assert scored.rows == 7
    assert profiled.rows == 7


def test_a_model_without_a_body_gives_its_logits_whole(monkeypatch):
    model, ids = tiny_model("llama"), tokens(1, LENGTH)[0]
    expected = token_nll(model, ids[None])
    monkeypatch.setattr(type(model), "base_model", property(lambda self: self))
    with torch.no_grad():
        states = last_states(model, ids)
        assert states.values.shape == (LENGTH, model.config.vocab_size)
    assert torch.allclose(token_nll(model, ids[None]), expected, atol=1e-5)


def test_a_fault_in_the_head_leaves_the_model_as_before():
    model, ids = tiny_model("llama"), tokens(1, LENGTH)[0]
    with torch.no_grad():
        states = last_states(model, ids)
    head = model.lm_head
    del model.lm_head
    with pytest.raises(AttributeError):
        states.logits(slice(0, 3))
    model.lm_head = head
    assert not any("forward" in part.__dict__ for part in model.modules())
