"""Needles and pairs of keys and values on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from eval.harness.methods import Method
from eval.harness.task import Setting
from eval.tasks import TASKS
from geosparse.errors import GeosparseError


@pytest.mark.parametrize("kind", ["needle", "key_value"])
def test_retrieval_prompts(kind: str, setting: Setting, asked: Any) -> None:
    settings = asked(f"{{task: {kind}, length: 900, samples: 5}}")
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


def test_exact_match_is_what_greedy_decoding_gives(setting: Setting, asked: Any) -> None:
    task = TASKS["needle"](asked("{task: needle, length: 600, samples: 3}"), setting)
    ids, count = task.encoded(task.questions[0])
    with torch.no_grad():
        said = setting.model.generate(ids[:, :-count], max_new_tokens=count, do_sample=False, eos_token_id=None)
    answer = setting.tokenizer.decode(said[0, -count:])
    greedy = setting.tokenizer(answer, add_special_tokens=False)["input_ids"] == said[0, -count:].tolist()
    if greedy:  # the text of what was said may tokenize otherwise
        task.questions[0] = task.questions[0]._replace(answer=answer)
        assert task.score(0, Method()).values["exact"] == 1.0
    assert task.score(1, Method()).values["exact"] == 0.0


def test_contexts_beyond_the_model_are_refused(setting: Setting, asked: Any) -> None:
    with pytest.raises(GeosparseError, match="smaller length"):
        TASKS["needle"](asked("{task: needle, length: 8192}"), setting)
