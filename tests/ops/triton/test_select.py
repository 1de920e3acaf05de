"""The selection kernel alone: on given scores, against torch.topk, by score."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import top_n
from geosparse.ops.triton import stages
from geosparse.ops.triton.buffers import VisibleRows

from .material import DEVICE, needs_kernels

pytestmark = needs_kernels


def kept(scores, budgets, first, length):
    """`[B, Hq, R]` bool: what `select` says of rows of scores that count from `first`."""
    rows = VisibleRows.of(first, length, DEVICE)
    least, last = stages.select(scores, budgets, *rows.ends, 1)
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    place = torch.arange(scores.shape[-1], device=DEVICE)
    chosen = (order > least[..., None]) | ((order == least[..., None]) & (place <= last[..., None]))
    return chosen & (place < (rows.length - rows.first)[:, None, None]) & (scores > -torch.inf)


@given(st.integers(1, 120), st.lists(st.integers(1, 130), min_size=2, max_size=2), st.integers(0, 2**31), st.booleans())
@settings(max_examples=12)
def test_the_highest_scores_and_of_ties_the_first(keys, n, seed, tied):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, 2, keys, generator=generator)
    scores = (scores.round() if tied else scores).to(DEVICE)
    seen = [keys, max(1, keys - 20)]
    chosen = kept(scores, torch.tensor([n], dtype=torch.int32, device=DEVICE), [0, 0], seen)
    for row in range(2):
        true, _ = top_n(scores[row : row + 1, :, None, : seen[row]], n)
        assert torch.equal(chosen[row, :, : seen[row]], true[0, :, 0] > 0)
        assert not chosen[row, :, seen[row] :].any()


@pytest.mark.parametrize("special", [0.0, -0.0, torch.inf, 1e-42, -3.4e38])
def test_special_scores(special):
    scores = torch.tensor([[[special, -torch.inf, 1.0, special, -1.0, -0.0]]], device=DEVICE)
    for n in (1, 2, 3, 5, 6):
        chosen = kept(scores, torch.tensor([[n]], dtype=torch.int32, device=DEVICE), [0], [6])
        best = scores[0, 0].sort(descending=True).values[: min(n, 5)]
        assert torch.equal(scores[0, 0][chosen[0, 0]].sort(descending=True).values, best)


def test_a_long_row_is_selected_in_pieces():
    scores = torch.randn(1, 1, 9001, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    scores[0, 0, ::3] = 0.5
    for n in (1, 450, 4000, 9000):
        chosen = kept(scores, torch.tensor([[n]], dtype=torch.int32, device=DEVICE), [0], [9001])
        true, _ = top_n(scores[:, :, None], [n])
        assert torch.equal(chosen[0, 0], true[0, 0, 0] > 0)


def test_pages_are_listed_once_with_the_heads_that_chose_them():
    # Pages of two heads; the last page is not complete: of 5 * 16 + 3 tokens 5 pages are scored.
    scores = torch.tensor([[[5.0, 1.0, 4.0, 0.0, 0.0], [0.0, 2.0, 4.0, 0.0, 9.0]]], device=DEVICE)[None]
    rows, served = VisibleRows.of([0], [83], DEVICE), torch.ones(2, dtype=torch.int32, device=DEVICE)
    budgets = torch.tensor([[32, 17]], dtype=torch.int32, device=DEVICE)
    chosen = stages.select(scores[0], budgets, *rows.ends, 1, 1)
    pages, words, count, _ = stages.list_pages(scores, chosen, *rows.ends, served, 1)
    assert int(count) == 4
    assert pages[0, 0, :4].tolist() == [0, 2, 4, 5]
    assert words[0, 0, :4].tolist() == [0b01, 0b11, 0b10, 0b11]
