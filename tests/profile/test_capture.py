"""What one pass over a window leaves behind: rows by definition, exact gradients, the model as before."""

import pytest
import torch

from geosparse.hf.layers import attention_layers
from geosparse.profile import capture
from geosparse.profile.capture import walk_layers

from ..tiny import tiny_model, tokens

LENGTH = 40
POSITIONS = torch.tensor([0, 7, 21, LENGTH - 1])


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_rows_give_the_output_that_the_model_computes(kind):
    """alpha @ value is what arrives at the output projection."""
    model = tiny_model(kind)
    model.set_attn_implementation("eager")
    layers, seen = attention_layers(model), []
    hooks = [layer.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in layers]
    ids = tokens(1, LENGTH)[0]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    walked = list(walk_layers(model, ids, POSITIONS))
    assert [item.index for item in walked] == [0, 1]
    for item, expected in zip(walked, seen, strict=True):
        rows = item.rows
        value = rows.value.repeat_interleave(len(rows.alpha) // len(rows.value), 0)
        output = (rows.alpha @ value).transpose(0, 1).flatten(1)
        assert torch.allclose(output, expected[0, POSITIONS], atol=1e-4)
        assert (rows.alpha.sum(-1) <= 1 + 1e-5).all()
        assert not rows.alpha[:, ~rows.seen].any()


def test_loss_and_slope_are_those_of_cross_entropy():
    logits = torch.randn(30, 50, requires_grad=True)
    ids = torch.randint(50, (30,))
    expected = torch.nn.functional.cross_entropy(logits, ids, reduction="sum")
    loss, slope = capture.loss_and_slope(logits.detach(), ids)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(slope, torch.autograd.grad(expected, logits)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_recomputing_layers_changes_no_bit(kind, monkeypatch):
    model = tiny_model(kind)
    model.requires_grad_(True)
    layers, ids = attention_layers(model), tokens(1, LENGTH)[0]
    kept = capture.forward_backward(model, layers, ids, POSITIONS, POSITIONS)
    monkeypatch.setattr(capture, "KEPT_TOKENS", LENGTH - 1)
    again = capture.forward_backward(model, layers, ids, POSITIONS, POSITIONS)
    assert kept[0] == again[0]
    assert all(torch.equal(*pair) for pair in zip(kept[2], again[2], strict=True))
    for before, after in zip(kept[1], again[1], strict=True):
        assert torch.equal(before.key, after.key)
        assert torch.equal(before.query, after.query)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in module.__dict__ for module in model.modules())
