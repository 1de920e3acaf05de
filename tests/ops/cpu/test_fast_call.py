"""Calls put together by fast_call.c against those of decode.py: the same kernel, so the same bits."""

import gc
import itertools
import sys
import weakref

import pytest
import torch

from geosparse.ops import SELECTORS, TAILS, IndexSlot, Span, cpu_attention, remember_index, remember_value_sum
from geosparse.ops.cpu.fast_call import direct
from geosparse.ops.selectors import fits
from geosparse.ops.spec import per_head
from geosparse.ops.tails import TailShares

from ..test_attention import tensors

pytestmark = pytest.mark.skipif(direct() is None, reason="fast_call.c was not built, or torch is older than 2.10")
decode_module = sys.modules["geosparse.ops.cpu.decode"]


def both(monkeypatch, *arguments, **words):
    """What fast_call.c returns, and what decode.py does."""
    seen = []

    def watched(*given):
        seen.append(direct().decode(*given))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "direct", lambda: direct()._replace(decode=watched))
        fast = cpu_attention(*arguments, **words)
    with monkeypatch.context() as patch:
        patch.setattr(decode_module, "direct", lambda: None)
        slow = cpu_attention(*arguments, **words)
    return fast, slow, seen


def cached(keys, dtype, dim=64):
    """One row's query and states as a cache holds them: with room behind, an index, and the sum of the values."""
    q, k, v = tensors(1, 6, 2, 1, keys, dim, dtype=dtype)
    key, value = (torch.full((1, 2, keys + 5, dim), torch.nan, dtype=dtype)[:, :, :keys] for _ in range(2))
    key.copy_(k)
    value.copy_(v)
    remember_index(key, IndexSlot())
    remember_value_sum(value, value.sum(-2, dtype=torch.float64))
    return q.transpose(1, 2).contiguous().transpose(1, 2), key, value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [1, 15, 16, 333])
def test_the_same_bits(monkeypatch, dtype, keys):
    q, key, value = cached(keys, dtype)
    n_keep = [1, 3, 17, 40, max(1, keys // 2), keys + 9]
    for selector in SELECTORS:
        for tail in (*TAILS, [TailShares(0.3, -0.2, 0.4, 0.7), *["drop"] * 4, TailShares(pages=-1.0)]):
            for extra in ({}, {"sink": torch.linspace(-2, 2, 6), "softcap": 3.0}):
                if not all(fits(selector, each) for each in per_head(tail, 6)):
                    continue
                words = {"tail": tail, "selector": selector, "scaling": 0.2, **extra}
                fast, slow, seen = both(monkeypatch, q, key, value, n_keep, **words)
                assert seen[0] is not None
                assert type(fast) is type(slow)
                assert fast.output.shape == slow.output.shape == (1, 6, 1, 64)
                assert fast.output.is_contiguous()
                assert torch.equal(fast.output, slow.output)
                assert torch.equal(fast.kept, slow.kept)


def test_other_kinds_of_calls_are_left_to_python(monkeypatch):
    narrow = tensors(1, 6, 2, 1, 50, 32)[2]
    q, k, v = tensors(1, 6, 2, 1, 50, 64)
    turned = k.transpose(-1, -2).contiguous().transpose(-1, -2)
    for states in ((q, k, narrow), (q, turned, v), (q, k.bfloat16(), v)):
        fast, slow, seen = both(monkeypatch, *states, [9] * 6, tail="centroid", scaling=0.1)
        assert seen == [None]
        assert torch.equal(fast.output, slow.output)
        assert torch.equal(fast.kept, slow.kept)
    mask = torch.ones(1, 1, 1, 50, dtype=torch.bool)
    fast, slow, seen = both(monkeypatch, q, k, v, [9] * 6, tail="centroid", scaling=0.1, mask=mask)
    assert not seen
    assert torch.equal(fast.output, slow.output)


@pytest.mark.parametrize("selector", ["topn", "lowbit", "paged"])
def test_several_rows_padding_and_windows(monkeypatch, selector):
    q, k, v = tensors(3, 6, 2, 1, 50, 64)
    n_keep = torch.randint(1, 20, (3, 6, 1), generator=torch.Generator().manual_seed(0))
    for span in (Span(), Span((3,)), Span((0, 7, 50)), Span((40, 41, 42)), Span((0, 7, 50), 20)):
        if span.window is not None and selector != "topn":
            continue
        for budgets, tail in itertools.product(([9] * 6, n_keep), ("centroid", [TailShares(0.3, -0.2, 0.4, 0.7)] * 6)):
            if span.window is not None and tail != "centroid":
                continue
            words = {"tail": tail, "selector": selector, "scaling": 0.1, "mask": span}
            remember_value_sum(v, v.sum(-2, dtype=torch.float64))
            fast, slow, seen = both(monkeypatch, q, k, v, budgets, **words)
            assert seen[0] is not None
            assert torch.equal(fast.output, slow.output)
            assert torch.equal(fast.kept, slow.kept)


def test_a_query_with_gaps_between_its_heads(monkeypatch):
    q, key, value = cached(50, torch.float32)
    spread = torch.full((1, 6, 1, 128), torch.nan)[..., :64].copy_(q)
    fast, slow, seen = both(monkeypatch, spread, key, value, [9] * 6, tail="centroid", scaling=0.1)
    assert seen[0] is not None
    assert torch.equal(fast.output, slow.output)


def test_nothing_is_kept_and_nothing_is_lost():
    q, key, value = cached(70, torch.float32)
    result = cpu_attention(q, key, value, [9] * 6, tail="centroid", scaling=0.1)
    held = [weakref.ref(result.output), weakref.ref(result.kept)]
    counts = [sys.getrefcount(each) for each in (q, key, value)]
    for _ in range(3):
        cpu_attention(q, key, value, [9] * 6, tail="centroid", scaling=0.1)
    assert [sys.getrefcount(each) for each in (q, key, value)] == counts
    del result
    gc.collect()
    assert [ref() for ref in held] == [None, None]


def test_wrong_arguments_are_errors_of_python():
    with pytest.raises(TypeError, match="takes 17 arguments"):
        direct().decode(1, 2)
    q, key, value = cached(20, torch.float32)
    numbers = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(TypeError, match="must be real number"):
        direct().decode(q, key, value, numbers[None], torch.zeros(6, 4), numbers, *[None] * 7, 0, 1, "x", 0.0)
