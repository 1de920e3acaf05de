"""Which path serves is said in every result; kernels that are missing are said once, with the remedy."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import geosparse as gs
from geosparse.ops import serving as module
from geosparse.ops.serving import SlowPathWarning, missing_kernels, serving, warn_once

from ..tiny import save_tiny, tiny_model, tokens

PACKAGE = Path(gs.__file__).parent
SOURCES = shutil.ignore_patterns("*.so", "__pycache__")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A source tree without compiled kernels, with a model, a text and a plan in it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PACKAGE, folder / "geosparse", ignore=SOURCES)
    (folder / "pyproject.toml").write_text("")
    save_tiny(folder / "model")
    (folder / "book.txt").write_text("alpha beta gamma " * 40)
    gs.Plan.uniform(gs.load_model(str(folder / "model"))[0], 4).save(folder / "plan.json")
    return folder


def run(folder, *words):
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


COMMANDS = {
    "doctor": "doctor --json",
    "generate": "generate model --plan plan.json --prompt abc --max-new-tokens 2 --json",
    "score": "score model --plan plan.json --text book.txt --length 64 --windows 2 --json",
    "bench": "bench model --plan plan.json --text book.txt --context 32 --new-tokens 2 --json",
    "profile": "profile model --text book.txt --length 64 --windows 1 --queries 4 --out p.safetensors --json",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU doctor says what serves there")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkout_without_kernels_says_so_once(checkout, command):
    out, err = run(checkout, "-m", "geosparse", *COMMANDS[command].split())
    result = json.loads(out)
    assert result["path"] == "torch"
    assert "not built" in result["path_reason"]
    assert err.count("no compiled kernels") == 1
    said = next(line for line in err.splitlines() if "no compiled kernels" in line)
    assert said.startswith("geosparse: warning: Sparse attention runs through plain PyTorch, many times slower")
    assert f"run `pip install -e {checkout}`, or start Python in another folder" in said
    assert "Traceback" not in err


def test_from_python_it_is_one_warning_and_the_receipt_says_it(checkout):
    code = (
        "import geosparse as gs, torch; model, _ = gs.load_model('model'); plan = gs.Plan.load('plan.json')\n"
        "for _ in range(2):\n"
        "    with gs.sparsified(model, plan) as receipt: model(torch.arange(9)[None])\n"
        "print(receipt.path, len(receipt.notes), 'no compiled kernels' in receipt.notes[0])"
    )
    out, err = run(checkout, "-c", code)
    assert out == "torch 1 True\n"
    assert err.count("SlowPathWarning: ") == 1
    assert issubclass(SlowPathWarning, RuntimeWarning)


def test_where_the_kernels_are_there_nothing_is_said():
    if module.library() is None:
        pytest.skip("the kernels are not compiled here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_model()
        with gs.sparsified(model, gs.Plan.uniform(model, 4)) as receipt:
            model(tokens(1, 9))
    assert receipt.path.startswith("cpu (C++ ")
    assert receipt.path_reason == "the C++ kernels are there"
    assert receipt.notes == []
    assert missing_kernels("cpu") is None


def test_a_dtype_without_kernels_is_a_reason_and_no_warning():
    if module.library() is None:
        pytest.skip("the kernels are not compiled here")
    assert serving("cpu", torch.float64) == ("torch", "the C++ kernels do not take float64")


@pytest.mark.parametrize("there", [True, False])
def test_triton_on_a_gpu(monkeypatch, there):
    monkeypatch.setattr(module, "installed", lambda: there)
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert serving("cuda").path == ("triton" if there else "torch")
    sentence = missing_kernels("cuda")
    assert (sentence is None) == there
    assert there or sentence.endswith("pip install geosparse[triton].")


def test_devices_and_systems_without_kernels_expect_none(monkeypatch):
    monkeypatch.setattr(module, "library", lambda: None)
    assert missing_kernels("mps") is None
    assert serving("mps") == ("torch", "there are no kernels for mps")
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert missing_kernels("cpu") is None


def test_threads_that_ask_at_once_are_told_once(monkeypatch):
    monkeypatch.setattr(module, "library", lambda: None)
    monkeypatch.setattr(module, "_said", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            warn_once("cpu")
    assert len(caught) == 1
