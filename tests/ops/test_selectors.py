"""Every selector against a plain restatement of its rule, and every path against the reference."""

import itertools
import math

import pytest
import torch

from geosparse.ops import PAGE, PATHS, SELECTORS, TAILS, Span, cpu, reference_attention
from geosparse.ops.budgets import Budgets
from geosparse.ops.key_index import SPREAD, IndexSlot, index_of, remember_index
from geosparse.ops.selectors import SelectorView, choose, fits, needs_index
from geosparse.ops.selectors.paged_lowbit import OVERSAMPLE
from geosparse.ops.selectors.sink_recent import SINKS

from .test_attention import tensors, tolerance

MIXED = "mixed"


SHARE_OF = {"centroid": 1, "even": 0, "blend25": 0.25, "blend50": 0.5, "blend75": 0.75}


def served(selector, heads):
    return list(itertools.islice(itertools.cycle(SELECTORS), heads)) if selector == MIXED else selector


def tails_of(selector):
    names = SELECTORS if selector == MIXED else (selector,)
    return tuple(tail for tail in TAILS if all(fits(name, tail) for name in names))


def budgets(heads, keys):
    return [max(1, n) for n in itertools.islice(itertools.cycle([3, 1, 17, keys // 2, keys, keys + 9]), heads)]


# --- the rules, one query of one head at a time, in Python's own numbers ---


def coded_page(page):
    """Keys `[PAGE, D]` as 4 bits per channel between bounds in fp16 have them."""
    low, high = page.amin(0).half().double(), page.amax(0).half().double()
    step = (high - low) / 15
    code = ((page.double() - low) / step).round().clamp(0, 15)
    return low, high, low + code * step


def rule(selector, query, keys, n, first, place, finish, scaling):
    """Kept tokens, and logits for the others, of `query` `[D]` at `place` over `keys` `[S, D]`."""
    seen = list(range(first, place + 1))
    exact = {key: finish(float(query.double() @ keys[key].double())) for key in seen}
    pages = [list(range(start, start + PAGE)) for start in range(first, place + 2 - PAGE, PAGE)]
    codes = [coded_page(keys[page]) for page in pages]
    coarse = dict(exact)
    for page, (_, _, coded) in zip(pages, codes, strict=True):
        coarse |= {key: finish(float(query.double() @ coded[i])) for i, key in enumerate(page)}
    if selector == "sink_recent":
        sinks = min(SINKS, n // 2)
        return set(seen[:sinks]) | set(seen[max(0, len(seen) - (n - sinks)) :]), exact
    if selector in ("topn", "lowbit"):
        scores = exact if selector == "topn" else coarse
        return set(sorted(seen, key=lambda key: (-scores[key], key))[:n]), scores
    scores, tokens = (exact, n) if selector == "paged" else (coarse, OVERSAMPLE * n)
    bounds = [float(torch.maximum(query * low, query * high).sum()) for low, high, _ in codes]
    best = sorted(range(len(pages)), key=lambda page: (-bounds[page], page))[: math.ceil(tokens / PAGE)]
    candidates = {key for page in best for key in pages[page]} | (set(seen) - {key for page in pages for key in page})
    estimate = {}
    for page, (low, high, _) in zip(pages, codes, strict=True):
        half = (high - low) / 2
        spread = scaling**2 / 2 * SPREAD * float(query.double().square() @ half.square())
        estimate |= dict.fromkeys(page, finish(float(query.double() @ ((low + high) / 2))) + spread)
    estimate |= {key: scores[key] for key in candidates}
    return set(sorted(candidates, key=lambda key: (-scores[key], key))[:n]), estimate


def by_rule(query, key, value, n_keep, selector, tail, scaling, first, softcap=None):
    """Attention `[B, Hq, T, Dv]` fp64 and kept tokens `[Hq]`, by `rule` and the definition of the tails."""
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    output = torch.zeros(batch, heads, queries, value.shape[-1], dtype=torch.float64)
    kept = torch.zeros(heads, dtype=torch.int64)

    def finish(dot):
        return dot * scaling if softcap is None else softcap * math.tanh(dot * scaling / softcap)

    for b, h, t in itertools.product(range(batch), range(heads), range(queries)):
        place, group = keys - queries + t, h * key.shape[1] // heads
        seen = range(first[b], place + 1)
        if not seen:
            continue
        keep, logits = rule(selector, query[b, h, t], key[b, group], n_keep[h], first[b], place, finish, scaling)
        logits = logits | {s: finish(float(query[b, h, t].double() @ key[b, group, s].double())) for s in keep}
        alpha = torch.tensor([logits[s] for s in seen], dtype=torch.float64).softmax(0)
        chosen = torch.tensor([s in keep for s in seen])
        values = value[b, group, first[b] : place + 1].double()
        mass, result = alpha[chosen].sum(), alpha[chosen] @ values[chosen]
        if tail == "renormalize":
            result = result / mass
        elif tail != "drop":
            share = SHARE_OF[tail]
            result = result + (1 - mass) * (share * values.mean(0) + (1 - share) * values[chosen].mean(0))
        output[b, h, t] = result
        kept[h] += len(keep)
    return output, kept


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("first", "dim"), [((0, 0), 24), ((0, 11), 16)])
def test_the_reference_follows_the_rule(selector, softcap, first, dim):
    q, k, v = tensors(2, 4, 2, 7, 75, dim, seed=3)
    for tail in tails_of(selector):
        arguments = {"selector": selector, "tail": tail, "scaling": 0.3, "softcap": softcap}
        found = reference_attention(q, k, v, [2, 5, 20, 90], mask=Span(first), **arguments)
        output, kept = by_rule(q, k, v, [2, 5, 20, 90], first=first, **arguments)
        assert torch.equal(found.kept, kept)
        # The codes are decoded in fp32 there and in fp64 here.
        assert (found.output - output).abs().max() <= 1e-5


# --- the paths ---


def decided(q, k, n_keep, selector, span, scaling, share_kv=False, softcap=None):
    """`[B, Hq, T]`: whether the N-th and the next token (and page) differ by more than fp32 can lose."""
    heads, (kv_heads, keys) = q.shape[1], k.shape[1:3]
    seen = span.mask(q.shape[2], keys).expand(q.shape[0], 1, -1, -1)
    index = index_of(k, span.starts(q.shape[0])) if needs_index(selector) else None
    coded = None if index is None else index.decoded(keys, k.shape[-1])

    def finish(dots):
        return dots * scaling if softcap is None else softcap * torch.tanh(dots * scaling / softcap)

    dots = q.double() @ k.double().repeat_interleave(heads // kv_heads, dim=1).transpose(-1, -2)
    n = n_keep if isinstance(n_keep, torch.Tensor) else torch.tensor(n_keep)[None, :, None]

    def picks(shift):
        """The selection with every score moved a little, each by its own amount."""
        generator = torch.Generator().manual_seed(7)
        noise = 1e-5 * shift * torch.randn(dots.shape, generator=generator, dtype=torch.float64)
        logits = (finish(dots) + noise).masked_fill(~seen, -torch.inf)
        sight = SelectorView(q.double(), logits, seen, n, finish, scaling, index=index, coded=coded)
        if index is not None:
            sight.__dict__["coarse"] = sight.coarse + noise
            bound, mean = sight.page_logits
            sight.__dict__["page_logits"] = (bound + noise[..., : bound.shape[-1]], mean)
        return choose(sight, selector, kv_heads, share_kv).keep

    return (picks(1.0) == picks(-1.0)).all(-1)


@pytest.fixture(params=["torch", *cpu.ISAS])
def path(request):
    library = cpu.library()
    if request.param == "torch":
        yield PATHS["torch"]
        return
    if library is None:
        pytest.skip(f"CPU kernels: {cpu.load_error()}")
    wanted = cpu.ISAS.index(request.param)
    if library.gs_set_isa(wanted) != wanted:
        library.gs_set_isa(-1)
        pytest.skip(f"this processor has no {request.param}")
    yield PATHS["cpu"]
    library.gs_set_isa(-1)


def check(path, q, k, v, n_keep, span=None, **arguments):
    """`path` equals the reference in every row that rounding does not decide."""
    span = span or Span()
    fast = path(q, k, v, n_keep, mask=span, **arguments)
    true = reference_attention(q, k, v, n_keep, mask=span, **arguments)
    known = {name: arguments[name] for name in ("selector", "scaling", "share_kv", "softcap") if name in arguments}
    clear = decided(q, k, n_keep, span=span, **known)
    assert clear.float().mean() > 0.9
    assert torch.equal(fast.kept, true.kept)
    error = (fast.output.double() - true.output).abs().amax(-1)
    size = true.output.abs().amax(-1)
    assert (error[clear] <= tolerance(v.float()) + torch.finfo(q.dtype).eps * size[clear]).all()
    # What rounding decides is one token against another of the same weight: never nonsense.
    assert (fast.output.double().abs() <= v.double().abs().max() * 1.001).all()


@pytest.mark.parametrize("selector", [*SELECTORS, MIXED])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 2), (8, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 15), (1, 16), (1, 333), (5, 53), (37, 37), (130, 150)])
def test_paths_equal_the_reference(path, selector, heads, kv_heads, queries, keys):
    for tail, dim in zip(tails_of(selector), (64, 40, 96), strict=False):
        q, k, v = tensors(1, heads, kv_heads, queries, keys, dim)
        check(path, q, k, v, budgets(heads, keys), selector=served(selector, heads), tail=tail, scaling=dim**-0.5)


@pytest.mark.parametrize("selector", [*SELECTORS, MIXED])
@pytest.mark.parametrize("queries", [1, 41])
def test_left_padding_caps_and_sinks(path, selector, queries):
    q, k, v = tensors(3, 6, 2, queries, 90, 128)
    sink = torch.linspace(-2, 2, 6)
    for tail in tails_of(selector):
        for extra in ({}, {"softcap": 3.0}, {"sink": sink}):
            arguments = {"selector": served(selector, 6), "tail": tail, "scaling": 0.1, **extra}
            check(path, q, k, v, [2, 1, 8, 30, 90, 200], Span((0, 7, 3)), **arguments)


@pytest.mark.parametrize("selector", [*SELECTORS, MIXED])
@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(path, selector, dim, dtype):
    for queries in (1, 20):
        q, k, v = tensors(2, 6, 2, queries, 100, dim, dtype=dtype)
        tail = tails_of(selector)[-1]
        check(path, q, k, v, [2, 1, 8, 30, 99, 200], selector=served(selector, 6), tail=tail, scaling=dim**-0.5)


@pytest.mark.parametrize("selector", [*SELECTORS, MIXED])
def test_budgets_of_every_query(path, selector):
    for queries in (1, 33):
        span = Span((0, 7, 3))
        q, k, v = tensors(3, 6, 2, queries, 70, 64)
        growth = torch.linspace(0, 1, 6, dtype=torch.float64)
        grown = Budgets(torch.tensor([1, 2, 3, 4, 5, 60]), growth, 8).at(span.visible(3, queries, 70)).movedim(0, 1)
        assert grown.shape == (3, 6, queries)
        check(path, q, k, v, grown, span, selector=served(selector, 6), tail=tails_of(selector)[-1], scaling=0.125)


@pytest.mark.parametrize("selector", [name for name in SELECTORS if SELECTORS[name].shareable])
@pytest.mark.parametrize("queries", [1, 20])
def test_shared_selections(path, selector, queries):
    q, k, v = tensors(2, 6, 2, queries, 90, 64)
    for tail in TAILS:
        check(
            path,
            q,
            k,
            v,
            [5] * 3 + [11] * 3,
            selector=selector,
            tail=tail,
            scaling=0.125,
            share_kv=True,
            span=Span((0, 7)),
        )


def test_a_shared_selection_is_the_largest_summed_weight():
    q, k, v = tensors(1, 6, 2, 1, 40, 16)
    alpha = (0.25 * q @ k.repeat_interleave(3, dim=1).transpose(-1, -2)).softmax(-1)
    kept = alpha.view(2, 3, 40).sum(1).topk(7).indices.repeat_interleave(3, dim=0)
    output = reference_attention(q, k, v, [7] * 6, tail="drop", scaling=0.25, share_kv=True).output[0, :, 0]
    for head in range(6):
        expected = alpha[0, head, 0, kept[head]].double() @ v[0, head // 3, kept[head]].double()
        assert (output[head] - expected).abs().max() <= tolerance(v)


@pytest.mark.parametrize("selector", [*SELECTORS, MIXED])
@pytest.mark.parametrize("queries", [1, 19])
def test_nothing_behind_the_keys_or_the_complete_pages_is_read(path, selector, queries):
    q, k, v = tensors(2, 6, 2, queries, 75, 64)
    room = [torch.full((2, 2, 100, 64), torch.nan) for _ in range(2)]
    for buffer, part in zip(room, (k, v), strict=True):
        buffer[:, :, :75] = part
    key, value = (buffer[:, :, :75] for buffer in room)
    arguments = {"selector": served(selector, 6), "tail": "renormalize", "scaling": 0.125}
    plain = path(q, k, v, [9] * 6, **arguments)
    slot = IndexSlot()
    remember_index(key, slot)
    index = index_of(key[:, :, :40], (0, 0))
    slot.index = index
    index.extend(key)  # grown, hence with room to spare
    assert index.low.shape[2] > max(index.pages)
    for part in (index.low, index.high):
        part[:, :, max(index.pages) :] = torch.nan
    index.codes[:, :, max(index.pages) :] = 255
    poisoned = path(q, key, value, [9] * 6, **arguments)
    assert torch.equal(poisoned.kept, plain.kept)
    assert (poisoned.output - plain.output).abs().max() <= tolerance(v)


@pytest.mark.parametrize("selector", SELECTORS)
def test_full_budget_is_dense(path, selector):
    for queries in (1, 45):
        q, k, v = tensors(2, 6, 2, queries, 45, 64)
        dense = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=queries > 1, scale=0.125, enable_gqa=True
        )
        for tail in tails_of(selector):
            output = path(q, k, v, [45] * 6, selector=selector, tail=tail, scaling=0.125).output
            assert (output - dense).abs().max() <= tolerance(v)


@pytest.mark.parametrize("selector", SELECTORS)
def test_one_pass_equals_query_after_query(path, selector):
    """A prefill sees in its index what decode steps see in theirs."""
    q, k, v = tensors(2, 6, 2, 60, 60, 64)
    span, n_keep = Span((0, 5)), [2, 1, 8, 20, 33, 60]
    tail = tails_of(selector)[-1]
    whole = path(q, k, v, n_keep, selector=selector, tail=tail, scaling=0.125, mask=span)
    kept = 0
    for place in range(60):
        step = path(
            q[:, :, place : place + 1],
            k[:, :, : place + 1],
            v[:, :, : place + 1],
            n_keep,
            selector=selector,
            tail=tail,
            scaling=0.125,
            mask=span,
        )
        kept = kept + step.kept
        assert (step.output[:, :, 0] - whole.output[:, :, place]).abs().max() <= tolerance(v), place
    assert torch.equal(kept, whole.kept)
