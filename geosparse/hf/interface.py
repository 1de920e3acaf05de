"""The one way into a model: transformers' AttentionInterface and AttentionMaskInterface, under one fixed name.

A handler is attached to each attention module that it serves and the model's attention implementation is switched to
`NAME`; transformers then calls the handler with what it would have given to its own kernel. Registering a mask beside
the attention is not optional: an attention without one is called with `attention_mask=None` and loses causality.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import GeosparseError
from ..ops import AttentionCall, Span, Visibility
from .call import read_call
from .masks import SpanMask, added

NAME = "geosparse"
ATTRIBUTE = "_geosparse_handler"
IMPLEMENTATION = "_attn_implementation_internal"


class EagerName(str):
    """`NAME` in the config of a model that was eager: its code may count on masks that are always there and added."""


class Handler(Protocol):
    """What serves the attention calls of a module."""

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """The attention `[B, Hq, T, Dv]` that `module` asks for."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Visibility | None,
    dropout: float = 0.0,  # by position, too: libraries that wrap every registered function pass it so
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    handler: Handler | None = getattr(module, ATTRIBUTE, None)
    if handler is None:
        raise GeosparseError(
            f"The attention layer {type(module).__name__} has no plan: sparsify the whole model, or restore it first."
        )
    if type(attention_mask) is SpanMask:
        attention_mask = attention_mask.of(query.shape[2], key.shape[2])
    call = read_call(module, query, key, value, attention_mask, {"dropout": dropout, **kwargs})
    output = handler(module, call)
    return output.transpose(1, 2).contiguous(), None


def _mask(*, dtype: torch.dtype = torch.float32, config: Any = None, **kwargs: Any) -> torch.Tensor | None:
    """`visible_mask`, in the form that the model's own attention gets."""
    if isinstance(getattr(config, "_attn_implementation", None), EagerName):
        return _eager_mask(visible_mask(**kwargs | {"allow_is_causal_skip": False}), dtype)
    return visible_mask(**kwargs)


def visible_mask(
    *,
    batch_size: int,
    kv_length: int,
    q_length: int = 0,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    cache_position: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    mask_function: Any = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """What the queries see, `[B, 1, T, S]` bool: None for plain causality with the last query at the last key unless
    the caller insists on a mask, a SpanMask where causality, padding and a window say it all, else transformers'."""
    from transformers import AttentionMaskInterface, masking_utils

    places: dict[str, Any] = {"q_length": q_length, "q_offset": q_offset}
    if cache_position is not None:  # transformers 4: where the queries are, one by one
        places = {"cache_position": cache_position}
        q_length = len(cache_position)
        device = cache_position.device
        if not torch.compiler.is_compiling():
            q_offset = int(cache_position[0])
        elif q_length != kv_length:  # a compiled graph does not know the numbers in a tensor
            q_offset = cache_position[0]
    aligned = not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_offset + kv_length
    if torch.compiler.is_compiling():  # which cannot look into mask functions
        plain = attention_mask is None and mask_function is masking_utils.causal_mask_function
        if aligned and plain and allow_is_causal_skip:
            return None
    elif aligned:
        span = _described(mask_function, attention_mask, batch_size, kv_length, kv_offset)
        if span is not None:
            window = span.window if span.window is not None and span.window < kv_length else None
            span = Span(span.first, window)
            if span.is_causal and allow_is_causal_skip:
                return None
            return SpanMask(span, (batch_size, 1, q_length, kv_length), torch.bool, device)
    mask = AttentionMaskInterface()["sdpa"](
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        mask_function=mask_function,
        allow_is_causal_skip=aligned and allow_is_causal_skip,
        device=device,
        **places,
        **kwargs | {"allow_is_bidirectional_skip": False},  # None means causality here
    )
    return None if mask is None else mask.bool()


def _eager_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as one that is added to the logits."""
    assert mask is not None
    if type(mask) is SpanMask:
        batch, heads, queries, keys = mask.shape
        return SpanMask(mask.span, (batch, heads, queries, keys), dtype, mask.device)
    return added(mask, dtype)


def _described(mask_function: Any, padding: torch.Tensor | None, batch: int, keys: int, kv_offset: int) -> Span | None:
    """The Span of transformers' mask function and 2D padding; None where either is another than those known here."""
    window = _window_of(mask_function)
    if window == 0:
        return None
    first = (0,)
    if padding is not None:
        if padding.dim() != 2 or padding.shape[0] != batch or padding.shape[1] < kv_offset + keys:
            return None
        seen = padding[:, kv_offset : kv_offset + keys].bool()
        starts = keys - seen.sum(-1)
        if not bool((seen == (torch.arange(keys, device=seen.device, dtype=torch.int64) >= starts[:, None])).all()):
            return None
        first = tuple(starts.tolist())
    return Span(first, window)


def _window_of(mask_function: Any) -> int | None:
    """None for plain causality, the window of transformers' sliding window, 0 for any other mask function."""
    from transformers import masking_utils

    causal = masking_utils.causal_mask_function
    if mask_function is causal:
        return None
    parts = _closed_over(mask_function, "and_masks")
    if parts is None or len(parts.get("mask_functions", ())) != 2 or causal not in parts["mask_functions"]:
        return 0
    other = next(part for part in parts["mask_functions"] if part is not causal)
    window = (_closed_over(other, "sliding_window_overlay") or {}).get("sliding_window")
    return window if isinstance(window, int) and window > 0 else 0


def _closed_over(function: Any, maker: str) -> dict[str, Any] | None:
    """The variables that a function made by transformers' `maker` closes over; None for any other function."""
    code = getattr(function, "__code__", None)
    known = getattr(function, "__module__", "") == "transformers.masking_utils"
    if code is None or not known or not function.__qualname__.startswith(f"{maker}.<locals>."):
        return None
    return dict(zip(code.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))


def configs_of(model: Any) -> list[Any]:
    """Every distinct config that carries an attention implementation, outermost first."""
    found: dict[int, Any] = {}
    # A layer that was copied into the model has a config of its own.
    own = (getattr(module, "config", None) for module in model.modules())
    pending: list[Any] = [config for config in own if IMPLEMENTATION in getattr(config, "__dict__", ())]
    while pending:
        config = pending.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            pending += [sub for name in config.sub_configs if (sub := getattr(config, name, None)) is not None]
    return list(found.values())


def register() -> None:
    """Tell transformers of the attention and the mask named `NAME`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


@dataclass
class Installation:
    """What `uninstall` needs to put everything back.

    Attributes:
        configs: Every config of the model, with the copy that stands in its place.
        handlers: The modules that carry one.
    """

    configs: list[tuple[Any, Any]]
    handlers: list[torch.nn.Module]


def install(model: Any, handlers: Mapping[torch.nn.Module, Handler]) -> Installation:
    """Route the attention of `model` to `handlers` (attention module -> handler).

    The implementation is named in the config, which other models may share. Until `uninstall`, this model therefore
    has copies of its configs.

    Raises:
        GeosparseError: The model does not take its attention from transformers' AttentionInterface, or shares a module
            with a model that is sparsified.
    """
    if not model._can_set_attn_implementation():
        raise GeosparseError(
            f"{type(model).__name__} is not supported: it does not take its attention from transformers' "
            "AttentionInterface, so nothing can be made sparse; use another architecture or a newer transformers."
        )
    for module in handlers:
        if ATTRIBUTE in module.__dict__:
            raise GeosparseError(
                f"A {type(module).__name__} of this {type(model).__name__} is sparsified already, in another model "
                "that shares it: call geosparse.restore_ on that model first."
            )
    register()
    configs = [(config, copy.copy(config)) for config in configs_of(model)]
    installation = Installation(configs, list(handlers))
    try:
        _replace(model, configs)
        before = [(ours, ours._attn_implementation) for _, ours in configs]
        for module, handler in handlers.items():
            setattr(module, ATTRIBUTE, handler)
        model.set_attn_implementation(NAME)
        # A vision tower beside the language model keeps its own attention.
        served = {id(getattr(module, "config", None)) for module in handlers}
        served |= {id(model.config), id(model.config.get_text_config())}
        for config, implementation in before:
            ours = EagerName(NAME) if implementation == "eager" else NAME
            config._attn_implementation_internal = ours if id(config) in served else implementation
    except BaseException:
        uninstall(model, installation)
        raise
    return installation


def uninstall(model: Any, installation: Installation) -> None:
    """Undo `install`: the model's own configs, with what was set in their copies meanwhile, and no handler."""
    for config, ours in installation.configs:
        own = {id(copied): original for original, copied in installation.configs}
        kept = {IMPLEMENTATION: config._attn_implementation_internal}
        changed = {name: own.get(id(value), value) for name, value in vars(ours).items()}
        vars(config).clear()
        vars(config).update(changed | kept)
    _replace(model, [(ours, config) for config, ours in installation.configs])
    for module in installation.handlers:
        module.__dict__.pop(ATTRIBUTE, None)


def _replace(model: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Let the modules of `model`, and the new configs among themselves, refer to the second of each pair."""
    ours = {id(old): new for old, new in pairs}
    holders = [*model.modules(), *ours.values()]
    for holder in holders:
        for name, value in vars(holder).items():
            if id(value) in ours:
                vars(holder)[name] = ours[id(value)]


def installed(model: Any) -> bool:
    """Whether the attention of `model` goes through geosparse at this moment."""
    return bool(model.config._attn_implementation == NAME)


@contextmanager
def intercepted(model: Any, handlers: Mapping[torch.nn.Module, Handler]) -> Iterator[None]:
    """`install` for the length of a block."""
    if installed(model):
        raise GeosparseError("The model is already sparsified: call geosparse.restore_(model) first.")
    installation = install(model, handlers)
    try:
        yield
    finally:
        uninstall(model, installation)
