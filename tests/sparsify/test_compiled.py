"""torch.compile: no graph breaks in a sparsified model, and the same result."""

import pytest
import torch

import geosparse as gs
from geosparse.hf.call import call_of
from geosparse.ops import Budgets, HeadRules, Terms, causal_mask, reference_attention
from geosparse.sparsify.attention import SparseAttention
from geosparse.sparsify.receipt import Receipt

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


def test_an_additive_mask_is_read_where_a_gradient_leaves_the_graph(monkeypatch):
    budgets = Budgets(torch.full((1, 4), 3, dtype=torch.int64))
    layer = SparseAttention(0, HeadRules.of(budgets.of(0), "centroid"), Receipt(budgets, ["layer"]))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 9, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))
    seen = causal_mask(9, 9) & (torch.arange(9) != 4)
    bias = torch.randn(1, 1, 9, 9, generator=generator)
    # Longer than the keys, as transformers 4 makes some of them.
    mask = torch.nn.functional.pad(bias.masked_fill(~seen, torch.finfo(torch.float32).min), (0, 3))

    def served():
        call = call_of(query, key, value, mask, Terms(0.3))
        return layer(torch.nn.Identity(), call)

    eager = served()
    true = reference_attention(query, key, value, (3,) * 4, tail="centroid", scaling=0.3, mask=seen, bias=bias).output
    assert (eager - true).abs().max() <= 1e-5
    answers = iter([True, True])  # to the reader of the call and to the layer; what leaves the graph is not compiled
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: next(answers, False))
    assert torch.equal(served(), eager)
