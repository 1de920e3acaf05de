"""Making a model sparse, in place or for a block, and putting it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError, did_you_mean
from ..hf.action import device_of_module
from ..hf.adapters import inner_model
from ..hf.interface import ATTRIBUTE, Handler, Installation, configs_of, install, installed, uninstall
from ..hf.layers import AttentionLayer, attention_layers, input_device
from ..ops import SELECTORS, HeadRules
from ..ops.selectors import ECONOMICAL, EXACT
from ..ops.serving import missing_kernels, serving, warn_once
from ..ops.spec import per_head
from ..utils.bounds import check_whole
from .attention import SparseAttention
from .break_even import Shape, break_even
from .equivalence import check_reproduces
from .linear import install_products, remove_products
from .norms import TERMS
from .receipt import Receipt


class _Patch(NamedTuple):
    installation: Installation
    receipt: Receipt
    hook: Any
    linear: list[torch.nn.Module]


# The record travels with the model, so that a deep copy of a sparsified model is one too, with its own receipt.
RECORD = "_geosparse_patch"


# What a patch puts into modules.
MARKS = (ATTRIBUTE, TERMS, RECORD)

# How several queries at once are served: each as a decode step would be, all of them densely, or in blocks.
PREFILLS = ("exact", "dense", "block")


def sparsify_(
    model: Any,
    plan: Plan,
    prefill: str = "exact",
    dense_below: int | Literal["measured"] = 0,
    own_products: bool = True,
) -> Receipt:
    """Make `model` attend sparsely by `plan`, in place, until `restore_(model)`.

    Args:
        model: A transformers causal language model, or a PeftModel around one.
        plan: A plan for this model.
        prefill: How several queries at once are served: "exact", every query selects as it would in a decode step,
            "dense", without selection, or "block", dense within blocks of keys chosen for blocks of queries (the
            receipt says so); single queries always follow the plan.
        dense_below: Single queries that see fewer tokens are served densely (the receipt says so); "measured": where
            `geosparse doctor --calibrate` found that to be faster on this device.
        own_products: On CPUs, linear modules and root mean square norms take a few rows to kernels of our own.

    Returns:
        The receipt, counting from here on.

    Raises:
        GeosparseError: The plan is for another model, the model is already sparse, or its architecture is not
            supported; the model is then as before, as after any other exception.
    """
    model = inner_model(model)
    if installed(model):
        raise GeosparseError("The model is already sparsified: call geosparse.restore_(model) first.")
    if prefill not in PREFILLS:
        raise GeosparseError(f"Unknown prefill mode {prefill!r}: {did_you_mean(prefill, PREFILLS)}")
    if dense_below != "measured":
        dense_below = check_whole("dense_below", dense_below, 0)
    with _whole_or_not_at_all(model):
        return _sparsify(model, plan, prefill, dense_below, own_products)


def _sparsify(
    model: Any, plan: Plan, prefill: str, dense_below: int | Literal["measured"], own_products: bool
) -> Receipt:
    """`sparsify_` of a dense model; an exception may leave it half done."""
    plan.check(model)
    layers = attention_layers(model)
    check_reproduces(model)
    receipt = Receipt(plan.budgets, [layer.name for layer in layers])
    weight = model.get_input_embeddings().weight
    receipt.served_by(serving(weight.device, weight.dtype), missing_kernels(weight.device))
    warn_once(weight.device)
    handlers: dict[torch.nn.Module, Handler] = {
        layer.module: SparseAttention(
            index,
            rules_of(plan, index, layer.window),
            receipt,
            prefill=prefill,
            dense_below=_break_even(model, layer, plan, index) if dense_below == "measured" else dense_below,
        )
        for index, layer in enumerate(layers)
    }
    from .cache.sparse_cache import provide_cache, takes_our_cache

    provide = partial(provide_cache, receipt, ours=takes_our_cache(model))
    installation = install(model, handlers)
    hook = model.register_forward_pre_hook(provide, with_kwargs=True)
    linear = install_products(model) if own_products else []
    model.__dict__[RECORD] = _Patch(installation, receipt, hook, linear)
    return receipt


@contextmanager
def _whole_or_not_at_all(model: Any) -> Iterator[None]:
    """Whatever a patch changes in `model` is, after an exception in the block, what it was before."""
    modules = list(model.modules())
    classes = [type(module) for module in modules]
    marks = [{name: module.__dict__[name] for name in MARKS if name in module.__dict__} for module in modules]
    settings = [(config, dict(vars(config))) for config in configs_of(model)]
    ours = {id(config) for config, _ in settings}
    named = [{name: value for name, value in vars(module).items() if id(value) in ours} for module in modules]
    hooks = [(table, dict(table)) for table in (model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs)]
    try:
        yield
    except BaseException:
        for module, kind, marked, configs in zip(modules, classes, marks, named, strict=True):
            if type(module) is not kind:
                module.__class__ = kind
            for name in MARKS:
                module.__dict__.pop(name, None)
            module.__dict__.update(marked | configs)
        for config, values in settings:
            vars(config).clear()
            vars(config).update(values)
        for table, before in hooks:
            table.clear()
            table.update(before)
        raise


def rules_of(plan: Plan, layer: int, window: int | None = None) -> HeadRules:
    """What `plan` says of one layer; `window`: the layer's sliding window."""
    return HeadRules.of(plan.budgets.of(layer), plan.tails_of(layer), plan.selectors_of(layer), plan.share_kv, window)


def shape_of(model: Any, layer: AttentionLayer) -> Shape:
    """What the break-even of a layer is measured for."""
    device = device_of_module(layer.module, input_device(model))
    return Shape(layer.heads, layer.kv_heads, layer.key_dim, layer.dtype, device)


def _break_even(model: Any, layer: AttentionLayer, plan: Plan, index: int) -> int:
    """The longest of the break-evens of a layer's selectors; those that read less than ECONOMICAL count as that."""
    words = set(per_head(plan.selectors_of(index), layer.heads))
    measured = {EXACT if SELECTORS[word].reads_every_key or layer.window else ECONOMICAL for word in words}
    return max(break_even(shape_of(model, layer), word) for word in measured)


def restore_(model: Any) -> None:
    """Undo `sparsify_` exactly; after an exception the model is as sparse as before.

    Caches that the model used stay as they are: see `sparsified`.

    Raises:
        GeosparseError: The model is not sparsified.
    """
    model = inner_model(model)
    patch = model.__dict__.get(RECORD)
    if patch is None:
        raise GeosparseError("The model is not sparsified: there is nothing to restore.")
    with _whole_or_not_at_all(model):
        uninstall(model, patch.installation)
        patch.hook.remove()
        remove_products(patch.linear)
        del model.__dict__[RECORD]


@contextmanager
def sparsified(
    model: Any,
    plan: Plan,
    prefill: str = "exact",
    dense_below: int | Literal["measured"] = 0,
    own_products: bool = True,
) -> Iterator[Receipt]:
    """`sparsify_` for the length of a block; on a normal exit the receipt is checked against the plan.

    A dynamic cache that the model is given inside the block, or makes, is usable before, inside and after it, by dense
    models and by models with other plans: it holds the tokens' keys and values, nothing of the plan. The one change is
    that its full-attention layers become layers that grow in place (`GrowingLayer`), and stay so; what they keep beside
    the tokens (an index, a sum of values) is brought up to date, or made anew, by whichever model reads it.

    Yields:
        The receipt.

    Raises:
        GeosparseError: As `sparsify_`; or a planned layer was not reached, a count differs from the plan, or the
            attention implementation was changed inside the block.
    """
    model = inner_model(model)
    receipt = sparsify_(model, plan, prefill, dense_below, own_products)
    try:
        yield receipt
        if not installed(model):
            raise GeosparseError("The attention implementation was changed inside the block: the model ran dense.")
        if model.__dict__[RECORD].receipt is not receipt:
            raise GeosparseError("The model was sparsified anew inside the block: its receipt is not this one.")
        receipt.verify()
    finally:
        if RECORD in model.__dict__:
            restore_(model)
