"""The one way into a model: transformers' AttentionInterface and AttentionMaskInterface, under one fixed name.

A handler is attached to each attention module that it serves and the model's attention implementation is switched to
`NAME`; transformers then calls the handler with what it would have given to its own kernel. Registering a mask beside
the attention is not optional: an attention without one is called with `attention_mask=None` and loses causality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ..errors import GeosparseError
from ..ops import Span, Visibility

NAME = "geosparse"
ATTRIBUTE = "_geosparse_handler"


class Handler(Protocol):
    """What serves the attention calls of a module."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Visibility | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of `query` `[B, Hq, T, D]` over `[B, Hkv, S, D]`: returns `[B, Hq, T, Dv]`."""


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
    output = handler(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    return output.transpose(1, 2).contiguous(), None


def _mask(
    *,
    batch_size: int,
    kv_length: int,
    q_length: int = 0,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    cache_position: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    mask_function: Any = None,
    **kwargs: Any,
) -> Span | torch.Tensor | None:
    """What the queries see: None for plain causality with the last query at the last key, a Span where causality,
    padding and a window say it all, else transformers' boolean mask."""
    from transformers import AttentionMaskInterface, masking_utils

    places: dict[str, Any] = {"q_length": q_length, "q_offset": q_offset}
    if cache_position is not None:  # transformers 4: where the queries are, one by one
        places = {"cache_position": cache_position}
        q_length = len(cache_position)
        if not torch.compiler.is_compiling():
            q_offset = int(cache_position[0])
        elif q_length != kv_length:  # a compiled graph does not know the numbers in a tensor
            q_offset = cache_position[0]
    aligned = not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_offset + kv_length
    if torch.compiler.is_compiling():  # which cannot look into mask functions
        if aligned and attention_mask is None and mask_function is masking_utils.causal_mask_function:
            return None
    elif aligned:
        span = _described(mask_function, attention_mask, batch_size, kv_length, kv_offset)
        if span is not None:
            window = span.window if span.window is not None and span.window < kv_length else None
            span = Span(span.first, window)
            return None if span.is_causal else span
    kwargs["allow_is_causal_skip"] = aligned and kwargs.get("allow_is_causal_skip", True)
    kwargs.pop("dtype", None)
    mask = AttentionMaskInterface()["sdpa"](
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        mask_function=mask_function,
        **places,
        **kwargs,
    )
    return None if mask is None else mask.bool()


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


def _configs(model: Any) -> list[Any]:
    """Every distinct config that carries an attention implementation, outermost first."""
    from transformers import PreTrainedModel

    found: dict[int, Any] = {}
    pending = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while pending:
        config = pending.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            pending += [sub for name in config.sub_configs if (sub := getattr(config, name, None)) is not None]
    return list(found.values())


def install(model: Any, handlers: Mapping[torch.nn.Module, Handler]) -> list[tuple[Any, str | None]]:
    """Route the attention of `model` to `handlers` (attention module -> handler).

    Returns:
        What `uninstall` needs to put everything back.

    Raises:
        GeosparseError: The model does not take its attention from transformers' AttentionInterface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if not model._can_set_attn_implementation():
        raise GeosparseError(
            f"{type(model).__name__} is not supported: it does not take its attention from transformers' "
            "AttentionInterface, so nothing can be made sparse; use another architecture or a newer transformers."
        )
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        for module, handler in handlers.items():
            setattr(module, ATTRIBUTE, handler)
        model.set_attn_implementation(NAME)
        # A vision tower beside the language model keeps its own attention.
        served = {id(getattr(module, "config", None)) for module in handlers}
        served |= {id(model.config), id(model.config.get_text_config())}
        _put_back((config, implementation) for config, implementation in before if id(config) not in served)
    except BaseException:
        uninstall(before, handlers)
        raise
    return before


def uninstall(before: Iterable[tuple[Any, str | None]], modules: Iterable[torch.nn.Module]) -> None:
    """Undo `install`: the implementation of every config and the absence of every handler."""
    _put_back(before)
    for module in modules:
        module.__dict__.pop(ATTRIBUTE, None)


def _put_back(before: Iterable[tuple[Any, str | None]]) -> None:
    """Let configs name the implementation that they named before."""
    for config, implementation in before:
        config._attn_implementation_internal = implementation


def installed(model: Any) -> bool:
    """Whether the attention of `model` goes through geosparse at this moment."""
    return bool(model.config._attn_implementation == NAME)


@contextmanager
def intercepted(model: Any, handlers: Mapping[torch.nn.Module, Handler]) -> Iterator[None]:
    """`install` for the length of a block."""
    if installed(model):
        raise GeosparseError("The model is already sparsified: call geosparse.restore_(model) first.")
    before = install(model, handlers)
    try:
        yield
    finally:
        uninstall(before, handlers)
