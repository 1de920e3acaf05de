"""The rows and values shown are those that the model computes with."""

import pytest
import torch

from eval.studies.geometry.attention_rows import visit_attention_rows
from tests.tiny import tiny_model, tokens


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gemma2"])
def test_rows_are_the_models_own_attention(kind):
    model = tiny_model(kind)
    window = tokens(1, 40)[0]
    positions = torch.tensor([3, 17, 38])
    shown = []
    visit_attention_rows(model, window, positions, lambda *material: shown.append(material))
    assert [layer for layer, *_ in shown] == [0, 1]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(window[None], output_attentions=True).attentions
    for (_, alpha, value, seen), truth in zip(shown, expected, strict=True):
        assert value.shape == (2, 40, 8)
        assert torch.allclose(alpha, truth[0][:, positions], atol=1e-5)
        assert not alpha[:, ~seen].any()


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    before = model.config._attn_implementation
    visit_attention_rows(model, tokens(1, 20)[0], torch.tensor([5]), lambda *material: None)
    assert model.config._attn_implementation == before
