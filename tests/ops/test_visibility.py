"""Spans against the masks that they stand for, key by key."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import Span, causal_mask, dense_mask, span_of, visible_rows
from geosparse.ops.visibility import chunk_of, page_starts


@st.composite
def cases(draw):
    keys = draw(st.integers(1, 24))
    queries = draw(st.integers(1, keys))
    first = draw(st.lists(st.integers(0, keys - 1), min_size=1, max_size=3))
    return Span(tuple(first), draw(st.none() | st.integers(1, 30))), queries, keys


def by_definition(span, queries, keys):
    mask = torch.zeros(len(span.first), 1, queries, keys, dtype=torch.bool)
    for row, first in enumerate(span.first):
        for query in range(queries):
            place = keys - queries + query
            for key in range(keys):
                near = span.window is None or place - key < span.window
                mask[row, 0, query, key] = first <= key <= place and near
    return mask


@given(cases())
@settings(max_examples=150)
def test_masks_and_counts_are_those_of_the_definition(case):
    span, queries, keys = case
    true = by_definition(span, queries, keys)
    batch = len(span.first)
    assert torch.equal(dense_mask(span, queries, keys, "cpu").expand_as(true), true)
    assert torch.equal(span.visible(batch, queries, keys), true[:, 0].sum(-1))
    assert torch.equal(visible_rows(true, batch, queries, keys, "cpu"), true[:, 0].sum(-1))
    places = torch.tensor([queries - 1, 0])
    assert torch.equal(span.rows(places, queries, keys).expand(batch, -1, -1, -1), true[:, :, places])


@given(cases(), st.data())
@settings(max_examples=150)
def test_a_chunk_holds_every_key_that_its_queries_see(case, data):
    span, queries, keys = case
    true = by_definition(span, queries, keys)
    start = data.draw(st.integers(0, queries - 1))
    stop = data.draw(st.integers(start + 1, queries))
    for seen in (span, true):
        part, low, high = chunk_of(seen, start, stop, queries, keys, "cpu")
        assert 0 <= low < high <= keys
        assert torch.equal(part.expand(len(span.first), 1, stop - start, high - low), true[:, :, start:stop, low:high])
        outside = true[:, :, start:stop].clone()
        outside[..., low:high] = False
        assert not outside.any()


@given(cases())
@settings(max_examples=100)
def test_a_mask_of_one_query_is_recognised(case):
    span, _, keys = case
    mask = by_definition(Span(span.first), 1, keys)
    assert span_of(mask) == Span(span.first)


def test_masks_with_holes_or_an_early_end_are_no_spans():
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    for place in (2, 5):
        holed = mask.clone()
        holed[1, ..., place] = False
        assert span_of(holed) is None


def test_one_number_stands_for_all_rows():
    span = Span((2,))
    assert span.starts(3) == (2, 2, 2) == page_starts(span, 3)
    assert torch.equal(span.visible(3, 2, 6), torch.tensor([[3, 4]] * 3))
    assert Span().is_causal
    assert not span.is_causal
    assert not Span(window=4).is_causal
    assert torch.equal(Span().mask(3, 7), causal_mask(3, 7))


def test_pages_have_no_place_in_a_window():
    with pytest.raises(AssertionError):
        page_starts(Span(window=8), 1)
