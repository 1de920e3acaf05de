"""The command line as a user meets it: the whole chain, and one sentence with exit code 2 for every mistake."""

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import geosparse as gs
from geosparse.cli import commands, doctor
from geosparse.cli.main import build_parser, main

from ..tiny import VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

TEXT = " ".join(f"{word}{number}" for number in range(60) for word in ("alpha", "Beta", "gamma;", "delta"))
POSITIONS = 512


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model, another model, a text, a profile and a plan, made once; tests only read here."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "model")
    save_tiny(folder / "other", seed=1)
    (folder / "book.txt").write_text(TEXT)
    (folder / "verify.txt").write_text(TEXT[::-1])
    (folder / "blank.txt").write_text(" \n")
    (folder / "short.txt").write_text("too short")
    profile = gs.profile_model(
        *gs.load_model(str(folder / "model")), TEXT, gs.ProfileConfig(length=64, windows=2, queries=4, kinds=())
    )
    profile.save(folder / "p.safetensors")
    gs.make_plan(profile, 8).save(folder / "plan.json")
    return folder


@pytest.fixture(autouse=True)
def at_work(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # main sets it for itself; a test must not leave it to the next one.
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def run(capfd):
    """Run a command; returns exit code, standard output and standard error."""

    def command(line, *more):
        capfd.readouterr()
        try:
            code = main([*line.split(), *map(str, more)])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return command


def listing(*folders):
    return {path: path.stat().st_size for folder in folders for path in folder.rglob("*")}


@pytest.fixture
def fails(run, work, tmp_path):
    """Run a command that must fail: one sentence, exit code 2, nothing on standard output, nothing written."""

    def command(line, *more):
        before = listing(work, tmp_path)
        code, out, err = run(line, *more)
        assert code == 2, (out, err)
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("geosparse")
        assert ": error: " in err
        assert err.endswith((".\n", "?\n"))
        assert listing(work, tmp_path) == before
        return err.split(": error: ", 1)[1].rstrip("\n")

    return command


def test_the_whole_chain_as_text(run, tmp_path):
    p, plan = tmp_path / "new" / "p.safetensors", tmp_path / "plan.json"
    code, out, err = run("profile model --text book.txt --only --length 64 --windows 2 --queries 4 --out", p)
    assert (code, err) == (0, "")
    assert "Profile of model (LlamaForCausalLM, 2 layers, 6 query heads)" in out
    assert out.endswith(f"Wrote {p}.\n")
    assert p.read_bytes() == Path("p.safetensors").read_bytes()
    code, out, err = run(f"plan {p} --mean-keep 8 --out", plan)
    assert (code, err) == (0, "")
    assert "policy fisher, tail blend, mean N 8.00 at 64 tokens" in out
    assert plan.read_bytes() == Path("plan.json").read_bytes()
    for artifact, start in [(p, "Profile of"), (plan, "Plan for")]:
        code, out, err = run("inspect", artifact)
        assert (code, err) == (0, "")
        assert out.startswith(start)
    code, out, err = run(f"score model --text book.txt --length 64 --windows 3 --plan {plan}")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["3", "dense", "sparse", "excess", "density"]
    code, out, err = run(f"generate model --plan {plan} --max-new-tokens 5 --prompt abc")
    assert code == 0
    assert "tokens, density" in err
    code, out, err = run(f"bench model --plan {plan} --text book.txt --context 64 --new-tokens 3")
    assert (code, err) == (0, "")
    assert "times as fast as dense at decode" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "plan.json"]


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("profile model --text book.txt --length 64 --windows 2 --out {}/p.safetensors", {"budgets", "nll", "out"}),
        (
            "plan p.safetensors --mean-keep 3 --policy permuted --tail drop --seed 5 --out {}/q.json",
            {"n_keep", "out", "path"},
        ),
        ("plan p.safetensors --density 0.1 --out {}/q.json", {"budget", "n_keep", "out"}),
        ("plan p.safetensors --bytes 9000 --out {}/q.json", {"predicted", "selectors", "out"}),
        (
            "plan p.safetensors --tolerance 5 --model model --text book.txt --verify-text verify.txt --windows 4 "
            "--out {}/q.json",
            {"verified", "n_keep", "out", "path", "path_reason"},
        ),
        ("plan --diff plan.json plan.json", {"settings", "change", "rank_correlation", "most_changed"}),
        ("inspect plan.json", {"n_keep", "policy"}),
        ("inspect plan.json --html {}/plan.html", {"n_keep", "html"}),
        ("export plan.json --to kvpress --out {}/curve.npy", {"format", "files", "note"}),
        ("inspect p.safetensors", {"budgets", "windows"}),
        ("score model --text book.txt --length 64 --windows 2", {"dense", "notes"}),
        ("score model --text book.txt --length 64 --windows 1 --plan plan.json", {"sparse"}),
        ("generate model --plan plan.json --max-new-tokens 4 --prompt abc", {"text", "density", "new_tokens"}),
        ("generate model --max-new-tokens 4 --prompt abc", {"text"}),
        ("bench model --plan plan.json --text book.txt --context 32 --new-tokens 2", {"dense", "sparse", "gate"}),
        ("bench model --text book.txt --context 32 --new-tokens 2", {"dense", "dense_sparse_cache", "cache_ratio"}),
        ("doctor", {"versions", "self_test_error"}),
    ],
)
def test_json_is_one_object_on_standard_output(run, tmp_path, line, keys):
    code, out, _ = run(line.format(tmp_path) + " --json")
    assert code == 0
    result = json.loads(out, parse_constant=pytest.fail)
    assert keys <= result.keys()


def test_kinds_of_text_from_profile_to_plan(run, tmp_path):
    p, q = tmp_path / "p.safetensors", tmp_path / "q.json"
    line = "profile model --text book.txt --text verify.txt --length 64 --windows 1 --queries 4 --one-pass --out"
    code, out, err = run(line, p)
    assert (code, err) == (0, "")
    assert "built-in kinds of text: prose, code" in out
    given = ["book.txt", "verify.txt"]
    kinds = gs.Profile.load(p).kinds
    assert list(kinds[:2]) == given
    assert kinds[2] == "builtin:prose"
    code, out, _ = run(f"plan {p} --mean-keep 8 --robust --json --out {q}")
    assert code == 0
    assert json.loads(out)["kinds"].keys() == set(kinds)
    robust = gs.Plan.load(q).n_keep
    code, out, _ = run(f"plan {p} --mean-keep 8 --specialised --out {q}")
    assert code == 0
    assert "kinds of text: mean" in out
    assert not torch.equal(robust, gs.Plan.load(q).n_keep)


def test_demo(run, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and demo draws")
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    # As long as the model's context: the speed test has to stay within it.
    line = f"demo --model model --calibration book.txt --text {tmp_path / 'other.txt'} --length {POSITIONS} --windows 1"
    code, out, err = run(f"{line} --json --out {tmp_path / 'demo'}")
    assert (code, err) == (0, "")
    files = ["frontier.png", "plan.json", "profile.safetensors", "report.html", "result.json"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == files
    assert json.loads(out) == json.loads((tmp_path / "demo" / "result.json").read_text())
    assert json.loads(out)["kinds"].keys() >= {"text", "builtin:code", "builtin:readings"}
    assert "Kinds of text" in (tmp_path / "demo" / "report.html").read_text()
    stamp = (tmp_path / "demo" / "profile.safetensors").stat().st_mtime_ns
    code, out, _ = run(f"{line} --out {tmp_path / 'demo'}")
    assert code == 0
    assert "report.html" in out
    assert (tmp_path / "demo" / "profile.safetensors").stat().st_mtime_ns == stamp


def test_artifacts_are_told_apart_by_content(run, tmp_path):
    code, _, _ = run("plan p.safetensors --mean-keep 4 --out", tmp_path / "budgets")
    assert code == 0
    assert run("inspect", tmp_path / "budgets")[1].startswith("Plan for")


def test_density_is_recorded_as_it_was_asked(run, tmp_path):
    assert run("plan p.safetensors --density 0.125 --out", tmp_path / "q.json")[0] == 0
    plan = gs.Plan.load(tmp_path / "q.json")
    assert plan.budget == {"density": 0.125}
    assert torch.equal(plan.n_keep, gs.Plan.load("plan.json").n_keep)


def test_the_difference_of_two_plans(run, tmp_path):
    assert run("plan p.safetensors --mean-keep 8 --policy uniform --out", tmp_path / "u.json")[0] == 0
    code, out, err = run("plan --diff plan.json", tmp_path / "u.json")
    assert (code, err) == (0, "")
    assert out.startswith("Two plans for model: ")
    assert "  policy: fisher -> uniform\n" in out
    assert "  mean N 8.00 -> 8.00\n" in out
    assert "rank correlation of N: none, all N of a plan are equal" in out


def test_plans_for_different_models_are_not_compared(fails, tmp_path):
    gs.Plan.uniform(gs.load_model("other")[0], 4).save(tmp_path / "o.json")
    assert "The plans are for different models, model and other" in fails("plan --diff plan.json", tmp_path / "o.json")


@pytest.mark.parametrize("target", ["csv", "hf", "kvpress", "duo-attention"])
def test_exports_say_what_they_cannot_hold(run, tmp_path, target):
    code, out, err = run(f"export plan.json --to {target} --out", tmp_path / "out")
    assert (code, err) == (0, "")
    wrote, note = out.splitlines()
    assert wrote.startswith(f"Wrote {tmp_path / 'out'}")
    assert note.endswith(".")


def test_fewer_windows_than_asked_are_noted(run):
    code, out, _ = run("score model --text book.txt --length 400 --windows 50")
    assert code == 0
    assert "note: the text holds only" in out


def test_prompt_from_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    code, out, _ = run("generate model --json --max-new-tokens 2 --prompt -")
    assert code == 0
    assert json.loads(out)["prompt_tokens"] == len("from a pipe")


def test_doctor_in_words(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert "self-test: sparse attention within" in out


def test_doctor_that_finds_a_fault(fails, monkeypatch):
    monkeypatch.setattr(doctor, "_self_test", lambda _: float("nan"))
    assert "The self-test failed" in fails("doctor")


BAD = [
    # Models.
    ("score nowhere --text book.txt", "Unknown model 'nowhere'"),
    ("score ./nowhere --text book.txt", "There is no model at ./nowhere"),
    ("score book.txt --text book.txt", "not a .gguf file"),
    ("score model --text book.txt --dtype float31", "did you mean 'float32'"),
    ("score model --text book.txt --device warp", "Device 'warp' cannot be used"),
    # Texts.
    ("score model --text none.txt", "none.txt"),
    ("score model --text blank.txt", "holds no text"),
    ("score model --text pydoc:tests", "did you mean"),
    ("score model --text short.txt --length 64", "The text has 9 tokens, a window needs 64"),
    ("profile model --text none.txt --out {}/p", "none.txt"),
    ("profile model --text short.txt --length 64 --out {}/p", "The text has 9 tokens, a window needs 64"),
    ("profile nowhere --text book.txt --out {}/new/p", "Unknown model 'nowhere'"),
    ("bench model --plan plan.json --text short.txt --context 64", "The text has 9 tokens, a window needs 64"),
    # Numbers.
    ("profile model --text book.txt --length 1 --out {}/p", "length must be at least 8, found 1"),
    ("profile model --text book.txt --windows 0 --out {}/p", "windows must be at least 1, found 0"),
    ("profile model --text book.txt --queries -4 --out {}/p", "queries must be at least 1, found -4"),
    ("profile model --text book.txt --seed 99999999999999999999 --out {}/p", "seed must be at most 2147483647"),
    ("profile model --text book.txt --length 513 --out {}/p", "longer than the 512 that this LlamaForCausalLM allows"),
    ("score model --text book.txt --length 1", "--length must be at least 2, found 1"),
    ("score model --text book.txt --length 513", "give a smaller --length"),
    ("score model --text book.txt --length 64 --windows 0", "--windows must be at least 1, found 0"),
    ("bench model --plan plan.json --text book.txt --context 500 --new-tokens 32", "smaller --context or --new-tokens"),
    (
        "bench model --plan plan.json --text book.txt --context 64 --new-tokens 0",
        "--new-tokens must be at least 1, found 0",
    ),
    ("bench model --plan plan.json --text book.txt --context 1", "--context must be at least 2, found 1"),
    ("generate model --prompt abc --max-new-tokens 0", "--max-new-tokens must be at least 1, found 0"),
    ("generate model --prompt abc --max-new-tokens 511", "a shorter prompt or a smaller --max-new-tokens"),
    ("generate model --prompt abc --chat", "no chat template: leave out --chat"),
    ("generate model --prompt=", "The prompt is empty"),
    ("plan p.safetensors --out {}/q --mean-keep 0", "give a finite number from 1, found 0"),
    ("plan p.safetensors --out {}/q --mean-keep -1", "give a finite number from 1, found -1"),
    ("plan p.safetensors --out {}/q --mean-keep nan", "give a finite number from 1, found nan"),
    ("plan p.safetensors --out {}/q --mean-keep inf", "give a finite number from 1, found inf"),
    ("plan p.safetensors --out {}/q --mean-keep 0.5", "give a finite number from 1, found 0.5"),
    ("plan p.safetensors --out {}/q --density 0.01", "density 0.01 of 64 tokens is less than the 1 token"),
    ("plan p.safetensors --out {}/q --density 2", "above 0, up to 1, found 2"),
    ("plan p.safetensors --out {}/q --bytes 3", "No plan reads 3 bytes or less"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --length 128", "says nothing about 128"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --selector paged", "has not measured the selector 'paged'"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --tolerance 0.1", "--tolerance finds the budget itself"),
    ("plan p.safetensors --out {}/q --tolerance 0.1 --text book.txt --verify-text book.txt", "are the same: verify on"),
    ("plan p.safetensors --out {}/q --mean-keep ten", "--mean-keep must be a number, found 'ten'; see"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --seed -1", "--seed must be at least 0, found -1"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --policy fishr", "Unknown policy 'fishr': did you mean 'fisher'?"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --tail drops", "Unknown tail 'drops': did you mean 'drop'?"),
    ("profile model --text book.txt --out {}/p --length 64 --lengths 32,64", "--length is one length and --lengths"),
    ("profile model --text book.txt --out {}/p --lengths 64,32", "lengths must ascend, found [64, 32]"),
    ("profile model --text book.txt --out {}/p --lengths 64,many", "argument --lengths: whole numbers with commas"),
    ("profile model --text book.txt --out {}/p --selectors top", "Unknown selector 'top': did you mean 'topn'"),
    # Artifacts.
    ("plan plan.json --out {}/q --mean-keep 4", "plan.json is not a profile, or it is damaged"),
    ("plan none --out {}/q --mean-keep 4", "Cannot read none: No such file or directory"),
    ("plan model --out {}/q --mean-keep 4", "Cannot read model: Is a directory"),
    ("score model --text book.txt --plan p.safetensors", "p.safetensors is not a plan, or it is damaged"),
    ("score model --text book.txt --plan none", "Cannot read none: No such file or directory"),
    ("score other --text book.txt --plan plan.json", "This plan is for another model, model: plan and model differ in"),
    ("generate other --prompt abc --plan plan.json", "This plan is for another model"),
    ("bench other --text book.txt --plan plan.json", "This plan is for another model"),
    ("inspect none.json", "Cannot read none.json: No such file or directory"),
    ("inspect model", "Cannot read model: Is a directory"),
    ("inspect book.txt", "book.txt is not a plan, or it is damaged"),
    ("inspect model/model.safetensors", "model.safetensors is not a profile, or it is damaged"),
    ("inspect model/config.json", "expected schema geosparse.plan/1 or geosparse.plan/2, found None"),
    # Outputs.
    ("plan p.safetensors --mean-keep 4 --out model", "Cannot write model: it is a folder; give a file name"),
    ("plan p.safetensors --mean-keep 4 --out book.txt/q", "Cannot write book.txt/q: "),
    ("profile model --text book.txt --out model", "Cannot write model: it is a folder"),
    ("profile model --text book.txt --out book.txt/a/b", "Cannot write book.txt/a/b: "),
    ("plan p.safetensors --mean-keep 4 --out /dev/null", "Cannot write /dev/null: it is not a plain file"),
    ("plan p.safetensors --mean-keep 4 --out /proc/q.json", "Cannot write /proc/q.json: "),
    ("demo --model model --out book.txt", "Cannot write book.txt"),
    ("demo --model model --out {}/d --text book.txt --calibration book.txt", "is the calibration text"),
    ("demo --model model --out {}/d --calibration none.txt", "none.txt"),
    ("demo --model model --out {}/d --length 1024", "longer than the 512"),
    # The command itself.
    ("", "the following arguments are required: COMMAND; see `geosparse --help`"),
    ("polish", "invalid choice: 'polish'"),
    ("score model --frobnicate 3", "unrecognized arguments: --frobnicate 3"),
    ("score model --win 3", "unrecognized arguments: --win 3"),
    ("score model --length many", "--length must be a whole number, found 'many'; see `geosparse score --help`"),
    ("plan p.safetensors --out {}/q", "found none: give one of them"),
    ("plan p.safetensors --out {}/q --mean-keep 4 --density 0.5", "found mean_keep and density: give one of them"),
    ("plan p.safetensors --mean-keep 4", "geosparse plan needs --out"),
    ("plan p.safetensors --mean-keep 4 --robust --specialised --out {}/q", "--specialised exclude each other"),
    ("profile model --text book.txt --text book.txt --out {}/p", "--text names the same text twice: book.txt"),
    ("score model --text builtin:cod", "Unknown text 'builtin:cod'; did you mean 'code'"),
    ("plan --mean-keep 4 --out {}/q", "geosparse plan needs PROFILE"),
    ("plan --diff plan.json", "argument --diff: expected 2 arguments"),
    ("plan --diff plan.json none.json", "Cannot read none.json: No such file or directory"),
    ("plan p.safetensors --diff plan.json plan.json", "--diff compares two plans and makes none: leave out a profile"),
    ("plan --diff plan.json plan.json --mean-keep 4", "makes none: leave out --mean-keep"),
    ("plan --diff plan.json plan.json --seed 0", "makes none: leave out --seed"),
    ("inspect plan.json --html model", "Cannot write model: it is a folder; give a file name"),
    ("export plan.json --to cvs --out {}/q", "Unknown format 'cvs': did you mean 'csv'?"),
    ("export plan.json --to csv --out model", "Cannot write model: it is a folder; give a file name"),
    ("export plan.json --to hf --out book.txt", "book.txt: it is a file; give a folder"),
    ("export plan.json --to duo-attention --out model", "config.json belongs to something else, perhaps a model"),
    ("export plan.json --out {}/q", "the following arguments are required: --to"),
    ("generate model", "the following arguments are required: --prompt"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD, ids=[line.replace("{}/", "") or "nothing" for line, _ in BAD])
def test_mistakes(fails, tmp_path, line, sentence):
    if "/proc/" in line and not os.path.isdir("/proc/self"):
        pytest.skip("this system has no /proc")
    if line.startswith("demo"):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: demo stops before anything else")
    assert sentence in fails(line.format(tmp_path))


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "binary": lambda data: bytes(range(256)),
    "zeros": lambda data: bytes(len(data)),
    "not JSON": lambda data: b"budgets: 4",
    "NaN": lambda data: data.replace(b'"mean_keep": 8', b'"mean_keep": NaN'),
    "infinity": lambda data: data.replace(b'"mean_keep": 8.0', b'"mean_keep": 1e999'),
    "deep": lambda data: b'{"a":' * 100_000,
    "a number of 10 000 digits": lambda data: data.replace(b": 64", b": " + b"9" * 10_000),
    "a huge number": lambda data: data.replace(b'"reference_length": 64', b'"reference_length": 9007199254740993'),
    "a fraction": lambda data: data.replace(b'"reference_length": 64', b'"reference_length": 64.5'),
    "a word": lambda data: data.replace(b'"reference_length": 64', b'"reference_length": "64"'),
    "a list": lambda data: b"[" + data + b"]",
    "null": lambda data: b"null",
    "half a surrogate pair": lambda data: data.replace(b'"fisher"', b'"\\ud800"'),
    "another schema": lambda data: data.replace(b"plan/1", b"plan/9"),
    "a budget of 0": lambda data: re.sub(rb'("n_keep": \[\s*\[\s*)\d+', rb"\g<1>0", data),
    "a tail that is none": lambda data: data.replace(b'"centroid"', b'"mean"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_plans(fails, tmp_path, damage):
    path = tmp_path / "plan.json"
    data = Path("plan.json").read_bytes()
    path.write_bytes(DAMAGE[damage](data))
    assert path.read_bytes() != data
    for command in (f"inspect {path}", f"generate model --prompt abc --plan {path}"):
        text = fails(command)
        assert text.startswith(f"{path} is not a ")
        assert text.endswith("; give or make another one.")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_damaged_profiles(fails, tmp_path, share):
    path = tmp_path / "p.safetensors"
    data = Path("p.safetensors").read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert f"{path} is not a profile, or it is damaged" in fails(
        f"plan {path} --mean-keep 4 --out", tmp_path / "q.json"
    )


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


SIZE = {"vocab_size": len(VOCABULARY)}
UNSUPPORTED = {
    "encoder-decoder": transformers.T5Config(**SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "AttentionInterface": transformers.BloomConfig(**SIZE, hidden_size=16, n_layer=1, n_head=2),
    "AttentionInterface,": transformers.GPTJConfig(
        **SIZE, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=99
    ),
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_unsupported_models(fails, tmp_path, reason):
    config = UNSUPPORTED[reason]
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    folder = saved(model, tmp_path / "model")
    text = fails(f"profile {folder} --text book.txt --length 64 --out", tmp_path / "p.safetensors")
    assert reason in text
    assert type(model).__name__ in text


def test_a_model_without_a_head(fails, tmp_path):
    folder = saved(tiny_model(**SIZE).model, tmp_path / "model")
    text = fails(f"profile {folder} --text book.txt --length 64 --out", tmp_path / "p.safetensors")
    assert "its weights are missing (lm_head.weight first)" in text


def test_weights_that_are_not_numbers(fails, tmp_path):
    model = tiny_model(**SIZE)
    model.lm_head.weight[:] = torch.nan
    folder = saved(model, tmp_path / "model")
    for command in ("score", f"profile --out {tmp_path / 'p.safetensors'}"):
        assert "use a sound checkpoint" in fails(f"{command} {folder} --text book.txt --length 64")


def test_text_that_is_not_utf8(fails, tmp_path, monkeypatch):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 500)
    assert "UTF-8" in fails("score model --length 64 --text", tmp_path / "latin.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    assert "Standard input is not UTF-8" in fails("generate model --prompt -")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(fails, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "Permission denied" in fails("plan p.safetensors --mean-keep 4 --out", tmp_path / "closed" / "q.json")


def test_a_failed_run_keeps_the_old_file(fails, tmp_path):
    (tmp_path / "q.json").write_bytes(Path("plan.json").read_bytes())
    fails("plan p.safetensors --mean-keep 0 --out", tmp_path / "q.json")
    assert (tmp_path / "q.json").read_bytes() == Path("plan.json").read_bytes()


def test_names_in_a_file_do_not_steer_the_terminal(run, tmp_path):
    plan = gs.Plan.load("plan.json")
    name = "\x1b]0;owned\x07\x1b[2J\u009bname"
    replace(plan, model=replace(plan.model, name=name)).save(tmp_path / "q.json")
    code, out, _ = run("inspect", tmp_path / "q.json")
    assert code == 0
    assert "name (LlamaForCausalLM" in out
    assert not set(out) & {"\x1b", "\x07", "\u009b"}
    code, _, err = run("plan --diff plan.json", tmp_path / "q.json")
    assert "\x1b" not in err
    gs.Plan.uniform(gs.load_model("other")[0], 4).save(tmp_path / "o.json")
    code, _, err = run("plan --diff", tmp_path / "q.json", tmp_path / "o.json")
    assert code == 2
    assert "\x1b" not in err


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="this system has no such signal")
def test_being_asked_to_end_is_143_and_leaves_the_handler_as_it_was(run, monkeypatch):
    monkeypatch.setattr(commands.doctor, "run", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert run("doctor") == (143, "", "")
    assert signal.getsignal(signal.SIGTERM) is before


def test_interruption_is_130(run, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.doctor, "run", interrupt)
    assert run("doctor") == (130, "", "geosparse: interrupted\n")


def test_help_and_version(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in ("demo", "profile", "plan", "inspect", "export", "score", "generate", "lm-eval", "bench", "doctor"):
        assert f"    {command} " in out
        code, text, _ = run(f"{command} --help")
        assert code == 0
        assert "example:" in text
    assert run("--version")[1] == f"geosparse {gs.__version__}\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_states_the_default_of_every_option(name):
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for action in subparsers.choices[name]._actions:
        if action.default not in (None, False, argparse.SUPPRESS):
            value = ",".join(action.default) if isinstance(action.default, tuple) else str(action.default)
            assert value in action.help, action.option_strings


def test_help_of_lm_eval_says_whose_flags_the_others_are(run):
    assert "flags such as --tasks go to it" in " ".join(run("lm-eval --help")[1].split())


COMMAND = [sys.executable, "-m", "geosparse"]


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")
class TestProcess:
    """What only a process of its own can show."""

    def test_a_reader_that_stops_early(self):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*COMMAND, "inspect", "plan.json"], stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert done.stderr == b""
        assert done.returncode == 1

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
    def test_standard_output_that_is_full(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*COMMAND, "inspect", "plan.json"], stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.stderr.decode() == "geosparse: error: Cannot use standard output: No space left on device.\n"
        assert done.returncode == 1

    def test_control_c(self, tmp_path):
        out = tmp_path / "p.safetensors"
        line = ["profile", "model", "--text", "book.txt", "--length", "500", "--out", str(out)]
        # A line on standard error says when the work has begun; it then waits, as an interrupt that meets a callback of
        # the backward pass or of a weak reference is reported and dropped by Python.
        code = (
            "import sys, time, geosparse.cli.main, geosparse.profile.profiler as p\n"
            "old = p.forward_backward\n"
            "def slow(*a):\n    old(*a)\n    print('running', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
            "p.forward_backward = slow\n"
            "sys.exit(geosparse.cli.main.main(sys.argv[1:]))"
        )
        # Jobs in the background of a shell ignore SIGINT, and so would this child of one.
        process = subprocess.Popen(
            [sys.executable, "-c", code, *line],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert err == "geosparse: interrupted\n"
        assert process.returncode == 130
        assert list(tmp_path.iterdir()) == []

    def test_control_c_after_a_window_says_how_to_go_on(self, tmp_path):
        out = tmp_path / "p.safetensors"
        line = ["profile", "model", "--text", "book.txt", "--length", "64", "--windows", "2", "--only"]
        code = (
            "import sys, time, geosparse.cli.main, geosparse.profile.checkpoints as c\n"
            "old = c.Parts.save\n"
            "def slow(*a):\n    old(*a)\n    print('saved', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
            "c.Parts.save = slow\n"
            "sys.exit(geosparse.cli.main.main(sys.argv[1:]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, *line, "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr.readline() == "saved\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        kept = f"geosparse: finished windows are kept in {out}.parts: run the same command again to go on from them.\n"
        assert err == kept + "geosparse: interrupted\n"
        assert process.returncode == 130
        done = subprocess.run([*COMMAND, *line, "--out", str(out)], capture_output=True, check=False)
        assert done.returncode == 0
        assert list(tmp_path.iterdir()) == [out]
