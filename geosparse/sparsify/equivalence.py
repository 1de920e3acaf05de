"""Whether our attention with every token kept is the model's own, layer by layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from ..errors import GeosparseError
from ..hf.interface import Handler, install, uninstall
from ..hf.layers import attention_layers, probe_of
from ..hf.modes import evaluating
from ..hf.nonfinite import ADVICE, first_fault
from ..hf.signature import Remembered
from ..ops import Budgets, HeadRules
from .attention import SparseAttention
from .receipt import Receipt

LEAST = 1e-6
"""Outputs no larger than this are compared absolutely."""


class _Calls:
    """What attention modules were given and what they gave, in the order of their calls."""

    def __init__(self) -> None:
        self.given: dict[torch.nn.Module, list[torch.Tensor]] = defaultdict(list)
        self.gave: dict[torch.nn.Module, list[torch.Tensor]] = defaultdict(list)

    def record(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A forward hook."""
        self.given[module].append(args[0] if args else kwargs["hidden_states"])
        self.gave[module].append(_first(output))

    def feed(self, turns: dict[torch.nn.Module, int], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """A forward pre-hook: the hidden states of the same call before, whatever other layers made of theirs."""
        hidden = self.given[module][turns[module]]
        turns[module] += 1
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def reproduce(
    model: Any, tokens: torch.Tensor, names: Mapping[torch.nn.Module, str], handlers: Mapping[torch.nn.Module, Handler]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Run `tokens` `[1, T]` as the model does, then each layer again on what it was given there, with its handler.

    Layers are compared one by one because what a rounding becomes in the layers after it may be anything: in bfloat16
    two correct ways of attention to unusual tokens end in logits that have nothing in common.

    Args:
        names: Attention modules and what to call them.
        handlers: What serves each of them the second time.

    Returns:
        The logits of the model's own attention, and per layer the largest difference over the largest output.
    """
    calls = _Calls()
    errors: dict[str, float] = {}
    turns: dict[torch.nn.Module, int] = defaultdict(int)

    def compare(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        own, ours = calls.gave[module][turns[module] - 1].float(), _first(output).float()
        error = float((ours - own).abs().max() / own.abs().max().clamp_min(LEAST))
        # The larger one where a layer is called twice, and what is not a number.
        if not error <= errors.get(names[module], 0.0):
            errors[names[module]] = error

    with torch.no_grad():
        hooks = [module.register_forward_hook(calls.record, with_kwargs=True) for module in names]
        try:
            logits: torch.Tensor = model(tokens, use_cache=False).logits
        finally:
            _remove(hooks)
        feed = partial(calls.feed, turns)
        hooks = [module.register_forward_pre_hook(feed, with_kwargs=True) for module in names]
        hooks += [module.register_forward_hook(compare, with_kwargs=True) for module in names]
        installation = install(model, dict(handlers))
        try:
            model(tokens, use_cache=False)
        finally:
            uninstall(model, installation)
            _remove(hooks)
    return logits, errors


def _remove(hooks: Iterable[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _reproduced(model: Any) -> bool:
    """Hold our attention with every token kept against the model's own on a few tokens, layer by layer.

    This is what notices an architecture, or a release of transformers, that does more in its attention than the
    interface says.
    """
    tokens = probe_of(model)[None]
    layers = attention_layers(model)
    unlimited = Budgets(torch.full((len(layers), layers[0].heads), tokens.shape[1], dtype=torch.int64, device="cpu"))
    receipt = Receipt(unlimited, [layer.name for layer in layers])
    handlers: dict[torch.nn.Module, Handler] = {
        layer.module: SparseAttention(index, HeadRules.of(unlimited.of(index), "drop"), receipt)
        for index, layer in enumerate(layers)
    }
    with evaluating(model):
        logits, errors = reproduce(model, tokens, {layer.module: layer.name for layer in layers}, handlers)
    if not (bool(torch.isfinite(logits).all()) and all(math.isfinite(error) for error in errors.values())):
        raise GeosparseError(
            f"The logits of this {type(model).__name__} are not finite: its weights or its dtype, {layers[0].dtype}, "
            f"overflow, first at {first_fault(model, tokens)}; {ADVICE}."
        )
    # Not a test of rounding but of meaning: another formula is off by far more. Our arithmetic is fp32.
    eps, single = torch.finfo(layers[0].dtype).eps, torch.finfo(torch.float32).eps
    allowed = 2000 * single if eps <= single else 32 * eps
    # Modules that round what they take, to int8 say, make other steps of a difference that is none.
    rounding = {layer.name: layer.rounding() for layer in layers}
    for name, error in errors.items():
        if not error <= allowed + 8 * rounding[name]:
            raise GeosparseError(
                f"{type(model).__name__} is not supported: its attention cannot be reproduced through the interface "
                f"(with every token kept, the output of {name} is off by {100 * error:.2g} %)."
            )
    return True


check_reproduces = Remembered(_reproduced)
"""`_reproduced`, remembered for as long as a model's modules, weights and configuration are the same."""
