"""Tiny configurations: small, and with windows shorter than the texts."""

import pytest

from eval.trust.tiny_configs import TEXT, tiny_config


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mistral", "gpt2"])
def test_configurations_are_tiny_and_their_windows_shorter_than_the_text(kind):
    config = tiny_config(kind)
    assert config.model_type == kind
    assert config.hidden_size <= 64
    assert config.num_hidden_layers <= 4
    window = getattr(config, "sliding_window", None)
    assert window is None or window < TEXT
