"""Prefill by exact and by coded scores against the fp64 reference, in triton's interpreter where there is no GPU."""

import pytest
import torch

from geosparse.ops import TAILS, Span, reference_attention
from geosparse.ops.call import as_function
from geosparse.ops.key_index import index_of
from geosparse.ops.triton.exact import exact_prefill

from .material import DEVICE, needs_kernels, poisoned, tolerance

pytestmark = needs_kernels


def tensors(groups, dim, queries, keys, value_dim=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(2, 2 * groups, queries, dim, generator=generator).to(DEVICE)
    k, v = (torch.randn(2, 2, keys, width, generator=generator).to(DEVICE) for width in (dim, value_dim or dim))
    return q, poisoned(k), poisoned(v)


def check(q, k, v, n_keep, first=(0, 0), selector="topn", **arguments):
    arguments = {"scaling": q.shape[-1] ** -0.5, "tail": "renormalize"} | arguments
    terms = {name: term for name, term in arguments.items() if name not in ("room", "rows")}
    if selector == "lowbit":
        arguments["coded"] = index_of(k, first).decoded(k.shape[2], k.shape[3])
    fast = as_function(exact_prefill, "exact")(
        q, k, v, n_keep, mask=Span(first), **{"room": 16, "rows": 16} | arguments
    )
    true = reference_attention(q, k, v, n_keep, mask=Span(first), selector=selector, **terms)
    assert torch.equal(fast.kept, true.kept)
    allowed = tolerance(q, k, v, arguments["scaling"], arguments.get("softcap") is not None)
    assert (fast.output - true.output).abs().max() <= allowed


@pytest.mark.parametrize(
    ("groups", "dim", "queries", "keys", "first", "tail"),
    [
        (1, 128, 70, 70, (0, 0), "centroid"),
        (3, 64, 35, 150, (0, 77), "drop"),
        (4, 256, 20, 90, (5, 0), "renormalize"),
        (8, 64, 17, 133, (0, 127), "centroid"),
        (1, 128, 35, 70, (0, 0), "even"),
        (3, 64, 19, 101, (0, 90), "blend25"),
        (4, 32, 17, 83, (70, 0), "blend75"),
    ],
)
def test_equals_reference(groups, dim, queries, keys, first, tail):
    n_keep = [(3, keys // 2, 1, 17, keys, keys + 9)[head % 6] for head in range(2 * groups)]
    check(*tensors(groups, dim, queries, keys), n_keep, first, tail=tail)


@pytest.mark.parametrize(
    ("groups", "dim", "queries", "keys", "first", "tail"),
    [
        (3, 64, 35, 150, (0, 77), "blend50"),
        (1, 40, 50, 50, (0, 45), "renormalize"),
        (4, 128, 17, 83, (70, 3), "centroid"),
        (2, 64, 5, 140, (0, 139), "even"),
    ],
)
def test_codes_equal_reference(groups, dim, queries, keys, first, tail):
    n_keep = [(3, keys // 2, 1, 17, keys, keys + 9)[head % 6] for head in range(2 * groups)]
    check(*tensors(groups, dim, queries, keys), n_keep, first, "lowbit", tail=tail)


@pytest.mark.parametrize("extra", ["sink", "softcap", "tails", "growing", "room", "blind", "blended"])
def test_terms(extra):
    q, k, v = tensors(3, 64, 40, 100, value_dim=40)
    growing = torch.arange(1, 41)[None, None] + torch.arange(6)[None, :, None]
    arguments = {
        "sink": {"sink": torch.linspace(-2, 2, 6, device=DEVICE), "tail": "centroid"},
        "softcap": {"softcap": 1.5, "tail": "drop"},
        "tails": {"tail": TAILS[:6]},
        "growing": {},
        "room": {"room": 128, "rows": 32},
        "blind": {"first": (0, 80), "tail": "centroid"},
        "blended": {"first": (0, 80), "tail": TAILS[1:], "sink": torch.linspace(-2, 2, 6, device=DEVICE)},
    }[extra]
    check(q, k, v, growing if extra == "growing" else [2, 9, 30, 31, 64, 90], **arguments)


def test_codes_with_all_terms():
    q, k, v = tensors(3, 64, 40, 100, value_dim=40)
    growing = torch.arange(1, 41)[None, None] + torch.arange(6)[None, :, None]
    sink = torch.linspace(-2, 2, 6, device=DEVICE)
    check(q, k, v, growing, (0, 80), "lowbit", tail=TAILS[1:], sink=sink, softcap=1.5)


def test_scores_that_guesses_do_not_fit():
    """Equal scores, a few values only, sizes over many orders: ties go to the smaller index, and the passes end."""
    q, k, v = tensors(1, 64, 40, 140)
    q, k = torch.zeros_like(q), k.clone()
    q[..., 0] = 1
    generator = torch.Generator().manual_seed(1)
    k[0, 0, :, 0] = 0
    k[0, 1, :, 0] = torch.randint(0, 3, (140,), generator=generator).to(DEVICE)
    k[1, 0, :, 0] = 10.0 ** torch.randint(-30, 2, (140,), generator=generator).to(DEVICE)
    k[1, 1, :, 0] = torch.arange(140, device=DEVICE).sub(70).sign() * 1e-38
    check(q, k, v, [5, 60], tail=["centroid", "blend50"], scaling=1.0)
    check(q, k, v, [5, 60], selector="lowbit", tail=["centroid", "blend50"], scaling=1.0)


def test_few_blocks_at_a_time(monkeypatch):
    q, k, v = tensors(1, 64, 100, 100)
    monkeypatch.setattr("geosparse.ops.triton.exact.SCRATCH_BYTES", 3 * 4 * 16 * 16 * 4)
    check(q, k, v, [7, 33])
