"""Model types: a sample of each outcome, and the command that runs all of them."""

import json

import pytest
import torch

from eval.trust import architectures
from eval.trust.architecture_checks import CHECKS, TOLERANCE, examine, tiny
from eval.trust.architecture_page import page
from eval.trust.tiny_configs import TEXT, WINDOW, tiny_config

# Shared keys, a head behind a decoder, chunks, a cache class of its own, linear attention, scaling in place, a latent.
EQUAL = ("gemma4_text", "opt", "llama4_text", "minimax", "qwen3_next", "ctrl", "deepseek_v3", "gpt_oss")
REFUSED = {
    "bloom": "AttentionInterface",
    "deepseek_v32": "indices",
    "doge": "differs between heads",
    "minimax_m3_vl_text": "block_indices",
    "mamba": "bypasses",
}


def of_this_transformers(kinds):
    known = architectures.model_types()
    missing = "this release of transformers does not have it"
    return [pytest.param(kind, marks=pytest.mark.skipif(kind not in known, reason=missing)) for kind in kinds]


@pytest.mark.parametrize("kind", of_this_transformers(EQUAL))
def test_with_every_token_kept_it_is_dense(kind):
    found = examine(kind)
    assert found["outcome"] == "equal", found
    asked = {*CHECKS, "score", "profile", "restored"}
    assert set(found["errors"]) | set(found.get("left_out", {})) == asked
    assert max(found["errors"].values()) <= TOLERANCE


@pytest.mark.parametrize("kind", of_this_transformers(REFUSED))
def test_it_is_refused_in_one_sentence(kind):
    found = examine(kind)
    assert found["outcome"] == "refused", found
    assert REFUSED[kind] in found["sentence"]
    assert found["sentence"].endswith(".")
    assert "\n" not in found["sentence"]


@pytest.mark.parametrize("kind", of_this_transformers(("mistral", "gemma3_text", "llama4_text")))
def test_windows_and_chunks_are_shorter_than_the_text(kind):
    config = tiny_config(kind).to_dict()
    reach = config.get("sliding_window") or config.get("attention_chunk_size")
    assert reach == WINDOW < TEXT
    model, ids = tiny(kind), torch.arange(3, 3 + TEXT)[None]
    other = ids.clone()
    other[0, 0] = 200
    with torch.no_grad():
        first, second = (model(each, use_cache=False, output_hidden_states=True) for each in (ids, other))
    # The first layer that slides does not see the first token from the last.
    assert torch.equal(first.hidden_states[1][0, -1], second.hidden_states[1][0, -1]) or kind == "gemma3_text"


def test_the_command_writes_what_it_found_and_goes_on_from_there(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    seen = []

    def fake(kind):
        seen.append(kind)
        faulty = {"outcome": "raw", "sentence": "KeyError: 'a|b'"}
        return faulty if kind == "opt" else {"outcome": "equal", "class": "Llama", "errors": {"forward": 1e-7}}

    monkeypatch.setattr(architectures, "isolated", fake)
    monkeypatch.setattr(architectures, "_ready", lambda: None)
    arguments = ["--only", "llama", "--out", str(out)]
    assert architectures.main(arguments) == 0
    assert "llama" in capsys.readouterr().out
    assert architectures.main([*arguments, "--only", "opt", "--resume"]) == 1
    assert seen == ["llama", "opt"]
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["counts"] == {"equal": 1, "raw": 1}
    assert architectures.main(["--out", str(out), "--page", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text == page(result)
    assert "| opt | KeyError: 'a\\|b' |" in text
    assert architectures.main(["--only", "lama"]) == 2
    assert "did you mean 'llama'" in capsys.readouterr().err


def test_a_process_that_dies_is_an_outcome(monkeypatch):
    import os

    monkeypatch.setattr(architectures, "examine", lambda kind: os._exit(3))
    assert architectures.isolated("llama") == {"outcome": "raw", "sentence": "The process died with code 3."}
    monkeypatch.setattr(architectures, "examine", lambda kind: {"outcome": "equal"})
    assert architectures.isolated("llama") == {"outcome": "equal"}


def test_the_committed_result_has_no_fault_and_its_page_is_the_one_of_the_documentation():
    result = json.loads(architectures.OUT.read_text(encoding="utf-8"))
    assert not set(result["counts"]) & set(architectures.FAULTS)
    assert len(result["types"]) >= 150
    assert all("sentence" in each or each["outcome"] == "equal" for each in result["types"].values())
    assert architectures.PAGE.read_text(encoding="utf-8") == page(result)
