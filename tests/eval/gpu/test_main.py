"""The GPU script without a GPU: it says so in a sentence, and all its measurements run, in Triton's interpreter."""

import json

import pytest
import torch

from eval import speed
from eval.gpu import __main__ as script
from eval.gpu import correctness, decode, model, prefill, timing
from tests.ops.triton.material import DEVICE, needs_kernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [script.main, lambda rest: speed.main(["--device", "cuda", *rest])])
def test_without_a_gpu_it_says_so(main, capsys):
    assert main(["--contexts", "64"]) == 2
    assert "No CUDA device was found: run this on a machine with a GPU" in capsys.readouterr().err


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
