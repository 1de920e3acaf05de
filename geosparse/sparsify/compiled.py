"""Sparse attention inside a compiled graph: one opaque operator, so that torch.compile does not break the graph there.

torch.compile cannot look into the attention: it counts, keeps an index and calls kernels on pointers. What is
remembered on a cache's tensors does not pass through an operator, so that an index is built anew at every call:
compiled decoding with an index is right but slow, and the receipt says so.

The operator has no gradient: a graph that is to be trained breaks at each attention, which runs as without compiling.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch

from ..hf.call import call_of
from ..ops import AttentionCall, Span, Terms, Visibility


class Server(Protocol):
    """What the operator calls."""

    def serve(self, call: AttentionCall) -> torch.Tensor:
        """Attention `[B, Hq, T, Dv]`."""


_numbers = itertools.count()
_servers: weakref.WeakValueDictionary[int, Server] = weakref.WeakValueDictionary()


def number_of(server: Server) -> int:
    """A number by which the operator finds `server` for as long as it lives."""
    number = next(_numbers)
    _servers[number] = server
    return number


def attend_compiled(number: int, call: AttentionCall) -> torch.Tensor:
    """`serve` of the server `number`, as an operator that a graph can hold."""
    span = call.mask if isinstance(call.mask, Span) else Span(())
    scaling, softcap, sink = call.terms
    numbers = (list(span.first), span.window or 0, scaling, softcap or 0.0, number)
    result: torch.Tensor = attend(call.query, call.key, call.value, call.given, sink, *numbers)
    return result


@cache
def leave_graph() -> Callable[..., torch.Tensor]:
    """What calls a function outside of the graph that is being compiled, where autograd goes through it.

    Made when a model is sparsified: torch loads its compiler for it.
    """

    def call(function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        return function(*args)

    disabled: Callable[..., torch.Tensor] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
    return disabled


@torch.library.custom_op("geosparse::attend", mutates_args=())
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sink: torch.Tensor | None,
    first: list[int],
    window: int,
    scaling: float,
    softcap: float,
    number: int,
) -> torch.Tensor:
    """The operator: a Span arrives as `first` and `window` (0: none), plain causality as neither mask nor `first`."""
    seen: Visibility | None = Span(tuple(first), window or None) if first else mask
    call = call_of(query, key, value, seen, Terms(scaling, softcap or None, sink))
    return _servers[number].serve(call).contiguous()


@attend.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sink: torch.Tensor | None,
    first: list[int],
    window: int,
    scaling: float,
    softcap: float,
    number: int,
) -> torch.Tensor:
    return query.new_empty(*query.shape[:3], value.shape[-1])
