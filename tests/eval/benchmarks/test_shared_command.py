"""What the commands share."""

import pytest

import geosparse as gs
from eval.benchmarks import memory


def test_a_folder_that_cannot_be_is_said_before_the_work(folder, text, capsys, monkeypatch):
    monkeypatch.setattr(gs, "load_model", lambda *_, **__: pytest.fail("too late"))
    assert memory.main([str(folder), "--text", str(text), "--out", str(text)]) == 2
    assert "Not a directory" in capsys.readouterr().err
