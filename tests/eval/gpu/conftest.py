"""The GPU's measurements without a GPU."""

import pytest
import torch

from eval.gpu import decode, model, prefill, shapes, timing
from tests.ops.triton.material import DEVICE

TINY = shapes.ModelShape(heads=4, kv_heads=2, dim=64, layers=2, hidden=32, inner=48, vocabulary=300)


@pytest.fixture
def here(monkeypatch):
    """Everything on this machine's device, each call once, timed as a microsecond; dense attention by SDPA only."""

    class Once:
        def __init__(self, run):
            self.replay = run

    def timed(calls, graphed=True):
        for call in calls:
            call()
        return {"p20": 1.0, "p50": 1.0, "p80": 1.0}

    def sdpa(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query[:, :, None], key, value, enable_gqa=True)

    def causal(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    for module in (decode, model, prefill):
        monkeypatch.setattr(module, "SHAPES", {"tiny": TINY})
    for module in (decode, model):
        monkeypatch.setattr(module, "baselines", lambda *_: {"sdpa flash": sdpa})
    monkeypatch.setattr(prefill, "dense_prefill", causal)
    monkeypatch.setattr(timing, "gpu", lambda: DEVICE)
    monkeypatch.setattr(timing, "free_bytes", lambda: 1 << 40)
    monkeypatch.setattr(timing, "microseconds", timed)
    monkeypatch.setattr(timing, "captured", Once)
    monkeypatch.setattr(decode, "MAX_LAYERS", 1)
    for name, value in (("reset_peak_memory_stats", None), ("memory_allocated", 0), ("max_memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
