"""Commands under test: their processes are found again, and end when they are told to."""

import signal
import sys

from eval.trust.commands import Command, end, orphans, own_command, start


def test_a_process_is_an_orphan_until_it_ends(tmp_path):
    command = Command((sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"), {}, ())
    process = start(command, tmp_path)
    try:
        process.stdout.readline()
        assert orphans() == [process.pid]
    finally:
        code, _ = end(process)
    assert code == -signal.SIGKILL
    assert orphans() == []


def test_a_command_of_ones_own_leaves_json(tmp_path):
    command = own_command(["program", "--flag"], ["a.json"])
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert command.words == ("program", "--flag")
    assert command.outputs["a.json"](tmp_path / "a.json") == {"a": 1}
