"""The gradients of a sparsified model on a few words; all of them, and fifty steps, are `eval.trust.gradients`."""

import json

import pytest

from eval.trust import gradients
from eval.trust.gradients import APART, CHECKPOINTING, TOLERANCE, GradientCase, cases, relative_error, trained


@pytest.mark.parametrize(
    ("tail", "selector"),
    [("blend50", "topn"), ("centroid", "lowbit"), ("renormalize", "paged"), ("drop", "paged+lowbit")],
)
def test_a_sparsified_model_has_the_gradients_of_the_reference(tail, selector):
    found = list(cases([tail], [selector]))
    assert [case.checkpointing for case in found] == list(CHECKPOINTING)
    assert max(case.error for case in found) <= TOLERANCE


def test_training_sparsely_ends_where_the_reference_does():
    result = trained(steps=8)
    assert abs(result["sparse"] - result["reference"]) <= APART * result["reference"]
    assert result["reference"] < result["first"] - 0.1


def test_a_wrong_gradient_is_seen_and_said(monkeypatch, capsys):
    monkeypatch.setattr(gradients, "cases", lambda: iter([GradientCase("drop", "topn", "none", 2 * TOLERANCE)]))
    monkeypatch.setattr(gradients, "trained", lambda: {"steps": 1, "first": 2.0, "sparse": 1.0, "reference": 1.0})
    assert gradients.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["largest_error"] == 2 * TOLERANCE
    assert gradients.main([]) == 1
    assert "largest relative error 2.0e-04" in capsys.readouterr().out


def test_the_error_is_relative_to_each_tensor():
    import torch

    small, large = torch.tensor([1e-3, 0.0]), torch.tensor([1e3])
    assert relative_error([small * 1.5, large], [small.double(), large.double()]) == pytest.approx(0.5, rel=1e-5)
