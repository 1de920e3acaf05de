"""Tails with shares of their own in the kernels: mass that goes to pages, and to kept tokens by their weights."""

import pytest
import torch

from geosparse.ops import SELECTORS, Span, reference_attention
from geosparse.ops.key_index import PAGE
from geosparse.ops.tails import TailShares
from geosparse.ops.triton import triton_attention

from .material import DEVICE, needs_kernels, poisoned, tensors, tolerance

pytestmark = needs_kernels
ALL = TailShares(0.3, -0.2, 0.4, 0.7)
SHARES = (ALL, TailShares(pages=1.0), "renormalize", TailShares(-0.5, 0.0, 1.5, 0.0), TailShares(kept=1.0, pages=-1.0))
BUDGETS = (3, 17, 1, 40, 200)


def of(rules, heads):
    return [rules[head % len(rules)] for head in range(heads)]


def whole(batch, heads, kv_heads, keys, dim, queries=1, value_dim=None, dtype=torch.float32):
    """Queries, keys and values that are small whole numbers: fp16 holds the mean of any page of them as it is."""
    q, k, v = tensors(batch, heads, kv_heads, keys, dim, value_dim=value_dim, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    if queries > 1:
        q = torch.randn(batch, heads, queries, dim, generator=generator).to(DEVICE, dtype)
    return q, k, poisoned((3 * torch.randn(v.shape, generator=generator)).round().to(DEVICE, dtype))


def check(q, k, v, selector="topn", tail=SHARES, budgets=BUDGETS, **arguments):
    heads = q.shape[1]
    rules = {"selector": selector, "tail": of(tail, heads), "scaling": 0.2} | arguments
    fast = triton_attention(q, k, v, of(budgets, heads), **rules)
    true = reference_attention(q, k, v, of(budgets, heads), **rules)
    assert torch.equal(fast.kept, true.kept)
    allowed = tolerance(q, k, v.float(), rules["scaling"], "softcap" in arguments)
    if q.dtype != torch.float32:
        # Results are rounded once; on a GPU weights too, before they meet the values.
        rounded = 0.0 if DEVICE.type == "cpu" else torch.finfo(q.dtype).eps * float(v.abs().max())
        allowed = allowed + torch.finfo(q.dtype).eps * true.output.abs() + rounded
    assert torch.all((fast.output.double() - true.output).abs() <= allowed)
    return fast.output


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(
    ("groups", "dim", "value_dim", "keys", "first", "sunk"),
    [
        (1, 32, 32, 33, (0, 0), False),
        (3, 40, 24, 83, (0, 36), True),
        (8, 32, 32, 112, (5, 104), False),
        (2, 32, 72, 47, (40, 47), True),
    ],
)
def test_decode_gives_to_pages_and_by_weight(selector, groups, dim, value_dim, keys, first, sunk):
    q, k, v = whole(2, 2 * groups, 2, keys, dim, value_dim=value_dim)
    sink = torch.linspace(-2, 2, 2 * groups, device=DEVICE) if sunk else None
    check(q, k, v, selector, mask=Span(first), sink=sink)


@pytest.mark.parametrize("selector", ["lowbit", "paged", "paged+lowbit", "sink_recent"])
def test_programs_share_many_pages(selector):
    q, k, v = whole(1, 5, 1, 70 * PAGE + 5, 32)
    check(q, k, v, selector, budgets=(200, 3, 61, 700, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("selector", "queries"), [("topn", 1), ("paged+lowbit", 1), ("topn", 21)])
def test_half_precision(dtype, selector, queries):
    check(*whole(1, 6, 2, 90, 64, queries, dtype=dtype), selector)


def test_groups_without_a_share_for_pages():
    q, k, v = whole(1, 6, 2, 50, 32)
    check(q, k, v, tail=("renormalize", "drop", "blend50", ALL, "renormalize", "centroid"))


def test_heads_with_selectors_and_shares_of_their_own():
    q, k, v = whole(1, 10, 2, 75, 32)
    check(q, k, v, [*SELECTORS, *reversed(SELECTORS.names)])


def test_budgets_per_row_of_first_and_last_tokens():
    q, k, v = whole(2, 4, 2, 60, 32)
    rows = torch.tensor([[1, 20, 7, 60], [50, 2, 49, 33]])[..., None]
    tails = [ALL, TailShares(pages=1.0), ALL, ALL]
    for selector in ("sink_recent", "topn"):
        rules = {"tail": tails, "scaling": 0.2, "selector": selector}
        fast, true = (path(q, k, v, rows, **rules) for path in (triton_attention, reference_attention))
        assert (fast.output - true.output).abs().max() <= tolerance(q, k, v, 0.2)


@pytest.mark.parametrize("queries", [1, 20])
def test_windows_take_the_torch_path(queries):
    """Pages slide with a window, and no means of such pages are kept."""
    q, k, v = whole(2, 4, 2, 60, 32, queries)
    check(q, k, v, mask=Span((0, 9), window=35))
    check(q, k, v, mask=Span((0, 9), window=35), tail=(TailShares(0.3, -0.2, 0.4),))


def test_kept_tokens_of_hardly_any_weight_share_what_is_missing():
    """By weight they get a half of it, though their own weight is less than fp32 holds."""
    q, k, v = whole(1, 2, 1, 40, 32)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 0], k[:, :, -2:, 0] = 1.0, -1000.0
    output = check(q, k, v, "sink_recent", (TailShares(weighted=0.5),), budgets=(1,))
    assert output[0, 0, 0].equal(0.5 * v[0, 0, -1])


@pytest.mark.parametrize(
    ("selector", "groups", "queries", "keys", "first", "terms"),
    [
        ("topn", 1, 70, 70, (0, 0), {}),
        ("topn", 5, 19, 101, (0, 90), {"softcap": 1.5}),
        ("lowbit", 3, 35, 131, (0, 77), {}),
        ("lowbit", 5, 5, 83, (70, 83), {"sink": True}),
        ("topn", 5, 33, 66, (5, 50), {"sink": True}),
    ],
)
def test_several_queries(selector, groups, queries, keys, first, terms):
    q, k, v = whole(2, 2 * groups, 2, keys, 32, queries, value_dim=40)
    if "sink" in terms:
        terms = {"sink": torch.linspace(-2, 2, 2 * groups, device=DEVICE)}
    check(q, k, v, selector, mask=Span(first), **terms)
