"""Chunked dense attention against the reference, forward and backward."""

import pytest
import torch

from geosparse.hf import dense
from geosparse.hf.dense import decode_dense
from geosparse.ops import Span, causal_mask, cpu, reference_attention


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("kind", ["causal", "bool", "additive"])
def test_equals_the_reference_with_its_gradient(monkeypatch, softcap, with_sink, kind):
    monkeypatch.setattr(dense, "chunk_rows", lambda *shape: 4)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 11, 8, generator=generator) for heads in (6, 2, 2))
    sink = torch.randn(6, generator=generator) if with_sink else None
    seen = causal_mask(11, 11) & (torch.arange(11)[None] > torch.arange(11)[:, None] - 5)
    bias = torch.where(seen, 0.5, torch.finfo(torch.float32).min)
    mask = {"causal": None, "bool": seen, "additive": bias}[kind]
    tensors = [tensor.requires_grad_(True) for tensor in (query, key, value)]
    output = dense.chunked_dense(*tensors, mask, 0.3, softcap, sink)
    added = torch.full((11, 11), 0.5) if kind == "additive" else None
    given = {"mask": None if kind == "causal" else seen, "bias": added}
    terms = {"tail": "drop", "scaling": 0.3, "softcap": softcap, "sink": sink}
    expected = reference_attention(*tensors, [11] * 6, **terms, **given).output
    assert torch.allclose(output.double(), expected, atol=1e-5)
    grads, exact = (torch.autograd.grad(result.square().sum(), tensors) for result in (output, expected))
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(grads, exact, strict=True))
    with torch.no_grad():
        assert torch.equal(dense.chunked_dense(*tensors, mask, 0.3, softcap, sink), output)


def test_a_blind_query_gets_zeros():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 3, 4)
    mask = torch.tensor([[False] * 3, [True] * 3, [True] * 3])[None, None]
    output = dense.chunked_dense(query, key, key, mask, 1.0, None, torch.zeros(2))
    assert output[:, :, 0].abs().max() == 0
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("kind", ["all", "span", "window", "bool", "additive", "by head", "wider"])
def test_single_queries_equal_the_reference_under_any_mask(softcap, with_sink, kind):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 1, 24, generator=generator)
    key, value = (torch.randn(2, 2, 37, 24, generator=generator) for _ in range(2))
    sink = torch.randn(6, generator=generator) if with_sink else None
    seen = torch.rand(2, 1, 1, 37, generator=generator) > 0.4
    mask = {
        "all": None,
        "span": Span((0, 11)),
        "window": Span((3, 0), window=9),
        "bool": seen,
        "additive": torch.where(seen, 0.0, torch.finfo(torch.float32).min),
        "by head": seen.expand(2, 6, 1, 37),
        "wider": torch.cat([seen, seen], dim=-1),
    }[kind]
    with torch.no_grad():
        output = decode_dense(query, key, value, mask, 0.3, softcap, sink)
    taken = cpu.library() is not None and kind not in ("additive", "by head", "wider")
    assert (output is not None) == taken
    if taken:
        given = {"tail": "drop", "scaling": 0.3, "softcap": softcap, "sink": sink, "mask": mask}
        expected = reference_attention(query, key, value, [37] * 6, **given).output
        assert (output - expected).abs().max() <= 1e-5
