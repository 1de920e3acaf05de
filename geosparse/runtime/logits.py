"""The logits of a window, some rows at a time: whole, they would be by far the largest tensor of a pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

# Rows of logits that exist at once.
ROWS = 256


@dataclass(frozen=True)
class LastStates:
    """The last hidden states of one window, and the way from some of them to their logits.

    Attributes:
        values: `[L, H]`, in the graph of the pass where gradients are on.
        head: From `[R, H]` to `[R, V]`, by everything that the model does behind its last layer.
    """

    values: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]

    def logits(self, rows: slice) -> torch.Tensor:
        """`[R, V]` logits of some positions."""
        return self.head(self.values[rows])

    def predicting(self) -> Iterator[slice]:
        """All positions but the last, which predicts nothing, ROWS at a time."""
        last = len(self.values) - 1
        for start in range(0, last, ROWS):
            yield slice(start, min(start + ROWS, last))


def last_states(model: Any, ids: torch.Tensor) -> LastStates:
    """Run `model` over one window, up to its logits.

    Its body runs once; for the logits of some rows the model's own `forward` runs again with these rows in the place of
    what its body returned, so that soft caps, scales and the like are its own. A model that is not built of a body and
    a head as those of transformers are gives all its logits at once, which are then the values.

    Args:
        model: A causal language model, dense or sparsified.
        ids: `[L]` token ids on the model's device.
    """
    body = getattr(model, "base_model", model)
    outputs: list[Any] = []
    if body is not model and "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        hook = body.register_forward_hook(lambda _, arguments, output: outputs.append(output))
        try:
            model(ids[None], use_cache=False, logits_to_keep=1)
        finally:
            hook.remove()
    states = getattr(outputs[0], "last_hidden_state", None) if len(outputs) == 1 else None
    if states is None:
        return LastStates(model(ids[None], use_cache=False).logits[0], lambda logits: logits)
    return LastStates(states[0], partial(_head, model, body, ids, type(outputs[0])))


def targets_of(window: torch.Tensor, rows: slice) -> torch.Tensor:
    """The tokens `[R]` of `window` `[L]` that the positions `rows` predict."""
    return window[rows.start + 1 : rows.stop + 1]


def _head(model: Any, body: Any, ids: torch.Tensor, kind: type, rows: torch.Tensor) -> torch.Tensor:
    with _answering(body, kind(last_hidden_state=rows[None])):
        logits: torch.Tensor = model(ids[None, : len(rows)], use_cache=False).logits[0]
    return logits


@contextmanager
def _answering(module: torch.nn.Module, output: Any) -> Iterator[None]:
    """Inside, `module` returns `output`, whatever it is called with."""
    before = module.__dict__.get("forward")
    module.forward = lambda *rest, **named: output
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
