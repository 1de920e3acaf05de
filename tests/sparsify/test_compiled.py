"""torch.compile: no graph breaks in a sparsified model, and the same result."""

import pytest
import torch

import geosparse as gs

from ..tiny import tiny_model, tokens


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_sparsified_model_compiles_into_one_graph(name):
    model, ids = tiny_model(name), tokens(1, 40)
    plan = gs.Plan.uniform(model, 5, tail="centroid")
    with torch.no_grad(), gs.sparsified(model, plan) as receipt:
        eager = model(ids, use_cache=False).logits
        receipt.reset()
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)(ids, use_cache=False).logits
        assert (compiled - eager).abs().max() <= 1e-5
        assert torch.equal(receipt.kept, receipt.planned)
        assert int(receipt.queries[0, 0]) == 40
    torch._dynamo.reset()


def test_where_transformers_stores_the_mask_an_index_is_not_read_and_the_receipt_says_so():
    model, ids = tiny_model("llama"), tokens(1, 40)
    plan = gs.Plan.uniform(model, 5, selector="lowbit")
    with torch.no_grad(), gs.sparsified(model, plan) as receipt:
        torch._dynamo.reset()
        torch.compile(model, backend="eager", fullgraph=True)(ids, use_cache=False)
        assert any("topn, because its mask" in note for note in receipt.notes)
    torch._dynamo.reset()
