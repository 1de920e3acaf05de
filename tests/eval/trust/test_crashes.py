"""The faults of machines against `plan`, a few of each, and against what reads and writes; the long run, on all
commands, is `python -m eval.trust.crashes`."""

import json
import os
import random
import signal
import sys

import pytest

from eval.trust import crashes
from eval.trust.commands import COMMANDS, Command, orphans, own_command
from eval.trust.crashes import FAULTS, CrashBench, make_inputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found through /proc"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def bench(inputs, tmp_path_factory):
    return CrashBench(inputs, tmp_path_factory.mktemp("plan"), COMMANDS["plan"])


@pytest.mark.parametrize("fault", FAULTS)
def test_plan_withstands(bench, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "work", tmp_path)
    # The second round waits for the first file, so that one stop is early and one is while writing.
    found = FAULTS[fault](bench, random.Random(fault), 2)
    if found == ["skipped: no right to mount"]:
        pytest.skip("this user may not mount a small disk")
    assert found == []


def writer(inputs, body):
    """A command that writes q.json in the way that `body` says."""
    imports = "import json, pathlib, time\nfrom geosparse.utils.files import write_json"
    code = f"{imports}\npath = pathlib.Path('q.json')\n{body}"
    return own_command([sys.executable, "-c", code], ["q.json"])


def test_a_command_that_leaves_half_files_is_noticed(inputs, tmp_path):
    body = "with path.open('w') as f:\n    f.write('{'); f.flush(); time.sleep(1.5); f.write('}')"
    bench = CrashBench(inputs, tmp_path, writer(inputs, body))
    found = crashes.killed(bench, random.Random(0), 4)
    assert any("q.json is not whole" in problem for problem in found)


def test_a_command_that_leaves_a_process_is_noticed(inputs, tmp_path):
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(4)']"
    body = f"import subprocess, sys\nwrite_json(path, 1)\nsubprocess.Popen({sleeper}, stdout=-3, stderr=-3)"
    command = writer(inputs, body)
    bench = CrashBench.__new__(CrashBench)
    bench.inputs, bench.work, bench.command = inputs, tmp_path, command
    folder = bench.fresh("orphan")
    bench.run(folder)
    left = orphans()
    assert left
    for process in left:
        os.kill(process, signal.SIGKILL)


def test_the_command_line(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crashes, "make_inputs", lambda folder: None)
    words = f"{sys.executable} -c print(1)"
    arguments = ["--commands", "", "--own", words, "--faults", "two at once", "--rounds", "1"]
    assert crashes.main([*arguments, "--out", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["commands"]["own"]["two at once"] == {"problems": [], "skipped": []}
    assert isinstance(own_command(["x"], []), Command)
