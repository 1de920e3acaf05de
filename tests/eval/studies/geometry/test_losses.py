"""The studies of loss: one head alone against the whole model sparsified, N* on curves that are known."""

import json
import math

import pytest
import torch

import geosparse as gs
from eval.studies.geometry import damage, findings
from eval.studies.geometry.one_head import HeadTrial, one_head_losses
from geosparse.scoring import token_nll
from tests.tiny import save_tiny, tiny_model, tokens

LENGTH = 40


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("tail", ["drop", "renormalize"])
def test_one_head_alone_costs_what_a_plan_says(kind, tail):
    model, window = tiny_model(kind), tokens(1, LENGTH)[0]
    trials = [HeadTrial(0, 1, 3), HeadTrial(1, 5, 1), HeadTrial(0, 4, 8), HeadTrial(1, 0, 2)]
    dense, found = one_head_losses(model, window, trials, tail)
    assert dense == pytest.approx(token_nll(model, window[None]).mean().item(), rel=1e-5)
    for trial in trials:
        plan = gs.Plan.uniform(model, LENGTH, tail)
        plan.n_keep[trial.layer, trial.head] = trial.n_keep
        with gs.sparsified(model, plan):
            expected = token_nll(model, window[None]).mean().item()
        assert found[trial] == pytest.approx(expected, rel=1e-5)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_effective_n_lies_where_the_curve_crosses():
    curve = {2: 0.4, 4: 0.2, 8: 0.1, 16: 0.04}
    assert findings.effective_n(curve, 0.1, 64) == pytest.approx(8)
    assert findings.effective_n(curve, 0.3, 64) == pytest.approx(math.sqrt(8))
    assert 16 < findings.effective_n(curve, 0.01, 64) < 64
    assert findings.effective_n(curve, 0.5, 64) == 2
    # Where damage rises again, the last crossing counts.
    assert findings.effective_n({2: 0.04, 4: 0.2, 8: 0.0}, 0.1, 64) == pytest.approx(4 * math.sqrt(2))


def test_a_metric_that_is_the_damage_has_correlation_one():
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(12, 4, generator=generator).double()
    assert damage.over_heads(loss[:, 0], loss[:, 0])["spearman"] == pytest.approx(1.0)
    assert damage.along_n(-loss, loss)["spearman"] == pytest.approx(-1.0)
    assert damage.worst_share(torch.eye(10).double()) == [1.0] * 10
    heads = damage.sample_heads(3, 4, 5, 0)
    assert len({tuple(row) for row in heads.tolist()}) == 5
    assert heads.amax(0).tolist() <= [2, 3]


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
