"""Selectors: how many tokens each keeps, and which."""

import pytest
import torch

import geosparse as gs
from geosparse.ops import SELECTORS
from geosparse.ops.key_index import index_of
from geosparse.profile.selector_errors import Scored, selections

LENGTH = 30
BUDGETS = (1, 2, 3, 7, 8, 29, 30, 64)


def scored(seen):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, len(seen), LENGTH, generator=generator).masked_fill(~seen, -torch.inf)
    scores[:, :, ::3] = torch.where(seen[:, ::3], 0.5, -torch.inf)
    key = torch.randn(1, LENGTH, 4, generator=generator)
    index = index_of(key[None], (0,)) if seen[:, 0].all() else None
    return Scored(torch.randn(3, len(seen), 4, generator=generator), key, scores, seen, index=index)


@pytest.fixture(params=["causal", "window"])
def rows(request):
    places, queries = torch.arange(LENGTH), torch.tensor([0, 3, 17, LENGTH - 1])
    seen = places <= queries[:, None]
    return scored(seen & (places > queries[:, None] - 10) if request.param == "window" else seen)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_n_visible_tokens(rows, name):
    visible = rows.seen.sum(-1)
    kept = [selected.keep for selected in selections(name, rows, BUDGETS)]
    assert len(kept) == len(BUDGETS)
    for budget, keep in zip(BUDGETS, kept, strict=True):
        assert keep.shape == rows.scores.shape
        assert keep.dtype == torch.bool
        assert torch.equal(keep.sum(-1), visible.clamp_max(budget).expand(3, -1))
        assert not (keep & ~rows.seen).any()


def test_topn_keeps_the_highest_scores_and_breaks_ties_to_the_left(rows):
    for budget, (keep, _) in zip(BUDGETS, selections("topn", rows, BUDGETS), strict=True):
        for head in range(3):
            for query, row in enumerate(rows.scores[head].tolist()):
                best = sorted((place for place in range(LENGTH) if rows.seen[query, place]), key=lambda i: (-row[i], i))
                assert keep[head, query].nonzero().flatten().tolist() == sorted(best[:budget])


def test_sink_recent_keeps_both_ends(rows):
    for budget, (keep, _) in zip(BUDGETS, selections("sink_recent", rows, BUDGETS), strict=True):
        sinks = min(4, budget // 2)
        for query in range(len(rows.seen)):
            places = rows.seen[query].nonzero().flatten().tolist()
            expected = places if len(places) <= budget else places[:sinks] + places[len(places) - budget + sinks :]
            assert keep[0, query].nonzero().flatten().tolist() == expected


def test_unknown_selector(rows):
    with pytest.raises(gs.GeosparseError, match="Unknown selector 'top': did you mean 'topn'"):
        selections("top", rows, BUDGETS)


@pytest.mark.parametrize("name", SELECTORS)
def test_an_index_of_more_keys_than_the_queries_see(name):
    """The profiler cuts keys to what a chunk of queries sees, but indexes all of them."""
    places, queries, keys = torch.arange(LENGTH), torch.tensor([16, 20, 25]), 26
    whole = scored(places <= queries[:, None])
    rows = Scored(whole.query, whole.key[:, :keys], whole.scores[..., :keys], whole.seen[:, :keys], index=whole.index)
    for cut, full in zip(selections(name, rows, (3, 20)), selections(name, whole, (3, 20)), strict=True):
        assert torch.equal(cut.keep, full.keep[..., :keys])


def test_an_index_with_pages_beyond_the_keys():
    places, queries, keys = torch.arange(40), torch.tensor([16, 18]), 19
    key, query = torch.randn(1, 40, 4), torch.randn(2, 2, 4)
    seen = (places <= queries[:, None])[:, :keys]
    scores = (query @ key[:, :keys].transpose(-1, -2)).masked_fill(~seen, -torch.inf)
    rows = Scored(query, key[:, :keys], scores, seen, index=index_of(key[None], (0,)))
    (selected,) = selections("lowbit", rows, (5,))
    assert torch.equal(selected.keep.sum(-1), torch.full((2, 2), 5))


def test_logits_are_neither_scaled_nor_capped_unless_asked_and_nothing_is_changed_later():
    rows = scored(torch.arange(LENGTH) <= torch.tensor([[LENGTH - 1]]))
    assert (rows.terms.scaling, rows.terms.softcap, rows.terms.sink) == (1.0, None, None)
    with pytest.raises(AttributeError):
        rows.index = None
