"""Unmodified lm-eval tasks, answered document by document: the scores are lm-eval's own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install geosparse[lm-eval]")

import lm_eval.tasks

from eval.harness.methods import Method
from eval.harness.task import Setting
from eval.tasks import TASKS
from eval.tasks.lm_eval import LmEvalSettings, _column, _higher_is_better
from geosparse.artifacts.plan import Plan
from geosparse.integrations.lm_eval import lm_class
from geosparse.sparsify.patch import sparsified
from tests.integrations.test_lm_eval import TASKS as YAML
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = "the cat sat on the mat and looked at the dog, one two three four five six seven"


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    rows = [{"text": f"{i} {WORDS} {i}", "answer": "yes", "label": i % 3} for i in range(5)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    files = f"{{cache_dir: {tmp_path}/cached, data_files: {{test: {tmp_path}/rows.json}}}}"
    for name, body in YAML.items():
        if "custom_dataset" not in body:
            text = f"task: {name}\ntest_split: test\ndataset_path: json\ndataset_kwargs: {files}\n{body}"
            (tmp_path / f"{name}.yaml").write_text(text + "metadata: {version: 1.0}\n")
    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    model = tiny_model(vocab_size=300, max_position_embeddings=1024)
    return Setting(model, tiny_tokenizer(), None, tmp_path)


def task(setting: Setting, name: str, samples: int = 4) -> Any:
    return TASKS["lm_eval"](LmEvalSettings(name, 512, samples, None, None, {}), setting)


def records(found: Any, method: Method) -> list[dict[str, Any]]:
    outcomes = [found.score(place, method) for place in range(found.effective)]
    # As they come back from the disk.
    return json.loads(json.dumps([{"sample": place, "answers": o.answers} for place, o in enumerate(outcomes)]))


@pytest.mark.parametrize("name", [name for name in YAML if name != "tiny_random"])
@pytest.mark.parametrize("sparse", [False, True])
def test_scores_are_those_of_lm_eval(name: str, sparse: bool, setting: Setting) -> None:
    from lm_eval import simple_evaluate

    found, plan = task(setting, name), Plan.uniform(setting.model, 8)
    manager = lm_eval.tasks.TaskManager()
    lm = lm_class()(pretrained=setting.model, tokenizer=setting.tokenizer, batch_size=1)
    run = partial(simple_evaluate, lm, tasks=[name], limit=4, task_manager=manager, bootstrap_iters=10)
    if sparse:
        with sparsified(setting.model, plan):
            theirs, scores = run(), found.finish(records(found, Method("sparse", plan)))
    else:
        theirs, scores = run(), found.finish(records(found, Method()))
    for metric, column in scores.columns.items():
        # Reading the common beginning apart changes the order of sums, nothing else.
        assert column.value == pytest.approx(theirs["results"][name][f"{metric},none"], rel=1e-4)
        assert len(column.values) in (0, 4)
    assert sum(metric.main for metric in scores.metrics.values()) == 1
    assert found.effective == 4
    assert found.original == 5


def test_with_sliding_windows(setting: Setting) -> None:
    from lm_eval import simple_evaluate

    sliding = replace(setting, model=tiny_model("gemma3_text", vocab_size=300, max_position_embeddings=1024))
    found, plan = task(sliding, "tiny_choice"), Plan.uniform(sliding.model, 8)
    lm = lm_class()(pretrained=sliding.model, tokenizer=sliding.tokenizer, batch_size=1)
    with sparsified(sliding.model, plan):
        ours = records(found, Method("sparse", plan))
        theirs = simple_evaluate(lm, tasks=["tiny_choice"], limit=4, task_manager=lm_eval.tasks.TaskManager())
    for record, sample in zip(ours, theirs["samples"]["tiny_choice"], strict=True):
        found_here = [answer[0] for _, _, answer in record["answers"]]
        expected = [float(response[0][0]) for response in sample["resps"]]
        assert found_here == pytest.approx(expected, rel=1e-4)


def test_what_a_document_begins_with_is_read_once(setting: Setting) -> None:
    found, plan = task(setting, "tiny_choice"), Plan.uniform(setting.model, 8)
    with sparsified(setting.model, plan) as receipt:
        found.score(0, Method("sparse", plan))
    asked = found.documents[0]
    length = len(setting.tokenizer(asked[0].args[0])["input_ids"])
    choices = [len(setting.tokenizer(request.args[1])["input_ids"]) for request in asked]
    # The context but its last token once, then that token and all but the last of each choice.
    assert int(receipt.queries[0, 0]) == length - 1 + sum(choices)


def test_definition_and_data_decide_the_hash(setting: Setting) -> None:
    first, more = task(setting, "tiny_choice"), task(setting, "tiny_choice", 3)
    assert first.about()["lm_eval_task_version"] == "1.0"
    assert first.sha256() != more.sha256()  # other documents


def test_chance_and_main_metric(setting: Setting) -> None:
    found = task(setting, "tiny_choice")
    metrics = found.finish(records(found, Method())).metrics
    assert metrics["acc"].chance == pytest.approx(1 / 3)
    assert metrics["acc"].kind == "accuracy"
    rolling = task(setting, "tiny_rolling")
    assert rolling.finish(records(rolling, Method())).metrics["bits_per_byte"].chance is None


@pytest.mark.parametrize(
    ("values", "value", "said", "found"),
    [
        ([1.0, 0.0, 0.0, 1.0], 0.5, 0.2, 0.2),
        ([1.0, 0.0, 0.0, 1.0], 0.5, "N/A", (1 / 12) ** 0.5),
        ([1.0, 1.0], 1.0, None, 0.0),
        ([1.0, 0.0], 0.7, None, None),
        ([1.0], 1.0, None, None),
        ([], 0.5, None, None),
    ],
)
def test_means_without_a_standard_error_get_one(
    values: list[float], value: float, said: Any, found: float | None
) -> None:
    """RULER averages its contexts by a function of its own, for which lm-eval has no standard error."""
    assert _column(values, value, said).stderr == (found if found is None else pytest.approx(found))


@pytest.mark.parametrize(
    ("kind", "said", "found"),
    [("accuracy", None, True), ("accuracy", False, False), ("other", None, None), ("perplexity", False, False)],
)
def test_accuracies_are_better_when_higher(kind: str, said: bool | None, found: bool | None) -> None:
    assert _higher_is_better(kind, said) is found
