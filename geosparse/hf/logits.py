"""The logits of a window, some rows at a time: whole, they would be by far the largest tensor of a pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .interface import installed
from .materialised import check_materialised
from .signature import Remembered

# Rows of logits that exist at once.
ROWS = 256
# The tokens on which the body of a model is looked for, and by how much of the largest logit it may miss the head's.
TOKENS = 8
SAME = 0.02


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
    a head gives all its logits at once, which are then the values.

    Args:
        model: A causal language model, dense or sparsified.
        ids: `[L]` token ids on the model's device.
    """
    body = body_of(model)
    if body is None:
        return LastStates(model(ids[None], use_cache=False).logits[0], lambda logits: logits)
    outputs: list[Any] = []
    hook = body.register_forward_hook(lambda _, arguments, output: outputs.append(output))
    try:
        model(ids[None], use_cache=False, **keep_last(model, ids))
    finally:
        hook.remove()
    return LastStates(outputs[0].last_hidden_state[0], partial(_head, model, body, ids, type(outputs[0])))


def keep_last(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Keywords by which `model` makes no logits of `ids` `[L]` but the last, where it can.

    The place is given as a tensor: where it is a number, some models cut all of their last layers to these rows.
    """
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return {}
    return {"logits_to_keep": torch.tensor([len(ids) - 1], dtype=torch.int64, device=ids.device)}


def _find_body(model: Any) -> Any:
    """The part of `model` whose last hidden states are all that its head reads, found on a few tokens; None where
    there is none, or where it does not leave out logits anyway."""
    from transformers import PreTrainedModel

    check_materialised(model)
    base = getattr(model, "base_model", model)
    table = model.get_input_embeddings().weight
    ids = torch.arange(TOKENS, dtype=torch.int64, device="cpu" if table.is_meta else table.device) % len(table)
    if base is model or not keep_last(model, ids):
        return None
    calls: list[tuple[Any, Any]] = []
    parts = [module for module in base.modules() if isinstance(module, PreTrainedModel)]
    hooks = [part.register_forward_hook(lambda part, _, output: calls.append((part, output))) for part in parts]
    try:
        with torch.no_grad():
            logits = model(ids[None], use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    # The outermost ends last.
    for body, output in reversed(calls):
        states = getattr(output, "last_hidden_state", None)
        once = sum(part is body for part, _ in calls) == 1
        if once and states is not None and states.shape[:2] == (1, TOKENS):
            with torch.no_grad():
                ours = _head(model, body, ids, type(output), states[0])
            scale = float(logits.abs().max())
            return body if float((ours - logits).abs().max()) <= SAME * scale else None
    return None


_remembered = Remembered(_find_body)


def body_of(model: Any) -> Any:
    """`_find_body`, once; of a model that is sparsified only what was found before."""
    if getattr(model, "base_model", model) is model:
        return None
    return _remembered.known(model) if installed(model) else _remembered(model)


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
