"""Prompts of a given length."""

import pytest
import torch

import geosparse as gs
from eval.benchmarks.prompt import dense_prefix, windows
from tests.tiny import tiny_model, tiny_tokenizer, tokens


def test_exactly_so_many_windows_or_a_sentence(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one two three four " * 40)
    assert windows(tiny_tokenizer(), str(text), 32, 2).shape == (2, 32)
    with pytest.raises(gs.GeosparseError, match="give a longer text or fewer windows"):
        windows(tiny_tokenizer(), str(text), 512, 2)


def test_a_dense_prefix_is_the_models_own_cache():
    model, ids = tiny_model(), tokens(1, 20)
    cache = dense_prefix(model, ids)
    with torch.no_grad():
        expected = model(ids, use_cache=True).past_key_values
    assert torch.equal(cache.layers[1].keys, expected.layers[1].keys)
