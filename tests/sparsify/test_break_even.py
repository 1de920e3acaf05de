"""The break-even of dense and sparse decoding: measured, remembered, applied per layer, said in the receipt."""

import json
import os
import subprocess
import sys

import pytest
import torch

import geosparse as gs
from geosparse.hf.layers import attention_layers
from geosparse.sparsify import break_even
from geosparse.sparsify.patch import shape_of

from ..tiny import tiny_model, tokens


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(break_even, "cache_dir", lambda: tmp_path)
    return tmp_path


def shape(model):
    return shape_of(model, attention_layers(model)[0])


def pretend(monkeypatch, faster_from):
    monkeypatch.setattr(
        break_even, "_times", lambda shape, context, selector: (1.0, 0.5 if context >= faster_from else 2.0)
    )


def test_the_measurement_is_kept_per_shape(cache, monkeypatch):
    model = tiny_model("llama")
    with pytest.raises(gs.GeosparseError, match="run `geosparse doctor --calibrate`"):
        break_even.break_even(shape(model), "topn")
    pretend(monkeypatch, 512)
    assert break_even.calibrate(shape(model)) == {"topn": 512, "lowbit": 512}
    assert break_even.break_even(shape(model), "topn") == 512
    pretend(monkeypatch, 0)
    assert break_even.calibrate(shape(model))["topn"] == 1
    pretend(monkeypatch, 1 << 20)
    assert break_even.calibrate(shape(model))["topn"] == break_even.NEVER


def test_a_damaged_table_is_measured_again(cache, monkeypatch):
    (cache / "breakeven.json").write_text("{")
    model = tiny_model("llama")
    with pytest.raises(gs.GeosparseError, match="not measured"):
        break_even.break_even(shape(model), "topn")
    pretend(monkeypatch, 64)
    assert break_even.calibrate(shape(model))["lowbit"] == 1


def test_both_are_really_timed(cache, monkeypatch):
    monkeypatch.setattr(break_even, "REPEATS", 1)
    dense, sparse = break_even._times(shape(tiny_model("llama")), 64, "lowbit")
    assert dense > 0
    assert sparse > 0


def test_a_further_selector_takes_none_away(cache, monkeypatch):
    model = tiny_model("llama")
    pretend(monkeypatch, 512)
    break_even.calibrate(shape(model), ("lowbit",))
    pretend(monkeypatch, 128)
    break_even.calibrate(shape(model), ("topn",))
    assert [break_even.break_even(shape(model), word) for word in ("lowbit", "topn")] == [512, 128]


CALIBRATIONS = """
import sys, time, torch
from geosparse.sparsify import break_even
break_even._times = lambda *_: (1.0, 0.5)
read = break_even._load
def slowly():
    found = read()
    time.sleep(0.02)  # as long as another process needs to write in between
    return found
break_even._load = slowly
for place in range(5):
    heads = int(sys.argv[1]) * 100 + place
    break_even.calibrate(break_even.Shape(heads, 1, 8, torch.float32, torch.device("cpu")))
"""


def test_calibrations_at_once_lose_none(tmp_path):
    environment = os.environ | {"GEOSPARSE_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", CALIBRATIONS, str(number)], env=environment) for number in range(1, 4)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    shapes = json.loads((tmp_path / "breakeven.json").read_text())["shapes"]
    wanted = {f"{number}0{place}/1x8" for number in range(1, 4) for place in range(5)}
    assert {key.split()[-2] for key in shapes} == wanted


@pytest.mark.parametrize("below", [12, "measured"])
def test_short_contexts_decode_densely_and_the_receipt_says_so(cache, monkeypatch, below):
    model, ids = tiny_model("llama"), tokens(1, 8)
    pretend(monkeypatch, 128)
    break_even.calibrate(shape(model))
    with gs.sparsified(model, gs.Plan.uniform(model, 2), dense_below=below) as receipt, torch.no_grad():
        model.generate(ids, min_new_tokens=8, max_new_tokens=8, do_sample=False)
    assert torch.equal(receipt.kept, receipt.planned)
    assert "dense, because below" in receipt.notes[0]
    # The prompt keeps 1 + 7 x 2; steps that see 9 to 15 tokens are dense below 12, or all of them below 128.
    dense = sum(range(9, 12 if below == 12 else 16))
    assert int(receipt.kept[0, 0]) == 15 + dense + (2 * 4 if below == 12 else 0)


def test_nothing_is_dense_unless_asked():
    model, ids = tiny_model("llama"), tokens(1, 8)
    with gs.sparsified(model, gs.Plan.uniform(model, 2)) as receipt, torch.no_grad():
        model.generate(ids, min_new_tokens=8, max_new_tokens=8, do_sample=False)
    assert receipt.notes == []
    assert int(receipt.kept.max()) == 1 + 2 * (int(receipt.queries.max()) - 1)
