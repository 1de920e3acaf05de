"""The measured loss when one head alone is sparse: many heads at once, each in its own row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from geosparse.errors import GeosparseError
from geosparse.hf.dense import attend_dense
from geosparse.hf.interface import Handler, intercepted
from geosparse.hf.layers import AttentionLayer, attention_layers
from geosparse.ops import PATHS, AttentionCall, Tail, best_path

# Logits of one batch, elements.
MAX_LOGITS = 1 << 28
MAX_ROWS = 8


class HeadTrial(NamedTuple):
    """One head kept to `n_keep` tokens, all others dense."""

    layer: int
    head: int
    n_keep: int


class _OneHeadSparse:
    """Serves a layer densely, but in row b of the batch the head of trial b keeps its N tokens only."""

    def __init__(self, trials: Sequence[HeadTrial], tail: Tail) -> None:
        self.trials = trials
        self.tail = tail

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        query, key, value, mask, bias, terms, *_ = call
        output = attend_dense(call)
        groups = query.shape[1] // key.shape[1]
        for row, trial in enumerate(self.trials):
            head, served = slice(trial.head, trial.head + 1), slice(trial.head // groups, trial.head // groups + 1)
            here = slice(row, row + 1)
            parts = (query[here, head], key[here, served], value[here, served])
            output[row, trial.head] = PATHS[best_path(*parts, bias)](
                *parts,
                [trial.n_keep],
                tail=self.tail,
                mask=_row(mask, row),
                bias=_row(bias, row),
                scaling=terms.scaling,
                softcap=terms.softcap,
                sink=None if terms.sink is None else terms.sink[head],
            ).output[0, 0]
        return output


def _row(tensor: Any, row: int) -> Any:
    """One row of a batch; what all rows share (a description of a mask, one mask, none) as it is."""
    return tensor[row : row + 1] if isinstance(tensor, torch.Tensor) and len(tensor) > 1 else tensor


def _dense(module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
    return attend_dense(call)


def one_head_losses(
    model: Any, window: torch.Tensor, trials: Sequence[HeadTrial], tail: Tail
) -> tuple[float, dict[HeadTrial, float]]:
    """The dense loss and that of each trial, nats per token.

    Layers below the sparse one see the same input in every trial: they run once, and each batch starts from there.

    Args:
        model: A causal language model whose decoder layers take and return the hidden states first.
        window: `[L]` token ids.
        trials: What to measure.
        tail: What stands for the discarded tokens.
    """
    layers = attention_layers(model)
    blocks = [_block(model, layer) for layer in layers]
    window = window.to(model.get_input_embeddings().weight.device)
    inputs: dict[int, torch.Tensor] = {}
    returns: dict[int, type] = {}  # a tensor, or, in transformers 4, for some architectures a tuple
    with torch.no_grad(), ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(_keeper(inputs, index)).remove)
            stack.callback(block.register_forward_hook(partial(_keep_type, returns, index)).remove)
        handlers: dict[torch.nn.Module, Handler] = {layer.module: _dense for layer in layers}
        with intercepted(model, handlers):
            dense = _nll(model(window[None], use_cache=False).logits, window)[0]
    losses: dict[HeadTrial, float] = {}
    size = model.get_output_embeddings().weight.shape[0] * len(window)
    rows = max(1, min(MAX_ROWS, MAX_LOGITS // size))
    for index in sorted({trial.layer for trial in trials}):
        of_layer = [trial for trial in trials if trial.layer == index]
        for start in range(0, len(of_layer), rows):
            part = of_layer[start : start + rows]
            handlers[layers[index].module] = _OneHeadSparse(part, tail)
            with (
                torch.no_grad(),
                intercepted(model, handlers),
                _starting_at(blocks[: index + 1], inputs[index], returns),
            ):
                logits = model(window.expand(len(part), -1), use_cache=False).logits
            losses |= dict(zip(part, _nll(logits, window), strict=True))
        handlers[layers[index].module] = _dense
    return dense, losses


def _block(model: Any, layer: AttentionLayer) -> torch.nn.Module:
    block: torch.nn.Module = model.get_submodule(layer.name.rsplit(".", 1)[0])
    return block


def _keeper(inputs: dict[int, torch.Tensor], index: int) -> Any:
    def keep(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if not arguments or not isinstance(arguments[0], torch.Tensor):
            raise GeosparseError(f"{type(module).__name__} does not take its hidden states first: study another model.")
        inputs[index] = arguments[0]

    return keep


def _keep_type(returns: dict[int, type], index: int, module: torch.nn.Module, arguments: Any, output: Any) -> None:
    returns[index] = type(output)


@contextmanager
def _starting_at(blocks: Sequence[torch.nn.Module], hidden: torch.Tensor, returns: dict[int, type]) -> Iterator[None]:
    """Inside, all but the last of `blocks` do nothing and that one takes `hidden` `[1, L, width]` for every row."""

    def replace(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden.expand(len(arguments[0]), -1, -1), *arguments[1:])

    hook = blocks[-1].register_forward_pre_hook(replace)
    before = [block.__dict__.get("forward") for block in blocks[:-1]]
    for index, block in enumerate(blocks[:-1]):
        block.forward = _pass_on_in_a_tuple if returns[index] is tuple else _pass_on
    try:
        yield
    finally:
        hook.remove()
        for block, forward in zip(blocks[:-1], before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _pass_on(states: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    return states


def _pass_on_in_a_tuple(states: torch.Tensor, *rest: Any, **options: Any) -> tuple[torch.Tensor]:
    return (states,)


def _nll(logits: torch.Tensor, window: torch.Tensor) -> list[float]:
    """Mean loss of each row of `logits` `[B, L, V]`."""
    targets = window[1:].to(logits.device)
    return [torch.nn.functional.cross_entropy(row[:-1].float(), targets).item() for row in logits]
