"""Perplexity, retrieval and the decode protocol on a tiny model."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.harness.methods import Method
from eval.harness.recipe import load_recipe
from eval.harness.task import Setting
from eval.tasks import TASKS
from eval.tasks.prose import sentences
from eval.tasks.through_cache import token_losses
from geosparse.errors import GeosparseError
from geosparse.patch import sparsified
from geosparse.plan import Plan
from geosparse.scoring import token_nll
from tests.tiny import tiny_model, tiny_tokenizer, tokens


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    model = tiny_model(vocab_size=300, max_position_embeddings=4096)
    return Setting(model, tiny_tokenizer(), None, tmp_path_factory.mktemp("scratch"))


def asked(tmp_path: Path, entry: str) -> Any:
    (tmp_path / "a.yaml").write_text(f"tasks: [{entry}]")
    return load_recipe(tmp_path / "a.yaml", TASKS).tasks[0]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("selector", ["topn", "lowbit"])
def test_several_tokens_per_call_equal_one_by_one(kind: str, selector: str) -> None:
    """What the decode protocol rests on, behind a prompt that was read densely."""
    model, ids = tiny_model(kind), tokens(1, 120)
    plan = Plan.uniform(model, 12, "centroid", selector=selector)
    found = []
    for chunk in (1, 7, 32):
        with torch.no_grad():
            cache = model(ids[:, :80], use_cache=True).past_key_values
        with sparsified(model, plan):
            found.append(token_losses(model, ids[:, 80:], cache, chunk, 80)[0])
    # fp32 sums of some hundred terms in another order; a wrong token shows in the first digits.
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-4)


def test_perplexity_is_the_loss_of_whole_windows(setting: Setting, tmp_path: Path) -> None:
    task = TASKS["perplexity"](asked(tmp_path, "{task: perplexity, length: 700, samples: 2, chunk: 90}"), setting)
    plan = Plan.uniform(setting.model, 16)
    with sparsified(setting.model, plan):
        values = task.score(1, Method("sparse", plan)).values
        whole = token_nll(setting.model, task.windows[1:2])[0].double()
    assert values["nll"] == pytest.approx(float(whole.mean()), abs=1e-5)
    assert values["nll 256-511"] == pytest.approx(float(whole[255:511].mean()), abs=1e-5)
    assert set(values) == set(task.metrics) == {"nll", "nll 1-255", "nll 256-511", "nll 512-699"}
    parts = {"nll 1-255": 255, "nll 256-511": 256, "nll 512-699": 188}
    assert sum(values[name] * count for name, count in parts.items()) / 699 == pytest.approx(values["nll"])


@pytest.mark.parametrize("kind", ["needle", "key_value"])
def test_retrieval_prompts(kind: str, setting: Setting, tmp_path: Path) -> None:
    settings = asked(tmp_path, f"{{task: {kind}, length: 900, samples: 5}}")
    task, again = TASKS[kind](settings, setting), TASKS[kind](settings, setting)
    assert task.questions == again.questions
    assert len({question.answer for question in task.questions}) > 3
    depths = []
    for question in task.questions:
        ids, count = task.encoded(question)
        assert 800 < ids.shape[1] <= 900
        assert setting.tokenizer.decode(ids[0, -count:]) == question.answer
        body = question.prompt
        assert body.count(question.answer) == 1
        depths.append(body.index(question.answer) / len(body))
    assert depths == sorted(depths)
    assert depths[0] < 0.25
    assert depths[-1] > 0.75
    other = TASKS[kind](replace(settings, seed=1), setting)
    assert other.questions != task.questions
    assert other.sha256() != task.sha256()


def test_exact_match_is_what_greedy_decoding_gives(setting: Setting, tmp_path: Path) -> None:
    task = TASKS["needle"](asked(tmp_path, "{task: needle, length: 600, samples: 3}"), setting)
    ids, count = task.encoded(task.questions[0])
    with torch.no_grad():
        said = setting.model.generate(ids[:, :-count], max_new_tokens=count, do_sample=False, eos_token_id=None)
    answer = setting.tokenizer.decode(said[0, -count:])
    greedy = setting.tokenizer(answer, add_special_tokens=False)["input_ids"] == said[0, -count:].tolist()
    if greedy:  # the text of what was said may tokenize otherwise
        task.questions[0] = task.questions[0]._replace(answer=answer)
        assert task.score(0, Method()).values["exact"] == 1.0
    assert task.score(1, Method()).values["exact"] == 0.0


def test_the_prose_names_neither_places_nor_numbers() -> None:
    text = " ".join(islice(sentences(random.Random(0)), 500))
    from eval.tasks.prose import PLACES

    assert not any(place in text for place in PLACES)
    assert not any(character.isdigit() for character in text)


def test_decode_scores_every_method_on_the_same_tokens(setting: Setting, tmp_path: Path) -> None:
    settings = asked(tmp_path, "{task: decode, length: 200, scored: 40, timed: 3, samples: 2}")
    task = TASKS["decode"](settings, setting)
    dense, whole = Method(), Method("whole", Plan.uniform(setting.model, 4096, "drop"))
    few = Method("few", Plan.uniform(setting.model, 4))
    found = {method.id: task.score(0, method) for method in (dense, whole, few)}
    expected = float(token_nll(setting.model, task.windows[:1])[0, -40:].double().mean())
    assert found["dense"].values["nll"] == pytest.approx(expected, abs=1e-5)
    assert found["whole"].values["nll"] == pytest.approx(expected, abs=1e-4)
    assert found["few"].values["nll"] != pytest.approx(expected, abs=1e-6)
    heads = setting.model.config.num_hidden_layers * setting.model.config.num_attention_heads
    assert few.counted[0] == 40 * heads * 4
    assert whole.counted[0] == whole.counted[1]
    bytes_of_cache = 2 * 2 * 2 * 8 * 199 * 4  # layers, keys and values, KV heads, dimension, tokens, fp32
    assert found["dense"].timing["cache_bytes"] == bytes_of_cache
    assert all(each.timing["ms_per_token"] > 0 for each in found.values())
    assert found["few"].timing["ms_per_token_torch_products"] > 0
    assert "ms_per_token_torch_products" not in found["dense"].timing


def test_decode_is_timed_in_turns_with_dense(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.tasks import decode

    clock = accumulate(cycle((0.5, 1.0, 3.0)))  # between steps, of the method's step, of the dense one
    monkeypatch.setattr(decode, "_now", lambda device: next(clock))
    settings = asked(tmp_path, "{task: decode, length: 200, scored: 40, timed: 3, samples: 1}")
    timing = TASKS["decode"](settings, setting).score(0, Method("few", Plan.uniform(setting.model, 4))).timing
    for which in ("", "_torch_products"):
        assert timing[f"ms_per_token{which}"] == pytest.approx(1000)
        assert timing[f"times_dense{which}"] == pytest.approx(3)


def test_contexts_beyond_the_model_are_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(GeosparseError, match="smaller length"):
        TASKS["needle"](asked(tmp_path, "{task: needle, length: 8192}"), setting)
