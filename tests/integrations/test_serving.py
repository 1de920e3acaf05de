"""Plans as a serving backend takes them: shapes, types, and the words behind the numbers."""

import dataclasses

import torch

import geosparse as gs
from geosparse.integrations.serving import backend_plan
from geosparse.ops import SELECTORS

from ..tiny import tiny_model


def test_arrays_are_per_layer_kv_head_and_query_head():
    model = tiny_model("llama")
    plan = gs.Plan.uniform(model, 7, tail="centroid", reference_length=64)
    layers, heads = plan.n_keep.shape
    kv_heads = plan.model.kv_heads
    n_keep = torch.arange(1, layers * heads + 1).view(layers, heads)
    places = torch.full_like(n_keep, SELECTORS.names.index("lowbit"))
    places[0, 0] = SELECTORS.names.index("topn")
    growth = torch.full((layers, heads), 0.5, dtype=torch.float64)
    plan = dataclasses.replace(plan, n_keep=n_keep, head_selectors=places, growth=growth)
    arrays = backend_plan(plan)
    assert arrays.n_keep.shape == (layers, kv_heads, heads // kv_heads)
    assert torch.equal(arrays.n_keep.flatten(1), n_keep.int())
    assert torch.equal(arrays.group_keep, arrays.n_keep.amax(-1))
    assert arrays.selectors[arrays.selector[0, 0, 0]] == "topn"
    assert arrays.selectors[arrays.selector[-1, -1, -1]] == "lowbit"
    assert {arrays.tails[place] for place in arrays.tail.flatten().tolist()} == {"centroid"}
    assert torch.equal(backend_plan(plan, 256).n_keep.flatten(1), plan.at(256).int())
    assert (backend_plan(plan, 256).n_keep >= arrays.n_keep).all()
