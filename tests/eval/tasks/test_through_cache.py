"""Scoring through the cache: several tokens per call equal one by one."""

from __future__ import annotations

import pytest
import torch

from eval.tasks.through_cache import token_losses
from geosparse.artifacts.plan import Plan
from geosparse.sparsify.patch import sparsified
from tests.tiny import tiny_model, tokens


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("selector", ["topn", "lowbit"])
def test_several_tokens_per_call_equal_one_by_one(kind: str, selector: str) -> None:
    """What the decode protocol rests on, behind a prompt that was read densely."""
    model, ids = tiny_model(kind), tokens(1, 120)
    plan = Plan.uniform(model, 12, "centroid", selector=selector)
    found = []
    for chunk in (1, 7, 32):
        with torch.no_grad():
            cache = model(ids[:, :80], use_cache=True).past_key_values
        with sparsified(model, plan):
            found.append(token_losses(model, ids[:, 80:], cache, chunk, 80)[0])
    # fp32 sums of some hundred terms in another order; a wrong token shows in the first digits.
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-4)
