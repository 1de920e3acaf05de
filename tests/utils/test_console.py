"""Standard output of any encoding, or none; how commands end; text that is none."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys

import pytest
import torch

import geosparse as gs
from geosparse.cli import commands
from geosparse.cli.generate import generate
from geosparse.cli.main import main
from geosparse.utils.console import json_text, run_command

from ..tiny import save_tiny, tiny_model, tiny_tokenizer

LETTERS = "naïve – 中文 😀"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model and a plan, in a folder whose name no narrow encoding has; the plan carries that name."""
    folder = tmp_path_factory.mktemp("console")
    save_tiny(folder / LETTERS)
    gs.Plan.uniform(gs.load_model(str(folder / LETTERS))[0], 4).save(folder / "plan.json")
    return folder


def run(work, *words, encoding, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "geosparse", *words]
    return subprocess.run(command, cwd=work, env=environment | {"HF_HUB_OFFLINE": "1"}, stderr=-1, **options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "ascii:surrogateescape"])
def test_output_of_any_encoding(work, encoding):
    codec = encoding.split(":")[0]
    done = run(work, "inspect", "plan.json", encoding=encoding, stdout=-1)
    assert (done.returncode, done.stderr) == (0, b"")
    assert LETTERS.encode(codec, "backslashreplace") in done.stdout
    done = run(work, "inspect", "plan.json", "--json", encoding=encoding, stdout=-1)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode(codec))["model"]["name"] == LETTERS


def test_json_keeps_every_letter(monkeypatch):
    for encoding in ("ascii", "cp1252", "utf-8", "utf-16"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        text = json_text({"text": LETTERS, "name": "\udce9\ud800"})
        text.encode(encoding)
        assert json.loads(text) == {"text": LETTERS, "name": "\udce9\ud800"}


@pytest.mark.parametrize("stream", [None, io.StringIO])
def test_main_where_standard_output_is_no_file(work, monkeypatch, stream):
    monkeypatch.chdir(work)
    made = stream and stream()
    with contextlib.redirect_stdout(made), contextlib.redirect_stderr(None):
        assert main(["inspect", "plan.json"]) == 0
        assert main(["inspect", "none.json"]) == 2
        with pytest.raises(SystemExit):
            main(["inspect"])
    assert made is None or made.getvalue().startswith("Plan for")


def test_main_where_standard_output_is_closed(work, monkeypatch):
    monkeypatch.chdir(work)
    closed = io.StringIO()
    closed.close()
    with contextlib.redirect_stdout(closed):
        assert main(["inspect", "plan.json"]) == 0


def test_failures_of_the_system_where_standard_output_is_no_file(monkeypatch, capsys):
    def fail(_):
        raise OSError(5, "Input/output error", "disk")

    monkeypatch.setattr(commands.doctor, "run", fail)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "geosparse: error: Cannot use disk: Input/output error.\n"


def test_the_stream_is_left_as_it_was(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_command("test", lambda: print("中")) == 0
    assert stream.errors == "strict"
    assert stream.buffer.getvalue() == b"\\u4e2d\n"


@pytest.mark.skipif(os.name != "posix", reason="the shell and its pipes are POSIX ones")
@pytest.mark.parametrize("end", [">&-", "| true", "2>&- >/dev/null"])
def test_output_that_nobody_reads(work, end):
    words = f"'{sys.executable}' -m geosparse inspect plan.json {end}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["sh", "-c", words], cwd=work, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="words of a command line are bytes on Linux")
def test_a_prompt_that_is_not_utf8(work):
    done = run(work, "generate", LETTERS, "--prompt", b"caf\xe9", encoding="utf-8", stdout=-1)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"The prompt is not Unicode text: character 4 is '\\udce9', half a surrogate pair" in done.stderr


def test_a_prompt_from_standard_input_that_is_closed(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", LETTERS, "--prompt", "-"]) == 2
    assert "Standard input is closed" in capsys.readouterr().err


BROKEN = ["bad \ud83d end", "\udcff", b"bytes", None, 7]


@pytest.mark.parametrize("text", BROKEN, ids=ascii)
def test_text_that_no_tokenizer_takes(tmp_path, text):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for call in (
        lambda: gs.token_windows(tokenizer, [text], 8, 1),
        lambda: gs.token_windows(tokenizer, ["fine " * 9, text], 8, 1),
        lambda: gs.profile_model(model, tokenizer, [text], gs.ProfileConfig(8, 1)),
        lambda: generate(model, tokenizer, text, None, 2),
    ):
        with pytest.raises(gs.GeosparseError, match=r"half a surrogate pair|is not text but a "):
            call()


def test_lines_with_half_a_surrogate_pair_are_named(tmp_path):
    path = tmp_path / "scraped.jsonl"
    for line in ('"bad \\ud83d"', '{"text": "\\udc80"}', '{"other": "bad \\ud83d"}'):
        path.write_text(f'"fine \\ud83d\\ude00"\n{line}\n')
        with pytest.raises(gs.GeosparseError, match=r"scraped\.jsonl, line 2 is not Unicode text"):
            gs.load_texts(path)


def test_the_length_of_a_configuration_stays():
    config = gs.ProfileConfig(length=256)
    assert (config.length, config.lengths) == (256, (256,))
    assert config == gs.ProfileConfig(lengths=(256,))
    assert gs.ProfileConfig(lengths=(256,)).length == 256
    assert gs.ProfileConfig(lengths=(64, 256)).length is None
    assert dataclasses.replace(config, windows=2).length == 256
    assert dataclasses.replace(config, length=64).lengths == (64,)
    longer = dataclasses.replace(config, lengths=(512, 1024))
    assert (longer.length, longer.lengths) == (None, (512, 1024))


@pytest.mark.parametrize("name", ["windows", "queries", "random_sets", "seed", "geometry_queries", "length"])
@pytest.mark.parametrize("value", [-1, float("nan"), 1e30, 2.5, True, "4"])
def test_fields_that_are_no_numbers_within_bounds(name, value):
    with pytest.raises(gs.GeosparseError, match=f"^{name} must be "):
        gs.ProfileConfig(**{name: value})


@pytest.mark.parametrize("value", [-1, float("nan"), 1e30, 2.5, True, "4", None])
def test_dense_below_that_is_no_number_of_tokens(value):
    model = tiny_model()
    with pytest.raises(gs.GeosparseError, match=r"^dense_below must be "):
        gs.sparsify_(model, gs.Plan.uniform(model, 4), dense_below=value)


@pytest.mark.parametrize("windows", [torch.zeros(2, 1).long(), torch.zeros(4).long(), torch.rand(1, 4), [[1, 2]]])
def test_scores_of_what_are_no_windows(windows):
    with pytest.raises(gs.GeosparseError, match=r"token ids \[windows, length\]|2 tokens or more"):
        gs.score(tiny_model(), None, windows)
