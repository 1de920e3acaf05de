"""Differences of two plans, against numbers worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geosparse as gs
from geosparse.hf.identity import ModelIdentity
from geosparse.ops import TAILS
from geosparse.reports.comparison import MOST_HEADS, compare_plans, describe_comparison, rank_correlation

NAME = ModelIdentity("tiny", "LlamaForCausalLM", 2, 3, 1, 8, "0123456789abcdef")


def plan(rows, **changes):
    arguments = {"tail": "centroid", "reference_length": 64, "policy": "fisher", "budget": {"mean_keep": 4.0}}
    return gs.Plan(n_keep=torch.tensor(rows), **{"model": NAME} | arguments | changes)


def test_by_hand():
    before = plan([[1, 2, 3], [4, 5, 9]])
    after = plan([[1, 2, 13], [2, 5, 9]], policy="mass", tail="drop")
    data = compare_plans(before, after)
    assert data["settings"] == {"tail": ["centroid", "drop"], "policy": ["fisher", "mass"]}
    assert data["change"] == {"mean": 2.0, "median": 0.0, "max": 10}
    assert (data["changed"], data["heads"], data["tails_changed"]) == (2, 6, 6)
    assert data["mean_keep"] == [4.0, pytest.approx(32 / 6)]
    assert data["most_changed"] == [
        {"layer": 0, "head": 2, "before": 3, "after": 13},
        {"layer": 1, "head": 0, "before": 4, "after": 2},
    ]
    # Ranks 1 2 3 4 5 6 and 1 2.5 6 2.5 4 5.
    assert data["rank_correlation"] == pytest.approx(10.5 / (17.5 * 17.0) ** 0.5)
    text = describe_comparison(data)
    assert "2 of 6 heads differ" in text
    assert "  policy: fisher -> mass\n" in text
    assert text.splitlines()[-1].split() == ["1", "0", "4", "->", "2"]


def test_the_same_plan_twice():
    data = compare_plans(plan([[1, 2, 3], [4, 5, 9]]), plan([[1, 2, 3], [4, 5, 9]]))
    assert (data["settings"], data["changed"], data["most_changed"]) == ({}, 0, [])
    assert data["rank_correlation"] == 1.0
    assert "most changed" not in describe_comparison(data)


def test_a_model_under_another_name_is_the_same_model():
    other = ModelIdentity("copy", *list(NAME.to_json().values())[1:])
    data = compare_plans(plan([[1, 1, 1], [1, 1, 1]]), plan([[2, 1, 1], [1, 1, 1]], model=other))
    assert data["settings"] == {"model_name": ["tiny", "copy"]}
    assert data["rank_correlation"] is None


def test_another_model_is_refused():
    other = ModelIdentity("tiny", "LlamaForCausalLM", 2, 3, 1, 8, "f" * 16)
    with pytest.raises(gs.GeosparseError, match="they differ in fingerprint") as caught:
        compare_plans(plan([[1, 1, 1], [1, 1, 1]]), plan([[2, 1, 1], [1, 1, 1]], model=other))
    assert str(caught.value).endswith("give two plans for one model.")


def test_tails_are_compared_head_by_head():
    rows = [[1, 2, 3], [4, 5, 9]]
    places = torch.full((2, 3), TAILS.index("centroid"))
    places[1, 2] = TAILS.index("drop")
    data = compare_plans(plan(rows), plan(rows, tail="best", head_tails=places))
    assert (data["changed"], data["tails_changed"]) == (0, 1)
    assert data["settings"] == {"tail": ["centroid", "best"]}


def test_only_the_most_changed_heads_are_listed():
    wide = ModelIdentity("wide", "LlamaForCausalLM", 2, 20, 1, 8, "0")
    before = plan(torch.ones(2, 20, dtype=torch.int64).tolist(), model=wide)
    after = plan((1 + torch.arange(40)).view(2, 20).tolist(), model=wide)
    assert [row["after"] for row in compare_plans(before, after)["most_changed"]] == list(
        range(40, 40 - MOST_HEADS, -1)
    )


def centred_ranks(values):
    """Ranks by their definition, ties at their mean rank, minus their mean."""
    return [sum(n < value for n in values) + (values.count(value) + 1) / 2 - (len(values) + 1) / 2 for value in values]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=12))
def test_rank_correlation_is_the_correlation_of_mean_ranks(pairs):
    a, b = (list(values) for values in zip(*pairs, strict=True))
    found = rank_correlation(torch.tensor(a), torch.tensor(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        x, y = (torch.tensor(centred_ranks(values), dtype=torch.float64) for values in (a, b))
        assert found == pytest.approx(float(x @ y / (x.square().sum() * y.square().sum()).sqrt()), abs=1e-11)
