"""Decode in Triton against the fp64 reference, in its interpreter where there is no GPU."""

import itertools

import pytest
import torch

from geosparse.ops import SELECTORS, TAILS, Span, reference_attention, triton
from geosparse.ops.triton import triton_attention

from .material import DEVICE, needs_kernels, tensors, tolerance

pytestmark = needs_kernels


def budgets(heads, keys):
    return [max(1, n) for n in itertools.islice(itertools.cycle([3, keys // 2, 1, 17, keys, keys + 9]), heads)]


def check(q, k, v, n_keep, scaling=0.2, **arguments):
    fast = triton_attention(q, k, v, n_keep, scaling=scaling, **arguments)
    true = reference_attention(q, k, v, n_keep, scaling=scaling, **arguments)
    assert torch.equal(fast.kept, true.kept)
    allowed = tolerance(q, k, v, scaling, arguments.get("softcap") is not None)
    assert (fast.output - true.output).abs().max() <= allowed
    return fast


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(
    ("groups", "dim", "keys", "first", "tail"),
    [
        (1, 128, 33, (0, 0), "centroid"),
        (3, 64, 83, (0, 36), "renormalize"),
        (4, 256, 47, (5, 0), "drop"),
        (8, 64, 200, (0, 171), "centroid"),
    ],
)
def test_equals_reference(selector, groups, dim, keys, first, tail):
    q, k, v = tensors(2, 2 * groups, 2, keys, dim)
    check(q, k, v, budgets(2 * groups, keys), scaling=dim**-0.5, tail=tail, selector=selector, mask=Span(first))


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize(
    ("tail", "groups", "keys", "first"),
    [("even", 1, 37, (0, 0)), ("blend25", 3, 83, (0, 36)), ("blend50", 4, 47, (5, 0)), ("blend75", 8, 99, (0, 70))],
)
def test_mass_that_goes_to_the_kept_tokens(selector, tail, groups, keys, first):
    q, k, v = tensors(2, 2 * groups, 2, keys, 32)
    arguments = {"tail": tail, "selector": selector, "mask": Span(first)}
    check(q, k, v, budgets(2 * groups, keys), **arguments)
    check(q, k, v, budgets(2 * groups, keys), sink=torch.linspace(-2, 2, 2 * groups, device=DEVICE), **arguments)


@pytest.mark.parametrize("selector", ["topn", "paged", "paged+lowbit"])
def test_parts_are_put_together(selector):
    q, k, v = tensors(1, 7, 1, 1061, 32, value_dim=24)
    check(q, k, v, [200, 3, 61, 700, 1, 40, 90], tail=TAILS, selector=selector)


@pytest.mark.parametrize("tail", ["centroid", TAILS[1:]])
@pytest.mark.parametrize("extra", ["sink", "softcap", "window", "blind", "short"])
def test_terms_and_rows_that_see_little(extra, tail):
    q, k, v = tensors(2, 6, 2, 70, 64, value_dim=40)
    window = {"mask": Span((0, 60), window=21)}
    blind, short = {"mask": Span((70, 3))}, {"mask": Span((66, 60))}
    arguments = {"sink": {"sink": torch.linspace(-2, 2, 6, device=DEVICE)}, "softcap": {"softcap": 1.5}}
    arguments |= {"window": window, "blind": blind, "short": short}
    for selector in ("topn", "sink_recent") if extra == "window" else ("lowbit", "paged"):
        result = check(q, k, v, budgets(6, 70), tail=tail, selector=selector, **arguments[extra])
        if extra == "blind":
            assert not result.output[0].any()


def test_every_head_its_own_selector_and_tail():
    q, k, v = tensors(1, 10, 2, 75, 64)
    words = [*SELECTORS, *reversed(SELECTORS.names)]
    tails = [TAILS[head % len(TAILS)] for head in range(10)]
    check(q, k, v, budgets(10, 75), tail=tails, selector=words)


def test_budgets_per_row_and_every_token():
    q, k, v = tensors(2, 4, 2, 50, 64)
    rows = torch.tensor([[1, 20, 7, 60], [50, 2, 49, 33]])[..., None]
    check(q, k, v, rows, tail="renormalize", selector="topn")
    all_kept = triton_attention(q, k, v, [50] * 4, tail="drop", scaling=0.1, selector="paged").output
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.1, enable_gqa=True)
    assert (all_kept - dense).abs().max() <= 2 * tolerance(q, k, v, 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    q, k, v = tensors(1, 6, 2, 90, 64, dtype=dtype)
    for selector, tail in (("topn", "centroid"), ("paged+lowbit", "centroid"), ("topn", "even"), ("lowbit", "blend50")):
        arguments = {"tail": tail, "scaling": 0.125, "selector": selector}
        fast = triton_attention(q, k, v, budgets(6, 90), **arguments)
        true = reference_attention(q, k, v, budgets(6, 90), **arguments)
        assert fast.output.dtype == dtype
        error = (fast.output.double() - true.output).abs()
        # Inputs are exact in fp32; on a GPU weights are rounded to the dtype before they meet the values.
        rounded = 0.0 if DEVICE.type == "cpu" else torch.finfo(dtype).eps * float(v.abs().max())
        allowed = torch.finfo(dtype).eps * true.output.abs() + tolerance(q, k, v.float(), 0.125) + rounded
        assert torch.all(error <= allowed)


def test_ties_go_to_the_left():
    k = torch.ones(1, 2, 40, 64, device=DEVICE)
    v = torch.eye(40, 64, device=DEVICE).expand(1, 2, 40, 64).contiguous()
    output = triton_attention(k[:, :, :1], k, v, [7, 40], tail="renormalize", scaling=0.1).output
    assert torch.equal(output[0, 0, 0].nonzero().flatten().cpu(), torch.arange(7))
    assert (output[0, 1, 0, :40] - 1 / 40).abs().max() < 1e-6


def test_nan_scores_are_not_hidden():
    q, k, v = tensors(1, 2, 1, 64, 64)
    q[0, 0] = torch.nan
    output = triton_attention(q, k, v, [4, 4], tail="centroid", scaling=1.0).output
    assert torch.isnan(output[0, 0]).any()
    assert torch.isfinite(output[0, 1]).all()


def test_what_is_supported():
    q, k, v = tensors(1, 2, 1, 8, 64)
    assert triton.supports(q, k, v, None)
    assert not triton.supports(q, k, v, torch.zeros(1))
    assert not triton.supports(q.double(), k.double(), v.double(), None)
    assert not triton.supports(q.clone().requires_grad_(), k, v, None)
    wide = torch.zeros(1, 1, 1, 512, device=DEVICE)
    assert not triton.supports(wide, wide, wide, None)


def test_holes_shared_selections_and_several_queries_take_the_torch_path():
    q, k, v = tensors(1, 4, 2, 30, 64)
    holes = torch.rand(1, 1, 1, 30, generator=torch.Generator().manual_seed(1)).to(DEVICE) > 0.3
    check(q, k, v, [5, 9, 30, 2], tail="centroid", mask=holes)
    check(q, k, v, [5] * 4, tail="centroid", share_kv=True)
    check(q.expand(1, 4, 7, 64), k, v, [5, 9, 30, 2], tail="drop")
