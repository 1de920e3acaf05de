"""An index that grows token by token, on a tiny model."""

import json

import torch

import geosparse as gs
from eval.studies.runtime import drift
from tests.tiny import tiny_model, tokens


def test_drift_finds_none_and_notices_one(folder, text, tmp_path, capsys):
    arguments = [str(folder), "--text", str(text), "--context", "90", "--new-tokens", "40", "--mean-keep", "8"]
    assert drift.main([*arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "drift.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["layers"], found["indexed_layers"], found["pages"]) == (2, 2, 8)
    assert found["index_numbers_different"] == 0
    assert found["logit_difference"] == 0
    assert found["value_sum_error"] <= 1e-12
    assert found["mean_kept"] == 8
    model = tiny_model()
    with gs.sparsified(model, gs.Plan.uniform(model, 4, selector="lowbit")), torch.no_grad():
        cache = model(tokens(1, 50), use_cache=True).past_key_values
    assert drift.examine(cache)["index_numbers_different"] == 0
    cache.layers[0].keys[0, 0, 20, 3] += 5
    assert drift.examine(cache)["index_numbers_different"] > 0
