"""lm-eval tasks, dense and sparse: a tiny model on tasks defined here, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install geosparse[lm-eval]")

import lm_eval.tasks

from geosparse.artifacts.plan import Plan
from geosparse.artifacts.seen import Seen
from geosparse.errors import GeosparseError
from geosparse.hf.interface import installed
from geosparse.integrations.lm_eval import compare, lm_class, parse_arguments, register, run, table
from geosparse.sparsify.patch import sparsified
from geosparse.utils.files import dump_json
from tests.tiny import tiny_model

WORDS = ("the cat sat on the mat and looked at the dog", "one two three four five six seven eight nine ten")
LONG = " ".join(WORDS * 3)

TASKS: dict[str, str] = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: [" yes", " no", " perhaps"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_loglikelihood": """
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "tiny_generate": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_random": """
output_type: multiple_choice
custom_dataset: !function draw.documents
doc_to_text: "{{text}}"
doc_to_choice: [" yes", " no"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}
# What RULER does: a tokenizer from a folder, and a random state that outlives one build of the task.
DRAW = """
import random
import datasets
import transformers

STATE = random.Random(0)
BUILT = []

def documents(tokenizer=None, pretrained=None, **_):
    assert len(transformers.AutoTokenizer.from_pretrained(tokenizer)("the cat").input_ids) > 1
    rows = [{"text": "".join(STATE.choices("abcdefgh ", k=60)), "label": i % 2} for i in range(4)]
    BUILT.append(rows)
    return {"test": datasets.Dataset.from_list(rows)}
"""


@pytest.fixture(autouse=True)
def _only_our_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own index takes seconds to read."""
    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr("lm_eval.api.metrics.bootstrap_stderr", lambda f, xs, iters: print("noise") or 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of tasks."""
    rows = [{"text": f"{LONG} {i}", "answer": "yes", "label": i % 3} for i in range(4)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "draw.py").write_text(DRAW)
    files = f"{{cache_dir: {tmp_path}/cached, data_files: {{test: {tmp_path}/rows.json}}}}"
    source = f"dataset_path: json\ndataset_kwargs: {files}\n"
    for name, body in TASKS.items():
        data = "" if "custom_dataset" in body else source
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ntest_split: test\n{data}{body}metadata: {{version: 1.0}}\n"
        )
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    vocabulary = ["<pad>", "<s>", "</s>", *sorted(set(LONG + " ".join(TASKS) + "yesnoperhaps0123456789\u0120\u010a"))]
    bpe = Tokenizer(tokenizer_models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", max_position_embeddings=1024)


def arguments(folder: Path, *tasks: str) -> list[str]:
    return ["--tasks", ",".join(tasks), "--include_path", str(folder)]


def test_scores_dense_and_sparse_with_the_density(model: Any, tokenizer: Any, folder: Path) -> None:
    tasks = ("tiny_choice", "tiny_loglikelihood", "tiny_rolling", "tiny_generate")
    result = compare(model, tokenizer, Plan.uniform(model, 8), [*arguments(folder, *tasks), "--limit", "3"])
    rows = {row["task"]: row for row in result["tasks"]}
    assert set(rows) == set(tasks)
    assert result["schema"] == "geosparse.lm-eval/1"
    assert result["plan"] == {"policy": "uniform", "tail": "renormalize", "mean_keep": 8.0}
    assert 0 < result["density"] < 0.2
    assert 7 < result["mean_kept"] <= 8
    assert rows["tiny_rolling"]["dense"] != rows["tiny_rolling"]["sparse"]
    for row in rows.values():
        assert row["difference"] == row["sparse"] - row["dense"]
        assert 0 < row["density"] < 0.2
        assert row["samples"] == 3
    assert not installed(model)
    assert json.loads(dump_json(result)) == result
    lines = table(result).splitlines()
    assert "density" in lines[0]
    assert all(any(line.startswith(task) for line in lines) for task in tasks)


def test_unlimited_budget_gives_the_dense_scores_and_warns(
    model: Any, tokenizer: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("tiny_loglikelihood", "tiny_generate")
    result = compare(model, tokenizer, Plan.uniform(model, 4096, "drop"), arguments(folder, *tasks))
    assert result["density"] == 1.0
    for row in result["tasks"]:
        assert row["sparse"] == pytest.approx(row["dense"], rel=1e-4)
    assert sum("shows nothing" in warning for warning in result["warnings"]) == 2
    captured = capsys.readouterr()
    assert "shows nothing" in captured.err
    assert captured.out == ""


def test_dense_is_what_lm_eval_says(model: Any, tokenizer: Any, folder: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = lm_eval.tasks.TaskManager(include_path=str(folder))
    theirs = simple_evaluate(HFLM(pretrained=model, tokenizer=tokenizer), tasks=["tiny_choice"], task_manager=manager)
    ours = compare(model, tokenizer, None, arguments(folder, "tiny_choice"))
    assert ours["tasks"][0]["dense"] == theirs["results"]["tiny_choice"]["acc,none"]
    assert ours["tasks"][0]["sparse"] is None
    assert ours["density"] is ours["plan"] is None
    assert "sparse" not in table(ours)


def test_batches_change_nothing(model: Any, tokenizer: Any, folder: Path) -> None:
    plan = Plan.uniform(model, 8)
    flags = arguments(folder, "tiny_loglikelihood", "tiny_generate")
    one, three = (compare(model, tokenizer, plan, [*flags, "--batch_size", size]) for size in ("1", "3"))
    for a, b in zip(one["tasks"], three["tasks"], strict=True):
        assert a["sparse"] == pytest.approx(b["sparse"], rel=1e-4)


def test_dense_and_sparse_get_the_same_documents(model: Any, tokenizer: Any, folder: Path) -> None:
    """Even where a second build of the task would draw others; and the task finds a tokenizer on disk."""
    flags = [*arguments(folder, "tiny_random"), "--log_samples", "--output_path", str(folder / "out")]
    compare(model, tokenizer, Plan.uniform(model, 8), flags)
    dense, sparse = (next((folder / "out" / label).rglob("samples_*.jsonl")) for label in ("dense", "sparse"))
    prompts = [[json.loads(line)["prompt_hash"] for line in file.read_text().splitlines()] for file in (dense, sparse)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == 4


def test_cached_answers_are_kept_apart(model: Any, tokenizer: Any, folder: Path) -> None:
    flags = [*arguments(folder, "tiny_rolling"), "--use_cache", str(folder / "cache")]
    first = compare(model, tokenizer, Plan.uniform(model, 8), flags)
    again = compare(model, tokenizer, Plan.uniform(model, 8), flags)
    other = compare(model, tokenizer, Plan.uniform(model, 4), flags)
    assert again["tasks"][0]["sparse"] == first["tasks"][0]["sparse"] != first["tasks"][0]["dense"]
    assert again["density"] is None
    assert "cache" in again["warnings"][-1]
    assert other["tasks"][0]["sparse"] != first["tasks"][0]["sparse"]


def test_registered_model_type(model: Any, tokenizer: Any, folder: Path) -> None:
    from lm_eval import simple_evaluate

    register()
    register()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Plan.uniform(model, 8).save(folder / "plan.json")
    flags = arguments(folder, "tiny_rolling")
    expected = run(str(folder / "model"), folder / "plan.json", flags, dense=False)["tasks"][0]
    result = simple_evaluate(
        "geosparse",
        model_args=f"pretrained={folder / 'model'},plan={folder / 'plan.json'}",
        tasks=["tiny_rolling"],
        device="cuda:0",  # lm-eval's default, GPU or not
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder)),
    )
    assert result["results"]["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(expected["sparse"])
    assert result["config"]["density"] == pytest.approx(expected["density"])
    assert expected["dense"] is None


def test_trial_calls_are_not_counted(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(HFLM, "_detect_batch_size", lambda self: self.model(torch.ones(1, 9, dtype=torch.long)) and 2)
    lm = lm_class()(pretrained=model, tokenizer=tokenizer)
    with sparsified(model, Plan.uniform(model, 4)) as lm.receipt:
        assert lm._detect_batch_size() == 2
        assert int(lm.receipt.visible.sum()) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "No task was given"),
        (["--tasks", "tiny_choise"], "did you mean 'tiny_choice'"),
        (["--tasks", "tiny_choice", "--num_fewshots", "2"], "did you mean '--num_fewshot'"),
        (["--tasks", "tiny_choice", "--model", "hf"], "--model has no meaning here"),
        (["--tasks", "tiny_choice", "--model_args", "dtype=float16"], "--model_args dtype"),
        (["--tasks", "tiny_choice", "--limit", "many"], "invalid float value: 'many'"),
        (["--tasks", "tiny_choice", "--limit", "0"], "above 0"),
        (["--tasks", "tiny_choice", "--metadata", "{'a': 1}"], "Invalid JSON"),
        (["--tasks", "tiny_choice", "--log_samples"], "--output_path"),
        (["--tasks", "tiny_choice", "--predict_only", "--output_path", "out"], "--predict_only is not available"),
        (["--tasks", "tiny_choice", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--tasks", "tiny_choice", "--verbosity", "shouting"], "Unknown log level 'SHOUTING'"),
        (["--tasks", "tiny_choice", "--apply_chat_template"], "chat template"),
        (["--tasks", "tiny_broken"], "Cannot load tiny_broken"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: list[str], sentence: str, model: Any, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    broken = "task: tiny_broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: nowhere.json}}\n"
    (folder / "tiny_broken.yaml").write_text(broken + TASKS["tiny_choice"] + "test_split: test\n")
    with pytest.raises(GeosparseError) as caught:
        compare(model, tokenizer, Plan.uniform(model, 8), [*flags, "--include_path", str(folder)])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not installed(model)


def test_plan_of_another_model_is_refused_before_anything_runs(model: Any, tokenizer: Any, folder: Path) -> None:
    plan = Plan.uniform(tiny_model("llama", seed=1), 8)
    with pytest.raises(GeosparseError, match="another model"):
        compare(model, tokenizer, plan, arguments(folder, "tiny_choice"))
    with pytest.raises(GeosparseError, match="nothing to evaluate"):
        compare(model, tokenizer, None, arguments(folder, "tiny_choice"), dense=False)


def test_missing_lm_eval_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval._cli.run", None)
    with pytest.raises(GeosparseError, match=r"pip install geosparse\[lm-eval\]"):
        parse_arguments(["--tasks", "lambada_openai"])


def test_importing_the_package_registers_the_model_type() -> None:
    code = (
        "import geosparse.integrations.lm_eval; from lm_eval.api.registry import get_model; "
        "print(get_model('geosparse').__name__, get_model('hf').__name__)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["GeosparseLM", "HFLM"]


def test_density_and_warning_stand_beside_the_scores_of_a_model_object(
    tokenizer: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`simple_evaluate` with a model that was made sparse before."""
    from lm_eval import simple_evaluate

    short = tiny_model("llama", max_position_embeddings=1024)
    Plan.uniform(short, 4096, "drop").save(folder / "plan.json")
    lm = lm_class()(pretrained=short, tokenizer=tokenizer, plan=folder / "plan.json")
    manager = lm_eval.tasks.TaskManager(include_path=str(folder))
    result = simple_evaluate(lm, tasks=["tiny_choice", "tiny_rolling"], task_manager=manager)
    assert result["config"]["density_by_task"] == {"tiny_choice": 1.0, "tiny_rolling": 1.0}
    assert capsys.readouterr().err.count("shows nothing") == 2


def unlike_anything(plan: Plan) -> Plan:
    """The plan, as if every head had kept twice its mass on the text of its profile."""
    shape = plan.n_keep.shape
    return replace(plan, seen=Seen(16, torch.full(shape, 2.0).double(), torch.full(shape, 2.0).double()))


def test_requests_unlike_the_profiles_text_are_said_once(
    model: Any, tokenizer: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = unlike_anything(Plan.uniform(model, 8))
    flags = arguments(folder, "tiny_choice", "tiny_rolling")
    found = compare(model, tokenizer, plan, flags)
    assert capsys.readouterr().err.count("the text is unlike those") == 1
    assert not installed(model)
    plain = compare(model, tokenizer, Plan.uniform(model, 8), flags)
    assert "unlike" not in capsys.readouterr().err
    assert found["tasks"] == plain["tasks"]


def test_a_model_object_is_compared_with_the_first_requests(
    tokenizer: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval import simple_evaluate

    short = tiny_model("llama", max_position_embeddings=1024)
    unlike_anything(Plan.uniform(short, 8)).save(folder / "plan.json")
    lm = lm_class()(pretrained=short, tokenizer=tokenizer, plan=folder / "plan.json")
    manager = lm_eval.tasks.TaskManager(include_path=str(folder))
    result = simple_evaluate(lm, tasks=["tiny_choice", "tiny_rolling"], task_manager=manager)
    assert capsys.readouterr().err.count("the text is unlike those") == 1
    assert installed(short)
    assert all(0 < density < 1 for density in result["config"]["density_by_task"].values())


@pytest.mark.slow
def test_processes_share_the_requests(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Plan.uniform(model, 8).save(folder / "plan.json")
    flags = arguments(folder, "tiny_choice", "tiny_rolling", "tiny_generate")
    alone = run(str(folder / "model"), folder / "plan.json", flags)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [
        "-m",
        "geosparse",
        "lm-eval",
        str(folder / "model"),
        "--plan",
        str(folder / "plan.json"),
        "--json",
        *flags,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], capture_output=True, text=True, check=True, env=environment, timeout=300)
    shared = json.loads(done.stdout)
    for one, two in zip(alone["tasks"], shared["tasks"], strict=True):
        assert two["samples"] == one["samples"] == 4
        for key in ("task", "changed", "dense", "sparse", "density"):
            assert two[key] == (pytest.approx(one[key]) if isinstance(one[key], float) else one[key])
