"""Exact top-N against a sorted list, with few rows and many, ties, hidden tokens, and budgets per query."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.errors import GeosparseError
from geosparse.ops import top_n
from geosparse.ops.topn import FEW_ROWS

INF = torch.inf


def by_sorting(row, n):
    """The places of the `n` highest of a list of scores, ties to the smaller place; hidden ones never."""
    seen = [place for place, score in enumerate(row) if score > -INF]
    return sorted(sorted(seen, key=lambda place: (-row[place], place))[:n])


def kept_places(keep):
    return keep.nonzero().flatten().tolist()


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 2, FEW_ROWS, FEW_ROWS + 1, 40]),
    st.integers(1, 30),
    st.integers(0, 2**31),
    st.booleans(),
    st.data(),
)
@settings(max_examples=80)
def test_top_n_is_what_sorting_gives(batch, heads, queries, keys, seed, ties, data):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, heads, queries, keys, generator=generator)
    if ties:
        scores = scores.mul(2).round()
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = -INF
    count = st.integers(1, keys + 3)
    per_query = data.draw(st.booleans())
    shape = (batch, heads, queries) if per_query else (1, heads, 1)
    size = torch.Size(shape).numel()
    budgets = torch.tensor(data.draw(st.lists(count, min_size=size, max_size=size))).view(shape)
    keep, kept = top_n(scores, budgets if per_query else budgets.flatten().tolist())
    assert keep.dtype == scores.dtype
    budgets = budgets.expand(batch, heads, queries)
    for place in torch.cartesian_prod(*map(torch.arange, scores.shape[:3])).view(-1, 3).tolist():
        at = tuple(place)
        wanted = by_sorting(scores[at].tolist(), int(budgets[at]))
        assert kept_places(keep[at]) == wanted
        assert int(kept[at]) == len(wanted)


@pytest.mark.parametrize("queries", [1, 2 * FEW_ROWS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_equal_keeps_the_first(queries, dtype):
    keep, kept = top_n(torch.zeros(1, 2, queries, 9, dtype=dtype), [1, 4])
    assert keep.dtype == dtype
    assert keep[0, :, -1].tolist() == [[1.0] + [0.0] * 8, [1.0] * 4 + [0.0] * 5]
    assert kept[0, :, -1].tolist() == [1, 4]


@pytest.mark.parametrize("queries", [1, 2 * FEW_ROWS])
def test_a_query_that_sees_nothing_keeps_nothing(queries):
    keep, kept = top_n(torch.full((1, 1, queries, 5), -INF), [3])
    assert not keep.any()
    assert not kept.any()


def test_one_query_of_a_long_row_keeps_the_highest():
    scores = torch.arange(1000.0).view(1, 1, 1, 1000)
    assert kept_places(top_n(scores, [3])[0][0, 0, 0]) == [997, 998, 999]


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        ([1, 2], "Expected 3 budgets (one per query head), found 2."),
        ([1, 2, 3, 4], "Expected 3 budgets (one per query head), found 4."),
        ([4, 0, 5], "Every head keeps at least 1 token, found a budget of 0."),
        ([4, 5, -2], "Every head keeps at least 1 token, found a budget of -2."),
    ],
)
def test_budgets_that_do_not_fit(budgets, sentence):
    with pytest.raises(GeosparseError) as caught:
        top_n(torch.zeros(1, 3, 2, 8), budgets)
    assert str(caught.value) == sentence
