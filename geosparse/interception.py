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

from .errors import GeosparseError

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
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of `query` `[B, Hq, T, D]` over `[B, Hkv, S, D]`: returns `[B, Hq, T, Dv]`."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    handler: Handler | None = getattr(module, ATTRIBUTE, None)
    if handler is None:
        raise GeosparseError(
            f"The attention layer {type(module).__name__} has no plan: sparsify the whole model, or restore it first."
        )
    output = handler(module, query, key, value, attention_mask, **kwargs)
    return output.transpose(1, 2).contiguous(), None


def _mask(*, q_length: int, kv_length: int, q_offset: int | torch.Tensor = 0, **kwargs: Any) -> torch.Tensor | None:
    """transformers' boolean mask, or None where plain causality with the last query at the last key says it all."""
    from transformers import AttentionMaskInterface

    aligned = not isinstance(q_offset, torch.Tensor) and q_offset + q_length == kv_length
    kwargs["allow_is_causal_skip"] = aligned and kwargs.get("allow_is_causal_skip", True)
    kwargs.pop("dtype", None)
    mask = AttentionMaskInterface()["sdpa"](q_length=q_length, kv_length=kv_length, q_offset=q_offset, **kwargs)
    return None if mask is None else mask.bool()


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
    except BaseException:
        uninstall(before, handlers)
        raise
    return before


def uninstall(before: Iterable[tuple[Any, str | None]], modules: Iterable[torch.nn.Module]) -> None:
    """Undo `install`: the implementation of every config and the absence of every handler."""
    for config, implementation in before:
        config._attn_implementation_internal = implementation
    for module in modules:
        module.__dict__.pop(ATTRIBUTE, None)


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
