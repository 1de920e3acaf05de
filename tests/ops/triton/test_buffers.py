"""Buffers of a fixed capacity: their index is the one that KeyIndex builds, and decode goes on from it."""

import pytest
import torch

from geosparse.errors import GeosparseError
from geosparse.ops import KeyIndex, Span, reference_attention
from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows
from geosparse.ops.triton.decode import decode, dense, passes_of

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
    # torch divides by a number as it likes on a GPU; a code may then fall to the other side of a half.
    index = KeyIndex(first).extend(key)
    for row, pages in enumerate(index.pages):
        for name in ("low", "high", "codes"):
            ours, theirs = getattr(buffers, name)[row, :, :pages], getattr(index, name)[row, :, :pages]
            assert torch.equal(ours, theirs) or (DEVICE.type == "cuda" and name == "codes")
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
