"""Threads, two models, a hundred patches and many decode steps on tiny models; the long run is `eval.trust.load`."""

import json

import pytest

from eval.trust import load
from eval.trust.load import decode_steps, patch_rounds, prompts_of, threads_equal_serial, varied_plan
from tests.tiny import save_tiny, tiny_model


@pytest.mark.slow
def test_threads_give_the_tokens_of_a_serial_run():
    model = tiny_model("llama")
    found = threads_equal_serial([model], [varied_plan(model)], prompts_of(128, 200), threads=4, new_tokens=2)
    assert found == {"requests": 200, "threads": 4, "different": 0, "same_counts": True}


def test_threads_on_two_models_with_two_plans():
    models = [tiny_model("llama"), tiny_model("gemma2", seed=1)]
    plans = [varied_plan(models[0], 0), varied_plan(models[1], 1)]
    found = threads_equal_serial(models, plans, prompts_of(128, 12), threads=4, new_tokens=3)
    assert found == {"requests": 24, "threads": 4, "different": 0, "same_counts": True}


def test_threads_that_differ_would_be_noticed(monkeypatch):
    turns = iter(range(1000))
    monkeypatch.setattr(load, "continued", lambda *_: [next(turns)])
    model = tiny_model("llama")
    found = threads_equal_serial([model], [varied_plan(model)], prompts_of(128, 5), threads=2, new_tokens=3)
    assert found["different"] == 5


def test_a_hundred_patches_leave_nothing():
    model = tiny_model("llama")
    found = patch_rounds(model, varied_plan(model), 100, prompts_of(128, 1)[0])
    assert found["residue"] == []
    assert found["same_logits"]
    assert found["grown"]["tensors"] == 0
    # A leak of one round's tensors (several kilobytes) would add up to more than the allocator's own noise.
    assert found["grown"]["bytes"] < 8 << 20


def test_memory_is_flat_over_decode_steps():
    model = tiny_model("llama", num_hidden_layers=1, max_position_embeddings=4096)
    found = decode_steps(model, varied_plan(model), 1500)
    assert found["grown_bytes"] < 8 << 20
    assert 1 < found["mean_kept"] < 25


def test_the_command(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model")
    sizes = ["--prompts", "4", "--threads", "2", "--new-tokens", "2", "--rounds", "3", "--steps", "40"]
    assert load.main([str(folder), *sizes, "--out", str(tmp_path / "load.json")]) == 0
    found = json.loads((tmp_path / "load.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["one_model"]["different"] == found["two_models"]["different"] == 0
