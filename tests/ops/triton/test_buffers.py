"""Buffers of a fixed capacity: their index is the one that KeyIndex builds, and decode goes on from it."""

import pytest
import torch

from geosparse.errors import GeosparseError
from geosparse.ops import KeyIndex, Span, reference_attention
from geosparse.ops.tails import TailShares
from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows
from geosparse.ops.triton.decode import decode, dense, passes_of
from geosparse.ops.value_means import means_of

from .material import DEVICE, needs_kernels, tolerance

pytestmark = needs_kernels
CAPACITY = 90


def grown(dtype, dim, first, prompt, tokens, broken=True):
    """Buffers after a prompt and some tokens, in memory that was full of NaN; and all keys and values."""
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(len(first), 2, tokens, dim, generator=generator) for _ in range(2))
    key = (key * torch.logspace(-1, 1, dim)).to(DEVICE, dtype)
    value = value.to(DEVICE, dtype)
    if broken:
        key[0, 0, 3, 5], key[0, 1, prompt + 3, 6] = torch.inf, torch.nan
    rows = VisibleRows.of(first, [prompt] * len(first), DEVICE)
    buffers = LayerBuffers(rows, CAPACITY, 2, dim, dim, dtype)
    buffers.key.fill_(torch.nan)
    buffers.value.fill_(torch.nan)
    buffers.fill(key[:, :, :prompt], value[:, :, :prompt])
    for place in range(prompt, tokens):
        rows.advance_()
        buffers.append(key[:, :, place : place + 1], value[:, :, place : place + 1])
    return buffers, key, value


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 72), (torch.bfloat16, 64)])
def test_growing_is_building(dtype, dim):
    first = (0, 5)
    buffers, key, value = grown(dtype, dim, first, 40, 60)
    means = means_of(value, first).means
    # torch divides by a number as it likes on a GPU; a code may then fall to the other side of a half.
    index = KeyIndex(first).extend(key)
    for row, pages in enumerate(index.pages):
        for name in ("low", "high", "codes"):
            ours, theirs = getattr(buffers, name)[row, :, :pages], getattr(index, name)[row, :, :pages]
            assert torch.equal(ours, theirs) or (DEVICE.type == "cuda" and name == "codes")
        # Sums in another order may fall to the other side of a half, of fp16.
        apart = (buffers.means[row, :, :pages].float() - means[row, :, :pages].float()).abs()
        assert pages == 3
        assert torch.all(apart <= 2.0**-10 * means[row, :, :pages].float().abs())
        seen = value[row, :, first[row] :].double().sum(1)
        assert (buffers.value_sum[row] - seen).abs().max() <= 1e-9 * float(value.abs().max()) * 60
    assert torch.equal(buffers.key[:, :, :60].nan_to_num(), key.nan_to_num())


@pytest.mark.parametrize(("selector", "tail"), [("lowbit", "centroid"), ("paged", "centroid"), ("paged", "blend50")])
def test_decode_of_a_growing_context(selector, tail):
    buffers, key, value = grown(torch.float32, 64, (0, 30), 46, 49, broken=False)
    query = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    n_keep = [3, 20, 9, 1, 49, 60]
    budgets = torch.tensor([n_keep], dtype=torch.int32, device=DEVICE)
    output, kept = decode(query, buffers.keys, budgets, passes_of(6, tail, selector, DEVICE), 0.1)
    true = reference_attention(
        query[:, :, None], key, value, n_keep, tail=tail, scaling=0.1, selector=selector, mask=Span((0, 30))
    )
    allowed = tolerance(query[:, :, None], key, value, 0.1)
    assert (output - true.output[:, :, 0]).abs().max() <= allowed
    assert torch.equal(kept.sum(0), true.kept)
    plain = reference_attention(
        query[:, :, None], key, value, [60] * 6, tail="drop", scaling=0.1, mask=Span((0, 30))
    ).output[:, :, 0]
    assert (dense(query, buffers.keys, 0.1) - plain).abs().max() <= allowed


@pytest.mark.parametrize("selector", ["lowbit", "paged"])
def test_steps_over_the_borders_of_pages(selector):
    """Mass goes to pages that are complete, and to their tokens one by one in the step before."""
    first, tails = (0, 3), (TailShares(0.3, -0.2, 0.4, 0.7), "renormalize", TailShares(pages=1.0), "drop")
    generator = torch.Generator().manual_seed(2)
    key = torch.randn(2, 2, 36, 32, generator=generator).to(DEVICE)
    value = (3 * torch.randn(2, 2, 36, 32, generator=generator)).round().to(DEVICE)  # fp16 holds their means exactly
    rows = VisibleRows.of(first, [29, 29], DEVICE)
    buffers = LayerBuffers(rows, 40, 2, 32, 32, torch.float32)
    for buffer in (buffers.key, buffers.value, buffers.means):
        buffer.fill_(torch.nan)
    buffers.fill(key[:, :, :29], value[:, :, :29])
    budgets = torch.tensor([[3, 20, 1, 9]], dtype=torch.int32, device=DEVICE)
    passes = passes_of(4, tails, selector, DEVICE)
    for place in range(29, 36):
        rows.advance_()
        buffers.append(key[:, :, place : place + 1], value[:, :, place : place + 1])
        query = torch.randn(2, 4, 32, generator=generator).to(DEVICE)
        output, kept = decode(query, buffers.keys, budgets, passes, 0.1)
        seen = (query[:, :, None], key[:, :, : place + 1], value[:, :, : place + 1])
        rules = {"tail": tails, "scaling": 0.1, "selector": selector, "mask": Span(first)}
        true = reference_attention(*seen, budgets[0].tolist(), **rules)
        assert (output - true.output[:, :, 0]).abs().max() <= tolerance(*seen, 0.1)
        assert torch.equal(kept.sum(0), true.kept)


def test_means_are_those_that_fp16_holds():
    """Beyond its range they are its ends, and what is no number stays none."""
    rows = VisibleRows.of([0], [16], DEVICE)
    buffers = LayerBuffers(rows, 40, 1, 32, 32, torch.float32)
    value = torch.full((1, 1, 32, 32), -1e6, device=DEVICE)
    value[..., 1], value[..., 2] = 1e6, torch.nan
    key = torch.zeros_like(value)
    buffers.fill(key[:, :, :16], value[:, :, :16])
    for place in range(16, 32):
        rows.advance_()
        buffers.append(key[:, :, place : place + 1], value[:, :, place : place + 1])
    for page in buffers.means[0, 0, :2]:
        assert page[:2].tolist() == [-65504, 65504]
        assert page[2].isnan()


def test_full_buffers_are_refused():
    rows = VisibleRows.of([0, 2], [7, 9], DEVICE)
    with pytest.raises(GeosparseError, match="up to 9 tokens, and the buffers hold 8"):
        LayerBuffers(rows, 8, 2, 32, 32, torch.float32)
    layers = [LayerBuffers(rows, capacity, 2, 32, 32, torch.float32) for capacity in (30, 10)]
    rows.advance_()
    for layer in layers:
        layer.append(torch.ones(2, 2, 1, 32, device=DEVICE), torch.ones(2, 2, 1, 32, device=DEVICE))
    with pytest.raises(GeosparseError, match="hold 10 tokens and are full"):
        rows.advance_()
    assert rows.length.tolist() == [8, 10]
    rows.restart_()
    rows.advance_()
    assert rows.length.tolist() == [8, 10]


def test_a_replayed_step_stays_within_the_buffers():
    """A CUDA graph repeats what was done on the device; the number that is kept in Python stays behind."""
    rows = VisibleRows.of([0], [8], DEVICE)
    LayerBuffers(rows, 9, 2, 32, 32, torch.float32)
    for _ in range(3):
        rows._longest = 8
        rows.advance_()
    assert rows.length.tolist() == [9]


@pytest.mark.parametrize(("first", "length"), [([0], [1, 2]), ([-1], [3]), ([4], [3])])
def test_rows_that_are_none_are_refused(first, length):
    with pytest.raises(GeosparseError, match="Expected rows that start at 0 or later"):
        VisibleRows.of(first, length, DEVICE)
