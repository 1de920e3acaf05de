"""Layers to time."""

import torch

from eval.benchmarks import layers
from geosparse.ops import reference_attention
from geosparse.ops.key_index import index_of


def test_layers_differ_and_hold_an_index(monkeypatch):
    monkeypatch.setattr(layers, "BYTES_IN_TURN", 1)
    first, second, _ = layers.layers_of((4, 2, 16), 40, torch.float32)
    assert first.key.shape == (1, 2, 40, 16)
    assert not torch.equal(first.key, second.key)
    assert index_of(first.key, (0,)).pages == [2]
    ours = layers.ours_with((3,) * 4, "topn", "centroid", 0.25)(first)
    true = reference_attention(*first, [3] * 4, tail="centroid", scaling=0.25).output
    assert torch.allclose(ours.double(), true.double(), atol=1e-5)
