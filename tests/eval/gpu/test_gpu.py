"""The GPU script without a GPU: it says so in a sentence, and all its measurements run, in Triton's interpreter."""

import json

import pytest
import torch

from eval import speed
from eval.gpu import __main__ as script
from eval.gpu import correctness, decode, model, prefill, profiling, shapes, timing
from geosparse import GeosparseError
from tests.ops.triton.material import DEVICE, needs_kernels

TINY = shapes.ModelShape(heads=4, kv_heads=2, dim=64, layers=2, hidden=32, inner=48, vocabulary=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [script.main, lambda rest: speed.main(["--device", "cuda", *rest])])
def test_without_a_gpu_it_says_so(main, capsys):
    assert main(["--contexts", "64"]) == 2
    assert "No CUDA device was found: run this on a machine with a GPU" in capsys.readouterr().err


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


@needs_kernels
def test_every_measurement_runs_and_is_in_the_table(here, monkeypatch):
    kernels = decode.measure("tiny", 100, 1, 0.1, 1e9)
    assert not kernels["failed"]
    assert set(kernels["rows"]) == {"sdpa flash", "own dense", *decode.SELECTORS}
    assert set(kernels["paged_stages"]) >= {"score pages", "select pages", "attend"}
    whole = model.measure("tiny", 40, 2, 0.1)
    assert set(whole["rows"]) == {"dense", "paged", "lowbit"}
    prompt = prefill.measure("tiny", 70, 0.1)
    assert set(prompt["rows"]) == {"dense", "block", "exact"}
    monkeypatch.setattr(correctness, "CASES", [(3, 64, 40)])
    monkeypatch.setattr(correctness, "DTYPES", (torch.float32,))
    checked = correctness.check(DEVICE)
    monkeypatch.setattr(timing, "free_bytes", lambda: 0)
    result = {"device": "none", "read_gb_per_second": 1.0, "correctness": [checked], "prefill": [prompt]}
    result |= {"kernels": [kernels, decode.measure("tiny", 64, 1, 0.1, 1e9)], "models": [whole], "profile": []}
    result |= {"failed": [], "not_reached": ["models: x"]}
    text = script.table(json.loads(json.dumps(result)))
    for word in ("paged, us: score pages", "model tiny", "prefill tiny", "skipped: a layer takes", "not reached"):
        assert word in text


@needs_kernels
def test_a_wrong_kernel_stops_everything(monkeypatch):
    monkeypatch.setattr(correctness, "CASES", [(1, 64, 30)])
    monkeypatch.setattr(correctness, "DTYPES", (torch.float32,))
    real = correctness.triton_attention

    def wrong(*args, **kwargs):
        found = real(*args, **kwargs)
        return found._replace(output=found.output + 0.01)

    monkeypatch.setattr(correctness, "triton_attention", wrong)
    with pytest.raises(GeosparseError, match="nothing was timed"):
        correctness.check(DEVICE)


def test_profiling_a_tiny_model(monkeypatch):
    monkeypatch.setattr(profiling, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(timing, "gpu", lambda: torch.device("cpu"))
    for name, value in (("reset_peak_memory_stats", None), ("synchronize", None), ("max_memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    found = profiling.measure("tiny", 64)
    assert found["profile_over_pass"] > 0


def test_budgets_are_spread_around_their_mean():
    drawn = shapes.budgets_of(32, 32768, 0.05)
    assert abs(float(drawn.float().mean()) - 0.05 * 32768) < 2
    assert int(drawn.max()) > 2 * int(drawn.float().median())
