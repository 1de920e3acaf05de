"""The key index: how far a code is from its key, and that growing it is the same as building it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import PAGE, KeyIndex
from geosparse.ops.key_index import LEVELS, WIDTH, IndexSlot, decode, encode, index_of, remember_index
from geosparse.ops.value_means import ValueMeans, means_of
from geosparse.sparsify.cache.growing import GrowingLayer

# Rounding to fp16: half a unit of its 11 bits, or of its smallest number.
HALF_EPS, HALF_TINY = 2.0**-11, 2.0**-25


def keys(batch, heads, length, dim, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(batch, heads, length, dim, generator=generator)
    # Channels of very different size, as keys have them.
    return scale * drawn * torch.logspace(-2, 1, dim) + torch.randn(dim, generator=generator)


def same(ours, fresh):
    """Bit for bit, as far as pages are complete."""
    assert ours.pages == fresh.pages
    assert ours.first == fresh.first
    for row, pages in enumerate(fresh.pages):
        for name in ("low", "high", "codes"):
            if pages:
                assert torch.equal(getattr(ours, name)[row, :, :pages], getattr(fresh, name)[row, :, :pages]), name


@pytest.mark.parametrize("bits", sorted(LEVELS))
@pytest.mark.parametrize("dim", [8, 40, 64, 72, 80, 128])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_codes_are_within_half_a_step(bits, dim, scale):
    pages = keys(2, 3, 5 * PAGE, dim, scale=scale).view(2, 3, 5, PAGE, dim)
    low, high, codes = encode(pages, bits)
    width = -(-dim // WIDTH) * WIDTH
    assert low.shape == high.shape == (2, 3, 5, width)
    assert codes.shape == (2, 3, 5, width * bits // 32, PAGE, 4)
    back = decode(low, high, codes, bits, dim)
    bottom, top = pages.amin(-2, keepdim=True), pages.amax(-2, keepdim=True)
    rounding = HALF_EPS * torch.maximum(bottom.abs(), top.abs()) + HALF_TINY
    step = (high.float() - low.float())[..., None, :dim] / LEVELS[bits]
    assert ((back - pages).abs() <= step / 2 + 1.01 * rounding).all()
    # The bounds hold every key, up to their own rounding.
    assert (low[..., None, :dim].float() <= pages + rounding).all()
    assert (high[..., None, :dim].float() >= pages - rounding).all()


def test_a_constant_page_is_exact_and_nothing_overflows():
    flat = torch.full((1, 1, 1, PAGE, 16), 0.5)
    assert torch.equal(decode(*encode(flat, 4), 4, 16), flat)
    wild = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30]).repeat(PAGE, 4)[:PAGE, :16][None, None, None]
    for bits in LEVELS:
        low, high, codes = encode(wild, bits)
        assert torch.isfinite(low).all()
        assert torch.isfinite(high).all()
        assert torch.isfinite(decode(low, high, codes, bits, 16)).all()


def test_a_nan_key_leaves_the_other_channels_and_pages_alone():
    whole = keys(1, 2, 4 * PAGE, 40)
    broken = whole.clone()
    broken[0, 1, 20, 7] = torch.nan
    clean, marred = (KeyIndex((0,)).extend(each).decoded(4 * PAGE, 40) for each in (whole, broken))
    assert torch.isfinite(marred).all()
    other = torch.ones_like(whole, dtype=torch.bool)
    other[0, 1, PAGE : 2 * PAGE, 7] = False
    assert torch.equal(marred[other], clean[other])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.lists(st.integers(0, 50), min_size=1, max_size=3),
    st.sampled_from(sorted(LEVELS)),
    st.sampled_from([16, 40]),
    st.integers(0, 1000),
)
@settings(max_examples=80)
def test_growing_equals_building(sizes, first, bits, dim, seed):
    whole = keys(len(first), 2, sum(sizes), dim, seed)
    ours, have = KeyIndex(tuple(first), bits), 0
    for size in sizes:
        have += size
        ours.extend(whole[:, :, :have])
    fresh = KeyIndex(tuple(first), bits).extend(whole)
    same(ours, fresh)
    assert fresh.pages == [max(0, sum(sizes) - start) // PAGE for start in first]
    assert torch.equal(ours.decoded(sum(sizes), dim), fresh.decoded(sum(sizes), dim))


@given(st.integers(0, 10**6), st.lists(st.sampled_from(["grow", "crop", "reorder", "select", "repeat"]), max_size=10))
@settings(max_examples=80)
def test_the_index_follows_the_cache(seed, changes):
    generator = torch.Generator().manual_seed(seed)

    def number(most):
        return int(torch.randint(1, most + 1, (1,), generator=generator))

    layer, first = GrowingLayer(), (0, 7, 3)
    for change in ("grow", *changes, "grow"):
        batch = len(first)
        if change == "grow":
            new = torch.randn(batch, 2, number(45), 24, generator=generator)
            layer.update(new, 2 * new)
            same(index_of(layer.keys, first), KeyIndex(first).extend(layer.keys))
            same_means(means_of(layer.values, first), ValueMeans(first).extend(layer.values))
            assert layer.slot.index is not None
        elif change == "crop":
            layer.crop(-min(number(20), layer.get_seq_length() - 1))
        elif change == "repeat" and batch <= 6:
            layer.batch_repeat_interleave(2)
            first = tuple(start for start in first for _ in range(2))
        elif change in ("reorder", "select"):
            rows = torch.randint(0, batch, (batch if change == "reorder" else number(batch),), generator=generator)
            (layer.reorder_cache if change == "reorder" else layer.batch_select_indices)(rows)
            first = tuple(first[row] for row in rows.tolist())


def same_means(found, expected):
    assert found.pages == expected.pages
    for row, pages in enumerate(expected.pages if expected.room else ()):
        assert found.means[row, :, :pages].equal(expected.means[row, :, :pages])


def test_page_means_follow_values_that_somebody_replaced():
    layer = GrowingLayer()
    layer.update(*[keys(2, 2, 40, 16)] * 2)
    means_of(layer.values, (0, 0))
    layer.values = 3 * layer.values
    layer.update(*[keys(2, 2, 20, 16)] * 2)
    same_means(means_of(layer.values, (0, 0)), ValueMeans((0, 0)).extend(layer.values))
    layer.values = 3 * layer.values
    layer.crop(-5)
    assert layer.slot.means is None


def test_changes_keep_the_index_instead_of_building_another(monkeypatch):
    layer = GrowingLayer()
    layer.update(*[keys(2, 2, 100, 16)] * 2)
    index = index_of(layer.keys, (0, 5))
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.crop(-30)
    layer.update(*[keys(2, 2, 1, 16)] * 2)
    again = index_of(layer.keys, (5, 0))
    assert again is index
    same(again, KeyIndex((5, 0)).extend(layer.keys))


def test_another_padding_or_width_of_code_is_another_index():
    whole, slot = keys(2, 1, 50, 16), IndexSlot()
    remember_index(whole, slot)
    index = index_of(whole, (0, 0))
    assert index_of(whole, (0, 0)) is index
    assert index_of(whole, (0, 4)) is not index
    assert index_of(whole, (0, 4), bits=8).bits == 8
    assert index_of(whole.clone(), (0, 0)) is not slot.index


def test_no_page_is_complete_before_its_last_key():
    whole = keys(1, 1, 2 * PAGE + 3, 16)
    index = KeyIndex((4,)).extend(whole[:, :, : PAGE + 3])
    assert index.pages == [0]
    assert not index.decoded(PAGE + 3, 16).any()
    assert index.page_scores(torch.ones(1, 1, 1, 16)).bound.shape == (1, 1, 1, 0)
    assert index.extend(whole[:, :, : PAGE + 4]).pages == [1]


@pytest.mark.parametrize("dim", [40, 64])
def test_page_scores_bound_every_dot_product(dim):
    whole = keys(2, 2, 100, dim)
    index = KeyIndex((0, 9)).extend(whole)
    query = torch.randn(2, 6, 3, dim, generator=torch.Generator().manual_seed(1))
    scores = index.page_scores(query)
    dots = query @ whole.repeat_interleave(3, dim=1).transpose(-1, -2)
    size = (query.abs() @ whole.abs().repeat_interleave(3, dim=1).transpose(-1, -2)).amax()
    for row, first in enumerate(index.first):
        for page in range(index.pages[row]):
            inside = dots[row, :, :, first + page * PAGE : first + (page + 1) * PAGE]
            assert (scores.bound[row, :, :, page] >= inside.amax(-1) - 2 * HALF_EPS * size).all()
            assert (scores.centre[row, :, :, page] <= scores.bound[row, :, :, page] + 1e-3).all()
    assert (scores.variance >= 0).all()
