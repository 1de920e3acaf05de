"""A sparsified model that decodes through the kernels gives what it gives through plain torch."""

import pytest
import torch

import geosparse as gs
from geosparse.ops.dispatch import SERVING_PATHS
from geosparse.sparsify import attention
from tests.tiny import tiny_model, tokens

from .material import DEVICE, needs_kernels

pytestmark = needs_kernels


@pytest.mark.parametrize(("kind", "selector"), [("llama", "lowbit"), ("gemma2", "paged")])
def test_decoding_step_by_step(monkeypatch, kind, selector):
    model = tiny_model(kind).to(DEVICE)
    ids = tokens(2, 39).to(DEVICE)
    seen = torch.ones_like(ids)
    seen[1, :5] = 0
    plan = gs.Plan.uniform(model, 7, selector=selector, tail="centroid")

    def logits(path):
        monkeypatch.setitem(attention.SERVERS, "selected", SERVING_PATHS[path])
        with torch.no_grad(), gs.sparsified(model, plan) as receipt:
            cache = model(ids[:, :37], attention_mask=seen[:, :37], use_cache=True).past_key_values
            steps = [
                model(
                    ids[:, place : place + 1],
                    attention_mask=seen[:, : place + 1],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                for place in range(37, 39)
            ]
        return torch.cat(steps, dim=1), receipt.kept

    ours, kept = logits("triton")
    plain, same = logits("torch")
    assert torch.equal(kept, same)
    # Two layers of fp32 in another order of summation.
    assert (ours - plain).abs().max() <= 2000 * torch.finfo(torch.float32).eps * plain.abs().max()
