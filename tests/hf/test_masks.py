"""Masks that are stored only when touched: the same tensor as transformers', or the Span itself."""

import pytest
import torch

import geosparse as gs
from geosparse.hf.masks import SpanMask
from geosparse.ops import Span

from ..tiny import tiny_model, tokens

SPANS = [Span(), Span((0, 3)), Span((2,), 4), Span((0, 5), 3)]
SHAPE = (2, 1, 6, 9)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_every_operation_sees_the_stored_mask(span, dtype):
    mask = SpanMask(span, SHAPE, dtype, "cpu")
    seen = span.mask(6, 9).expand(SHAPE)
    least = 0 if dtype == torch.bool else torch.finfo(dtype).min
    stored = seen if dtype == torch.bool else torch.zeros(SHAPE, dtype=dtype).masked_fill(~seen, least)
    assert (mask.shape, mask.dtype, mask.dim()) == (stored.shape, dtype, 4)
    assert mask.contiguous() is mask
    operations = {
        "cut": lambda each: each[:, :, -1:, :],
        "indexed": lambda each: each[:, 0],
        "padded": lambda each: torch.nn.functional.pad(each, (0, 3)),
        "joined": lambda each: torch.cat([each, each], dim=-1),
        "expanded": lambda each: each.expand(2, 4, 6, 9),
        "filled": lambda each: each.masked_fill(torch.arange(9) == 2, least),
        "compared": lambda each: each == 0,
    }
    for name, operation in operations.items():
        found = operation(mask)
        assert type(found) is torch.Tensor, name
        assert torch.equal(found, operation(stored)), name


def test_it_stands_for_its_span_where_the_lengths_are_its_own():
    mask = SpanMask(Span((0, 3)), SHAPE, torch.bool, "cpu")
    assert mask.of(6, 9) == Span((0, 3))
    assert torch.equal(mask.of(1, 9), mask.stored())
    assert SpanMask(Span(), SHAPE, torch.bool, "cpu").of(6, 9) is None
    moved = mask.to("meta")
    assert type(moved) is SpanMask
    assert moved.span == mask.span


def test_it_says_what_it_is():
    assert "Span(first=(0,), window=None)" in repr(SpanMask(Span(), SHAPE, torch.bool, "cpu"))


def _attending(model, change):
    """Let the attention modules of a model do `change` to their mask first, as some architectures do."""
    for layer in model.model.layers:
        attend = layer.self_attn.forward

        def forward(*args, attend=attend, attention_mask=None, **kwargs):
            return attend(*args, attention_mask=change(attention_mask), **kwargs)

        layer.self_attn.forward = forward


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_model_that_changes_its_mask_attends_as_dense(kind, implementation):
    model = tiny_model(kind)
    model.set_attn_implementation(implementation)
    off = False if implementation == "sdpa" else torch.finfo(torch.float32).min

    def hide_the_second_key(mask):
        return mask if mask is None else mask.masked_fill(torch.arange(mask.shape[-1]) == 1, off)

    _attending(model, hide_the_second_key)
    ids = tokens(2, 40)
    padding = torch.ones_like(ids)
    padding[0, :9] = 0
    with torch.no_grad():
        dense = model(ids, attention_mask=padding, use_cache=False).logits[padding.bool()]
        with gs.sparsified(model, gs.Plan.uniform(model, 10**6)):
            sparse = model(ids, attention_mask=padding, use_cache=False).logits[padding.bool()]
    assert (sparse - dense).abs().max() <= 1e-4 * dense.abs().max()


def test_an_eager_model_always_has_a_mask_to_index():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    masks = []

    def index(mask):
        masks.append(mask[:, 0, :, :])
        return mask

    _attending(model, index)
    with gs.sparsified(model, gs.Plan.uniform(model, 4)), torch.no_grad():
        model(tokens(1, 30), use_cache=False)
    assert masks[-1].dtype == torch.float32
    assert masks[-1].shape == (1, 30, 30)
