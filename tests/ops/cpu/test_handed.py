"""What kernels cannot read is refused by name before it is read; odd tensors that they can read are read right."""

import re
import sys

import pytest
import torch

from geosparse.errors import GeosparseError
from geosparse.ops import (
    SELECTORS,
    AttentionCall,
    IndexSlot,
    KeyIndex,
    Span,
    Terms,
    cpu,
    cpu_attention,
    reference_attention,
    remember_index,
    remember_value_sum,
)
from geosparse.ops.cpu import product, rms_norm
from geosparse.ops.cpu.bandwidth import WIDTH, read_rows
from geosparse.ops.cpu.decode import decode
from geosparse.ops.cpu.handed import KernelRules
from geosparse.ops.cpu.linear import _by_python, _serves
from geosparse.ops.cpu.prefill import prefill
from geosparse.ops.cpu.separation import separate
from geosparse.ops.value_means import ValueMeans

from ..test_attention import tensors, tolerance

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")
HEADS, KV_HEADS, KEYS, DIM = 6, 2, 50, 64


class Wrapped(torch.Tensor):
    """A subclass, as quantised weights are."""


def numbers(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


def given(batch, queries):
    """The arguments of `decode` and `prefill` by name."""
    query, key, value = tensors(batch, HEADS, KV_HEADS, queries, KEYS, DIM)
    budgets = torch.full((1, HEADS), 7) if queries == 1 else torch.full((1, HEADS, 1), 7)
    tails, selectors = torch.tensor([[1.0, 0, 0, 0]] * HEADS), torch.zeros(HEADS, dtype=torch.int64)
    words = {"query": query, "key": key, "value": value, "budgets": budgets, "tails": tails, "selectors": selectors}
    return words | {"scaling": 0.1, "mask": Span(), "softcap": None, "sink": None, "index": None, "means": None}


def indexed(words, **changes):
    """The arguments with an index of the keys, changed."""
    index = KeyIndex((0,) * len(words["key"])).extend(words["key"])
    for name, change in changes.items():
        setattr(index, name, change(getattr(index, name)))
    return words | {"index": index, "selectors": torch.ones(HEADS, dtype=torch.int64)}


def paged(words, change=lambda means: means):
    """The arguments with tails that give to pages, and their mean values, changed."""
    means = ValueMeans((0,) * len(words["key"])).extend(words["value"]).means
    return words | {"tails": torch.tensor([[0.1, 0.2, 0.3, 0.4]] * HEADS), "means": change(means)}


def freed(tensor):
    """A tensor whose memory was given back, as sharded training does with weights."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def summed(words, total):
    """The arguments with a sum of the values that is remembered."""
    words["value"] = words["value"].clone()
    remember_value_sum(words["value"], total)
    return words


BAD = {
    "budgets of int32": lambda w: w | {"budgets": w["budgets"].int()},
    "budgets in floats": lambda w: w | {"budgets": w["budgets"].float()},
    "budgets on meta": lambda w: w | {"budgets": w["budgets"].to("meta")},
    "a budget too few": lambda w: w | {"budgets": w["budgets"][:, 1:].contiguous()},
    "a budget of 0": lambda w: w | {"budgets": torch.zeros_like(w["budgets"])},
    "a budget below 0": lambda w: w | {"budgets": -w["budgets"]},
    "budgets of other rows": lambda w: w | {"budgets": w["budgets"].repeat(5, *[1] * (w["budgets"].dim() - 1))},
    "a tail too few": lambda w: w | {"tails": w["tails"][1:].clone()},
    "a share too few": lambda w: w | {"tails": w["tails"][:, :3].contiguous()},
    "a share too many": lambda w: w | {"tails": w["tails"].repeat(1, 2)[:, :5].contiguous()},
    "one share for all": lambda w: w | {"tails": w["tails"][0].clone()},
    "tails by name": lambda w: w | {"tails": w["tails"].long()},
    "tails of fp64": lambda w: w | {"tails": w["tails"].double()},
    "tails of bf16": lambda w: w | {"tails": w["tails"].bfloat16()},
    "tails on meta": lambda w: w | {"tails": w["tails"].to("meta")},
    "tails of a subclass": lambda w: w | {"tails": w["tails"].as_subclass(Wrapped)},
    "freed tails": lambda w: w | {"tails": freed(w["tails"])},
    "tails by share": lambda w: w | {"tails": w["tails"].T.contiguous().T},
    "the same tail everywhere": lambda w: w | {"tails": w["tails"][:1].expand(HEADS, 4)},
    "pages behind a mask": lambda w: paged(w) | {"mask": torch.ones(1, 1, w["query"].shape[2], KEYS, dtype=torch.bool)},
    "a selector too few": lambda w: w | {"selectors": w["selectors"][1:].clone()},
    "no such selector": lambda w: w | {"selectors": w["selectors"] + 17},
    "every second selector": lambda w: w | {"selectors": w["selectors"].repeat_interleave(2)[::2]},
    "sinks of fp64": lambda w: w | {"sink": torch.zeros(HEADS, dtype=torch.float64)},
    "a sink too few": lambda w: w | {"sink": torch.zeros(HEADS - 1)},
    "sinks on meta": lambda w: w | {"sink": torch.zeros(HEADS, device="meta")},
    "keys of other heads": lambda w: w | {"key": w["key"][:, :1]},
    "fewer keys than values": lambda w: w | {"key": w["key"][:, :, 1:]},
    "more keys than values": lambda w: w | {"value": w["value"][:, :, 1:]},
    "keys of another width": lambda w: w | {"key": w["key"][..., :40]},
    "keys of other rows": lambda w: w | {"key": w["key"].repeat(4, 1, 1, 1)},
    "keys on meta": lambda w: w | {"key": w["key"].to("meta")},
    "values on meta": lambda w: w | {"value": w["value"].to("meta")},
    "queries on meta": lambda w: w | {"query": w["query"].to("meta")},
    "queries of a subclass": lambda w: w | {"query": w["query"].as_subclass(Wrapped)},
    "keys of a subclass": lambda w: w | {"key": w["key"].as_subclass(Wrapped)},
    "freed keys": lambda w: w | {"key": freed(w["key"])},
    "freed values": lambda w: w | {"value": freed(w["value"])},
    "heads that are no multiple": lambda w: (
        w | {"key": w["key"].repeat(1, 2, 1, 1), "value": w["value"].repeat(1, 2, 1, 1)}
    ),
    "a mask of other keys": lambda w: w | {"mask": torch.ones(1, 1, w["query"].shape[2], KEYS + 1, dtype=torch.bool)},
    "a mask of fp32": lambda w: w | {"mask": torch.ones(1, 1, w["query"].shape[2], KEYS)},
    "a mask of other rows": lambda w: w | {"mask": torch.ones(7, 1, w["query"].shape[2], KEYS, dtype=torch.bool)},
    "starts of other rows": lambda w: w | {"mask": Span((0, 1, 2, 3, 4))},
    "a start below 0": lambda w: w | {"mask": Span((-9,))},
    "a window of 0": lambda w: w | {"mask": Span((0,), 0)},
}
DECODING = {
    "no means": lambda w: paged(w, lambda means: None),
    "no means of pages with a NaN share": lambda w: w | {"tails": torch.full((HEADS, 4), torch.nan)},
    "means of fp32": lambda w: paged(w, lambda means: means.float()),
    "means of bf16": lambda w: paged(w, lambda means: means.bfloat16()),
    "means of int16": lambda w: paged(w, lambda means: means.short()),
    "a mean too few": lambda w: paged(w, lambda means: means[:, :, 1:]),
    "a channel too few": lambda w: paged(w, lambda means: means[..., 1:]),
    "a channel too many": lambda w: paged(w, lambda means: means.repeat(1, 1, 1, 2)[..., : DIM + 1]),
    "means of other heads": lambda w: paged(w, lambda means: means[:, 1:]),
    "means of other rows": lambda w: paged(w, lambda means: means.repeat(5, 1, 1, 1)),
    "means of pages only": lambda w: paged(w, lambda means: means[0, 0]),
    "means of nothing": lambda w: paged(w, lambda means: means.new_empty(0)),
    "means with gaps": lambda w: paged(w, lambda means: means.repeat_interleave(2, -1)[..., ::2]),
    "means on meta": lambda w: paged(w, lambda means: means.to("meta")),
    "means of a subclass": lambda w: paged(w, lambda means: means.as_subclass(Wrapped)),
    "freed means": lambda w: paged(w, freed),
    "a sum of another shape": lambda w: summed(w, torch.zeros(1, KV_HEADS, DIM - 1, dtype=torch.float64)),
    "a sum of other rows": lambda w: summed(w, torch.zeros(9, KV_HEADS, DIM, dtype=torch.float64)),
    "a sum of fp32": lambda w: summed(w, torch.zeros(len(w["query"]), KV_HEADS, DIM)),
    "a sum on meta": lambda w: summed(
        w, torch.zeros(len(w["query"]), KV_HEADS, DIM, dtype=torch.float64, device="meta")
    ),
    "heads that are too wide": lambda w: (
        w
        | dict.fromkeys(["query"], torch.zeros(len(w["query"]), HEADS, 1, 600))
        | dict.fromkeys(["key", "value"], torch.zeros(len(w["query"]), KV_HEADS, KEYS, 600))
    ),
    "bounds of other heads": lambda w: indexed(w, low=lambda part: part[:, :1], high=lambda part: part[:, :1]),
    "codes of other heads": lambda w: indexed(w, codes=lambda part: part[:, :1].clone()),
    "codes of 16 bits": lambda w: indexed(w, codes=lambda part: part.short()),
    "bounds of fp32": lambda w: indexed(w, low=lambda part: part.float()),
    "upper bounds elsewhere": lambda w: indexed(w, high=lambda part: part.transpose(1, 2).contiguous().transpose(1, 2)),
    "fewer pages than keys": lambda w: indexed(
        w, low=lambda p: p[:, :, :2], high=lambda p: p[:, :, :2], codes=lambda p: p[:, :, :2]
    ),
    "channels apart": lambda w: indexed(w, low=lambda p: p.repeat_interleave(2, -1)[..., ::2]),
    "12 bits": lambda w: indexed(w, bits=lambda bits: 12),
    "an index on meta": lambda w: indexed(w, low=lambda part: part.to("meta")),
}


def parts(query, key, value, budgets, tails, selectors, scaling, mask, softcap, sink, index, means):
    """What `decode` and `prefill` take of these words."""
    call = AttentionCall(query, key, value, mask, None, Terms(scaling, softcap, sink))
    first = mask.starts(len(query)) if isinstance(mask, Span) else ()
    return call, KernelRules(budgets, tails, selectors, first), index, means


def step(**words):
    return decode(*parts(**words))


def prompt(**words):
    call, rules, index, _ = parts(**words)
    return prefill(call, rules, None if index is None else index.decoded(*call.key.shape[2:]))


@pytest.fixture(params=[True, False], ids=["fast_call.c", "ctypes"])
def _ways(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(sys.modules["geosparse.ops.cpu.decode"], "direct", lambda: None)


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("what", [*BAD, *DECODING])
def test_a_wrong_step_is_refused_by_name(what, batch):
    step(**given(batch, 1))
    with pytest.raises(GeosparseError) as refused:
        step(**(BAD | DECODING)[what](given(batch, 1)))
    assert re.fullmatch(r"[^\n]+\.", str(refused.value))


@pytest.mark.parametrize("queries", [5, 20])
@pytest.mark.parametrize("what", BAD)
def test_a_wrong_prefill_is_refused_by_name(what, queries):
    prompt(**given(2, queries))
    with pytest.raises(GeosparseError) as refused:
        prompt(**BAD[what](given(2, queries)))
    assert re.fullmatch(r"[^\n]+\.", str(refused.value))


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("batch", [1, 2])
def test_means_in_any_layout_are_read(batch):
    """Heads behind pages, room to spare that is NaN, one row for all."""
    words = paged(given(batch, 1))
    plain = step(**words).output
    for change in (
        lambda means: means.transpose(1, 2).contiguous().transpose(1, 2),
        lambda means: torch.cat([means, torch.full_like(means, torch.nan)], 2),
        lambda means: torch.cat([means, torch.full_like(means, torch.nan)], 3)[..., :DIM],
    ):
        assert torch.equal(step(**words | {"means": change(words["means"])}).output, plain)
    first = words | {name: words[name][:1].expand(batch, -1, -1, -1) for name in ("query", "key", "value", "means")}
    assert torch.equal(step(**first).output, plain[:1].expand(batch, -1, -1, -1))


def test_more_queries_than_keys_are_refused():
    q, k, v = tensors(1, 6, 2, 20, 12, 64)
    with pytest.raises(GeosparseError, match="at most 12, found 20"):
        cpu_attention(q, k, v, [3] * 6, tail="drop", scaling=0.1)


@pytest.mark.parametrize("n_keep", [torch.full((1, 6, 1), 7.5), torch.ones(1, 6, 1, dtype=torch.bool)])
def test_budgets_that_are_no_numbers_of_tokens_are_refused(n_keep):
    q, k, v = tensors(1, 6, 2, 1, 50, 64)
    with pytest.raises(GeosparseError, match="whole numbers"):
        cpu_attention(q, k, v, n_keep, tail="drop", scaling=0.1)


def odd(tensor, kind):
    """The same numbers in another layout."""
    if kind == "far apart":
        return tensor.new_full((*tensor.shape[:2], 40 * tensor.shape[2], tensor.shape[3]), torch.nan)[:, :, ::40].copy_(
            tensor
        )
    if kind == "turned":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "every second":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    return tensor.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("kind", ["far apart", "turned", "every second", "heads last"])
@pytest.mark.parametrize("queries", [1, 5, 20])
@pytest.mark.parametrize("batch", [1, 2])
def test_any_layout_is_read(kind, queries, batch):
    plain = tensors(batch, 6, 2, queries, 50, 64)
    n_keep = [1, 3, 17, 40, 25, 59]
    words = {"tail": "blend50", "scaling": 0.1}
    true = reference_attention(*plain, n_keep, **words)
    for place in range(3):
        parts = [odd(part, kind) if place == i else part for i, part in enumerate(plain)]
        found = cpu_attention(*parts, n_keep, **words)
        assert torch.equal(found.kept, true.kept)
        assert (found.output - true.output).abs().max() <= tolerance(plain[2])
    expanded = [part[:1].expand(batch, *part.shape[1:]) for part in plain]
    true = reference_attention(*expanded, n_keep, **words)
    assert (cpu_attention(*expanded, n_keep, **words).output - true.output).abs().max() <= tolerance(plain[2])


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("queries", [1, 20])
def test_nothing_to_see_and_nobody_to_see_it(queries):
    for batch, keys in ((0, 30), (1, 0), (2, 0), (0, 0)):
        q, k, v = tensors(batch, 6, 2, queries, keys, 64)
        found = cpu_attention(q, k, v, [3] * 6, tail="centroid", scaling=0.1)
        assert found.output.shape == q.shape
        assert not found.output.any()
        assert torch.equal(found.kept, torch.zeros(6, dtype=torch.int64))


@pytest.mark.usefixtures("_ways")
def test_the_largest_budget_is_all():
    q, k, v = tensors(2, 6, 2, 1, 50, 64)
    n_keep = torch.full((1, 6, 1), torch.iinfo(torch.int64).max)
    for selector in SELECTORS:
        remember_index(k, IndexSlot())
        found = cpu_attention(q, k, v, n_keep, tail="renormalize", scaling=0.1, selector=selector)
        true = reference_attention(q, k, v, [50] * 6, tail="renormalize", scaling=0.1)
        assert (found.output - true.output).abs().max() <= tolerance(v)


def test_products_and_norms_of_what_is_not_plain_stay_with_torch():
    (rows, weight), bias = (torch.randn(shape) for shape in ((2, 33), (21, 33))), torch.randn(21)
    with torch.no_grad():
        assert product(rows, weight, bias) is not None
        for bad in (
            weight.as_subclass(Wrapped),
            freed(weight),
            weight.to("meta"),
            weight[0],
            weight[:0],
            weight.double(),
        ):
            assert product(rows, bad, None) is None
            assert not _serves(rows, bad, None)
        for bad in (bias.as_subclass(Wrapped), freed(bias), bias.to("meta"), bias[1:], bias.double()):
            assert product(rows, weight, bad) is None
            assert not _serves(rows, weight, bad)
        assert product(freed(rows), weight) is None
        assert torch.equal(_by_python(rows, weight, bias), product(rows, weight, bias))
        gains = torch.ones(33)
        for bad in (gains.as_subclass(Wrapped), freed(gains), gains.to("meta"), gains[1:]):
            assert rms_norm(rows, bad, 1e-6, "once") is None
        assert rms_norm(freed(rows), gains, 1e-6, "once") is None


def test_places_outside_of_a_table_are_refused():
    table = torch.ones(4, WIDTH)
    for rows in (numbers(0, 4), numbers(-1), numbers(2**62)):
        with pytest.raises(GeosparseError, match="outside"):
            read_rows(table, rows)
    parts = [torch.rand(2, 9) for _ in range(3)]
    for picked in (numbers([0, 9], [0, 1]), numbers([0, -1], [0, 1]), numbers([0, 2**62], [0, 1])):
        with pytest.raises(GeosparseError, match="outside"):
            separate(*parts, torch.rand(2, 1), picked, True, 1e-6, 1e-6)
    for change in ({0: parts[0].double()}, {1: parts[1][:, 1:]}, {3: torch.rand(3, 1)}, {4: numbers([0], [1]).int()}):
        call = [*parts, torch.rand(2, 1), numbers([0, 1], [2, 3])]
        with pytest.raises(GeosparseError):
            separate(*[change.get(place, part) for place, part in enumerate(call)], True, 1e-6, 1e-6)
