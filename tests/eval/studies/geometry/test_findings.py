"""N* on curves that are known, and the commands of losses from end to end."""

import json
import math

import pytest

from eval.studies.geometry import damage, findings
from tests.tiny import save_tiny


def test_effective_n_lies_where_the_curve_crosses():
    curve = {2: 0.4, 4: 0.2, 8: 0.1, 16: 0.04}
    assert findings.effective_n(curve, 0.1, 64) == pytest.approx(8)
    assert findings.effective_n(curve, 0.3, 64) == pytest.approx(math.sqrt(8))
    assert 16 < findings.effective_n(curve, 0.01, 64) < 64
    assert findings.effective_n(curve, 0.5, 64) == 2
    # Where damage rises again, the last crossing counts.
    assert findings.effective_n({2: 0.04, 4: 0.2, 8: 0.0}, 0.1, 64) == pytest.approx(4 * math.sqrt(2))


@pytest.mark.parametrize("study", [findings, damage])
def test_commands_write_what_they_print(tmp_path, capsys, study):
    save_tiny(tmp_path / "model")
    for name in ("text", "other"):
        (tmp_path / name).write_text(" ".join(f"{name}{number} alpha" for number in range(300)), encoding="utf-8")
    line = [str(tmp_path / "model"), "--text", str(tmp_path / "text"), "--other", str(tmp_path / "other"), "--json"]
    line += ["--length", "64", "--windows", "3", "--out", str(tmp_path / "out"), "--queries", "4"]
    more = ["--lengths", "32,64", "--tokens", "128"] if study is findings else ["--heads", "5", "--budgets", "2,4,8,16"]
    assert study.run(line + more) == 0
    name = study.__name__.rsplit(".", 1)[-1]
    written = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
    assert written == json.loads(capsys.readouterr().out)
    if study is findings:
        assert [row["n_keep"] for row in written["f1"]["text"]] == [2, 4, 8, 16, 32]
        assert all(row["interval"][0] <= row["excess"] <= row["interval"][1] for row in written["f1"]["text"])
    else:
        part = written["tails"]["renormalize"]["text"]
        assert set(part["over_heads"]) == set(damage.METRICS)
        assert len(part["damage"]) == 5
