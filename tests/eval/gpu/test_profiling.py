"""What a profile costs, on a tiny model."""

import torch

from eval.gpu import profiling, shapes, timing

TINY = shapes.ModelShape(heads=4, kv_heads=2, dim=64, layers=2, hidden=32, inner=48, vocabulary=300)


def test_profiling_a_tiny_model(monkeypatch):
    monkeypatch.setattr(profiling, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(timing, "gpu", lambda: torch.device("cpu"))
    for name, value in (("reset_peak_memory_stats", None), ("synchronize", None), ("max_memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    found = profiling.measure("tiny", 64)
    assert found["profile_over_pass"] > 0
