"""Block prefill in Triton against the plain torch one, in the interpreter where there is no GPU."""

import pytest
import torch

from geosparse.ops import AttentionCall, HeadRules, Span, Terms, triton
from geosparse.sparsify import block_prefill

from .material import DEVICE, needs_kernels

pytestmark = needs_kernels


@pytest.mark.parametrize(
    ("groups", "dim", "queries", "keys", "first", "softcap", "sunk"),
    [
        (3, 64, 90, 90, (0, 0), None, False),
        (1, 32, 50, 120, (0, 37), 3.0, False),
        (2, 128, 66, 66, (5, 50), None, True),
    ],
)
def test_equals_the_torch_path(monkeypatch, groups, dim, queries, keys, first, softcap, sunk):
    monkeypatch.setattr(block_prefill, "BLOCK", 16)
    monkeypatch.setattr(block_prefill.triton, "supports", lambda *_: False)
    generator = torch.Generator().manual_seed(0)
    q = 2 * torch.randn(2, 2 * groups, queries, dim, generator=generator).to(DEVICE)
    k, v = (torch.randn(2, 2, keys, dim, generator=generator).to(DEVICE) for _ in range(2))
    n_keep = [3 + 7 * head for head in range(2 * groups)]
    sink = torch.linspace(-1, 1, 2 * groups, device=DEVICE) if sunk else None
    call = AttentionCall(q, k, v, Span(first), None, Terms(dim**-0.5, softcap, sink))
    slow = block_prefill.attend_blocks(call, HeadRules(n_keep, "drop"))
    wanted = [-(-block_prefill.OVERSAMPLE * max(n_keep[h : h + groups]) // 16) for h in range(0, 2 * groups, groups)]
    fast = triton.block_prefill(call, wanted, 16)
    assert torch.equal(fast.kept, slow.kept)
    # Both are fp32: twice the rounding of a logit of this size, and of a sum of at most 120 values.
    allowed = 2 * torch.finfo(torch.float32).eps * (64 + 4 * dim**0.5) * float(v.abs().max())
    assert (fast.output - slow.output).abs().max() <= allowed
