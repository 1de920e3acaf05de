"""The command on a tiny model: every part runs, a second run takes what is there; the oracle keeps what it says."""

import json

import pytest
import torch

import geosparse as gs
from eval.planner import __main__ as command
from eval.planner import parts
from eval.planner.top_p import matched_mass, top_p_nll
from geosparse.scoring import token_nll

from ...tiny import VOCABULARY, save_tiny, tiny_model, tiny_tokenizer, tokens


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_all_the_mass_is_dense_and_less_keeps_less(kind):
    model, windows = tiny_model(kind), tokens(2, 40)
    nll, kept = top_p_nll(model, windows, 2.0, "all")
    assert torch.allclose(nll, token_nll(model, windows), atol=1e-4)
    counts = [top_p_nll(model, windows, mass, "some")[1] for mass in (0.3, 0.6, 0.9)]
    assert 1 <= counts[0] < counts[1] < counts[2] < kept
    mass = matched_mass(model, windows, 6.0)
    assert top_p_nll(model, windows, mass, "matched")[1] <= 6.0


@pytest.mark.slow
def test_parts_are_run_once_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "MEANS", (4.0, 8.0))
    save_tiny(tmp_path / "model")
    out = tmp_path / "result.json"
    words = [str(tmp_path / "model"), "--length", "64", "--windows", "2", "--calibration-windows", "2"]
    words += ["--out", str(out)]
    assert command.main([*words, "--only", "1,8"]) == 0
    first = json.loads(out.read_text())
    assert [row["mean_keep"] for row in first["parts"]["1"]] == [4, 8, 4, 8]
    assert 0 <= first["parts"]["8"][-1]["r_squared"] <= 1
    monkeypatch.setitem(command.PARTS, "1", lambda study: pytest.fail("a part that is done ran again"))
    assert command.main([*words, "--only", "1,4"]) == 0
    second = json.loads(out.read_text())
    assert second["parts"]["1"] == first["parts"]["1"]
    assert {"oracle top-p", "regime", "uniform"} <= {row["policy"] for row in second["parts"]["4"]}
    assert "oracle top-p" in capsys.readouterr().out


def test_an_unknown_part_is_refused(tmp_path, capsys):
    assert command.main(["smollm2-135m", "--out", str(tmp_path / "r.json"), "--only", "99"]) == 2
    assert "There is no part '99'" in capsys.readouterr().err


def test_the_tolerance_is_tried_on_other_texts(monkeypatch):
    monkeypatch.setattr(parts, "TOLERANCE", 0.5)
    monkeypatch.setattr(parts, "HELD_OUT", 2)
    model, tokenizer = tiny_model(vocab_size=len(VOCABULARY)), tiny_tokenizer()
    texts = ["pydoc:test", "pydoc:calibration", "pydoc:planning"]
    config = gs.ProfileConfig(length=32, windows=1, queries=8)
    profile = gs.profile_model(model, tokenizer, gs.load_texts(texts[1]), config)
    first, *others = parts.tolerance(parts.Study(model, tokenizer, profile, texts[1], texts, 32, 2))
    assert first["verified"]["limit"] <= 0.5
    assert [row["text"] for row in others] == texts[:2]
    assert all(row["holds"] == (row["increase"] <= 0.5) for row in others)
