"""Tails that give to pages, in the kernels: against the fp64 reference with the page means that the kernels read."""

import pytest
import torch

from geosparse.ops import IndexSlot, Span, chunked_attention, cpu, cpu_attention, reference_attention, remember_index
from geosparse.ops.key_index import PAGE
from geosparse.ops.tails import TailShares
from geosparse.ops.value_means import ValueMeans
from geosparse.sparsify.cache.growing import GrowingLayer

from ..test_attention import tensors, tolerance
from .test_cpu import isa as isa

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")
SHARES = (TailShares(0.3, -0.2, 0.4, 0.7), TailShares(pages=1.0), TailShares(weighted=1.0), TailShares(0.0, 0.5, 0.5))
SELECTORS = ["topn", "lowbit", "paged", "paged+lowbit"]


def tails(heads):
    return [SHARES[head % len(SHARES)] for head in range(heads)]


def budgets(heads, keys):
    return [max(1, [1, 3, keys // 4, 2, keys // 2, keys + 9][head % 6]) for head in range(heads)]


def half_a_unit(value):
    """What an fp16 mean of some of these values may be off by: half a unit of 11 bits. Weights of pages sum to 1."""
    return value.float().abs().max().item() * 2.0**-11


def held_to_the_reference(q, k, v, n_keep, dtype=torch.float32, **words):
    fast = cpu_attention(q, k, v, n_keep, scaling=0.2, **words)
    true = reference_attention(q, k, v, n_keep, scaling=0.2, **words)
    assert fast.output.dtype == dtype
    assert torch.equal(fast.kept, true.kept)
    bound = (
        tolerance(v.float()) + half_a_unit(v) + (dtype != torch.float32) * torch.finfo(dtype).eps * true.output.abs()
    )
    assert torch.all((fast.output.double() - true.output).abs() <= bound)
    return fast.output


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (8, 1)])
@pytest.mark.parametrize("keys", [1, 15, 16, 17, 70, 1000])
def test_steps(isa, selector, heads, kv_heads, keys):
    for dim in (64, 80, 128, 40):
        q, k, v = tensors(2, heads, kv_heads, 1, keys, dim)
        held_to_the_reference(q, k, v, budgets(heads, keys), tail=tails(heads), selector=selector)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("extra", [{}, {"sink": torch.linspace(-2, 2, 6)}, {"softcap": 3.0}], ids=str)
def test_padding_sinks_and_caps(isa, selector, extra):
    q, k, v = tensors(4, 6, 2, 1, 97, 64)
    mask = Span((0, 9, 90, 97))
    output = held_to_the_reference(q, k, v, budgets(6, 97), tail=tails(6), selector=selector, mask=mask, **extra)
    assert output[3].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("queries", [1, 20])
def test_half_precision(isa, dtype, selector, queries):
    q, k, v = tensors(2, 6, 2, queries, 70, 64, dtype=dtype)
    held_to_the_reference(q, k, v, budgets(6, 70), dtype, tail=tails(6), selector=selector, mask=Span((0, 5)))


def test_values_of_another_width(isa):
    q, k, _ = tensors(2, 6, 2, 1, 70, 64)
    held_to_the_reference(q, k, tensors(2, 6, 2, 1, 70, 40)[2], budgets(6, 70), tail=tails(6))


@pytest.mark.parametrize("selector", ["topn", "lowbit"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 53), (37, 37), (20, 333)])
def test_prompts(isa, selector, queries, keys):
    for heads, kv_heads, dim in ((2, 2, 64), (6, 2, 80), (8, 1, 128)):
        q, k, v = tensors(2, heads, kv_heads, queries, keys, dim)
        sink = torch.linspace(-2, 2, heads)
        for words in ({}, {"mask": Span((0, 11))}, {"mask": Span((3, 0)), "sink": sink, "softcap": 3.0}):
            held_to_the_reference(q, k, v, budgets(heads, keys), tail=tails(heads), selector=selector, **words)


@pytest.mark.parametrize("queries", [1, 30])
def test_windows_and_masks_are_left_to_torch_or_right(isa, queries):
    q, k, v = tensors(2, 6, 2, queries, 70, 64)
    holes = torch.rand(2, 1, queries, 70, generator=torch.Generator().manual_seed(1)) > 0.3
    for mask in (Span((0, 0), 37), Span((0, 20), 37), holes & Span().mask(queries, 70)):
        held_to_the_reference(q, k, v, budgets(6, 70), tail=tails(6), mask=mask)


@pytest.mark.parametrize("selector", SELECTORS)
def test_nothing_is_read_behind_the_keys(isa, selector):
    q, k, v = tensors(2, 6, 2, 1, 70, 64)
    key, value = (torch.full((2, 2, 100, 64), torch.nan) for _ in range(2))
    key[:, :, :70], value[:, :, :70] = k, v
    words = {"tail": tails(6), "selector": selector, "scaling": 0.1, "mask": Span((0, 9))}
    plain = cpu_attention(q, k, v, budgets(6, 70), **words).output
    assert torch.equal(cpu_attention(q, key[:, :, :70], value[:, :, :70], budgets(6, 70), **words).output, plain)
    # What padding hides neither.
    key[1, :, :9], value[1, :, :9] = torch.nan, torch.nan
    assert torch.equal(cpu_attention(q, key[:, :, :70], value[:, :, :70], budgets(6, 70), **words).output, plain)


def test_what_is_no_number_is_not_hidden(isa):
    q, k, v = tensors(1, 6, 2, 1, 70, 64)
    v[0, 0, 20, 3] = torch.nan
    output = cpu_attention(q, k, v, [2] * 6, tail=[TailShares(pages=1.0)] * 6, scaling=0.1).output
    assert torch.equal(output[0, :, 0].isnan().nonzero(), torch.tensor([[0, 3], [1, 3], [2, 3]]))


def test_heads_whose_kept_tokens_weigh_nothing(isa):
    """The kept mass underflows: where queries are long, the spread of a page that is not read outweighs any logit."""
    q, k, v = tensors(1, 2, 1, 1, 32, 64)
    for tail in (TailShares(weighted=0.5, pages=0.5), TailShares(0.5, 0.0, 100.0, 0.0)):
        found = cpu_attention(q * 50, k, v, [1, 2], tail=[tail] * 2, scaling=1.0, selector="paged").output
        assert found.isfinite().all()


@pytest.mark.parametrize("share", [torch.inf, -torch.inf, torch.nan, 1e38])
def test_shares_that_are_not_finite_stay_with_their_head(isa, share):
    q, k, v = tensors(1, 6, 2, 1, 70, 64)
    wild = [TailShares(share, share, share, share), *tails(6)[1:]]
    words = {"scaling": 0.1, "selector": "lowbit"}
    found = cpu_attention(q, k, v, [5] * 6, tail=wild, **words).output
    assert torch.equal(found[:, 1:], cpu_attention(q, k, v, [5] * 6, tail=tails(6), **words).output[:, 1:])


def test_threads_give_the_same_bits():
    q, k, v = tensors(2, 8, 4, 1, 1000, 64)
    outputs = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        tail = [TailShares(0.0, -0.2, 0.4, 0.7)] * 8  # sums of all values are added up in parts
        outputs.append(cpu_attention(q, k, v, [9] * 8, tail=tail, scaling=0.1).output)
        torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_a_cache_gives_the_bits_of_means_made_at_once():
    """Token by token, cut, and with its rows in another order."""
    q, k, v = tensors(3, 6, 2, 1, 70, 64)
    words = {"tail": tails(6), "scaling": 0.2, "selector": "lowbit"}

    def found(query, key, value):
        return cpu_attention(query, key, value, [5] * 6, **words).output

    layer = GrowingLayer()
    for place in range(70):
        key, value = layer.update(k[:, :, place : place + 1], v[:, :, place : place + 1])
        if place >= PAGE:
            plain = found(q, k[:, :, : place + 1].clone(), v[:, :, : place + 1].clone())
            assert (found(q, key, value) - plain).abs().max() <= tolerance(v)
    held = value._geosparse_index.means
    assert held.means[:, :, :4].equal(ValueMeans((0,) * 3).extend(v).means)
    layer.crop(-9)
    order = torch.tensor([2, 0, 0])
    layer.reorder_cache(order)
    key, value = layer.update(k[order, :, :12] + 1, v[order, :, :12] + 1)
    assert value._geosparse_index.means is held
    at_once = ValueMeans((0,) * 3).extend(value.clone()).means
    found(q, key, value)
    assert held.pages == [73 // PAGE] * 3
    assert held.means[:, :, : 73 // PAGE].equal(at_once)


@pytest.mark.parametrize("queries", [1, 20])
def test_the_kernels_serve_it(monkeypatch, queries):
    monkeypatch.setattr("geosparse.ops.cpu.attend_chunked", None)
    q, k, v = tensors(1, 6, 2, queries, 70, 64)
    remember_index(v, IndexSlot())
    found = cpu_attention(q, k, v, [5] * 6, tail=tails(6), scaling=0.2).output
    slow = chunked_attention(q, k, v, [5] * 6, tail=tails(6), scaling=0.2).output
    assert (found - slow).abs().max() <= tolerance(v) + half_a_unit(v)
    # Means are made where a step reads them, and nowhere else.
    assert (v._geosparse_index.means is not None) == (queries == 1)
    remember_index(v, IndexSlot())
    cpu_attention(q, k, v, [5] * 6, tail=[TailShares(0.1, 0.2, 0.3)] * 6, scaling=0.2)
    assert v._geosparse_index.means is None
