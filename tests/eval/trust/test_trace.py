"""A query's way through the package stays short: at most eight stays, no file entered twice."""

import json

import pytest

from eval.trust import trace
from geosparse.ops import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="the kernels are not built")


def test_a_query_stays_in_few_files_and_in_none_twice(capsys):
    assert trace.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["faults"] == {}
    assert set(said["ways"]) == {"decode, topn", "prefill, topn", "decode, lowbit", "prefill, lowbit"}
    assert all(way[0] == "sparsify/attention.py" for way in said["ways"].values())
    assert {way[-1] for name, way in said["ways"].items() if "decode" in name} == {"ops/cpu/decode.py"}


def test_a_long_way_and_a_second_stay_are_seen(monkeypatch, capsys):
    assert trace.faults(["a.py", "b.py", "a.py"]) == ["a.py is entered twice"]
    assert trace.faults([f"{place}.py" for place in range(9)]) == ["9 stays"]
    monkeypatch.setattr(trace, "traced", lambda: {"decode, topn": ["a.py", "b.py", "a.py"]})
    assert trace.main([]) == 1
    assert "  a.py is entered twice" in capsys.readouterr().out
