"""Our attention held against the model's own, layer by layer."""

import pytest
import torch

from geosparse.hf.interface import ATTRIBUTE
from geosparse.hf.layers import attention_layers
from geosparse.ops import Budgets, HeadRules
from geosparse.sparsify.attention import SparseAttention
from geosparse.sparsify.equivalence import reproduce
from geosparse.sparsify.receipt import Receipt

from ..tiny import EXTRA, tiny_model, tokens

LENGTH = 11


def parts_of(model):
    """Layers by module, and handlers that keep every token."""
    layers = attention_layers(model)
    unlimited = Budgets(torch.full((len(layers), layers[0].heads), LENGTH, dtype=torch.int64))
    receipt = Receipt(unlimited, [layer.name for layer in layers])
    handlers = {
        layer.module: SparseAttention(place, HeadRules.of(unlimited.of(place), "drop"), receipt)
        for place, layer in enumerate(layers)
    }
    return {layer.module: layer.name for layer in layers}, handlers


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_every_layer_is_reproduced_and_nothing_is_left_behind(kind):
    model = tiny_model(kind)
    names, handlers = parts_of(model)
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        dense = model(ids).logits
    logits, errors = reproduce(model, ids, names, handlers)
    assert torch.equal(logits, dense)
    assert set(errors) <= set(names.values())  # a layer without any difference is not named
    assert max(errors.values(), default=0.0) < 1e-4
    for module in names:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not hasattr(module, ATTRIBUTE)


@pytest.mark.parametrize("wrong", [0, 1])
def test_one_wrong_layer_is_named_alone(wrong):
    model = tiny_model("llama")
    names, handlers = parts_of(model)
    module = list(names)[wrong]
    right = handlers[module]
    handlers[module] = lambda *args, **kwargs: 1.5 * right(*args, **kwargs)
    _, errors = reproduce(model, tokens(1, LENGTH), names, handlers)
    found = {name for name, error in errors.items() if error > 1e-4}
    assert found == {names[module]}
    assert errors[names[module]] == pytest.approx(0.5, rel=1e-3)


def test_what_is_not_a_number_is_an_error():
    model = tiny_model("llama")
    names, handlers = parts_of(model)
    module = next(iter(names))
    right = handlers[module]
    handlers[module] = lambda *args, **kwargs: torch.nan * right(*args, **kwargs)
    _, errors = reproduce(model, tokens(1, LENGTH), names, handlers)
    assert not errors[names[module]] <= 1e6
