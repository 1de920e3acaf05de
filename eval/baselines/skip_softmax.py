"""modelopt's skip-softmax as a method: blocks of keys whose best logit lies too far below the best so far are left out.

What is skipped follows from one threshold for all heads, which says nothing of how much that is. So the threshold is
looked for on each prompt's own last tokens, where it keeps the share that was asked for.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from geosparse.errors import GeosparseError
from geosparse.hf.layers import attention_layers, input_device
from geosparse.hf.loading import reason

from ..harness.methods import Method, Prompt

SKIP_SOFTMAX = "skip_softmax"
BLOCK_TOKENS = 128  # modelopt's default
THRESHOLD_TOKENS = 32  # of a prompt, at its end, on which the threshold is looked for
# Distances below the best logit, in nats.
DISTANCES = [0.01 * 1.06**step for step in range(140)]


class _SkipCall(NamedTuple):
    visible: int  # heads times keys
    skipped: list[float]  # shares, per threshold


class SkipSoftmax(Method):
    """modelopt's `flash_skip_softmax` while decoding, one token per call, in eager attention as it asks for."""

    shrinks = True
    most_per_call = 1

    def __init__(self, id: str, density: float) -> None:
        """Prepare the method.

        Args:
            id: Of the variant.
            density: Share of the keys that is not skipped.
        """
        super().__init__(id)
        self.density = density
        self.distance = math.inf

    def about(self) -> dict[str, Any]:
        """The method, its version and what it is asked to keep."""
        from importlib import metadata

        return {"peer": SKIP_SOFTMAX, "density": self.density, "modelopt": metadata.version("nvidia-modelopt")}

    def shrunken_cache(self, model: Any, prompt: Prompt) -> Any:
        """The whole cache; the threshold is known afterwards."""
        cache = copy.deepcopy(prompt.cache)
        tokens = prompt.ids.shape[1]
        start = max(tokens - THRESHOLD_TOKENS, 1)
        cache.crop(start - tokens)
        with torch.no_grad(), _skipping(model, DISTANCES, watching=True) as calls:
            for position in range(start, tokens):
                token = prompt.ids[:, position : position + 1].to(input_device(model))
                model(token, past_key_values=cache, use_cache=True)
        visible = sum(call.visible for call in calls)
        kept = [
            sum(call.visible * (1 - call.skipped[position]) for call in calls) / visible
            for position in range(len(DISTANCES))
        ]
        # The least distance that keeps as much as was asked for: what is compared has no fewer tokens than ours.
        self.distance = DISTANCES[min(bisect_left(kept, self.density), len(DISTANCES) - 1)]
        return cache

    @contextmanager
    def decoding(self, model: Any, counted: bool = True, own_products: bool = False) -> Iterator[None]:
        """With blocks skipped."""
        with _skipping(model, [self.distance]) as calls:
            yield
        if counted:
            kept, visible = sum(call.visible * (1 - call.skipped[0]) for call in calls), sum(c.visible for c in calls)
            self.counted = self.counted[0] + round(kept), self.counted[1] + visible


@contextmanager
def _skipping(model: Any, distances: list[float], watching: bool = False) -> Iterator[list[_SkipCall]]:
    """Every attention module skips what lies farther below than the distance; `watching`: only counts what it would."""
    try:
        from modelopt.torch.sparsity.attention_sparsity.methods.flash_skip_softmax import FlashSkipSoftmax
    except ImportError as error:
        raise GeosparseError(
            f"{SKIP_SOFTMAX} needs nvidia-modelopt ({reason(error)}): give the recipe `environment: peers`, which "
            "installs it."
        ) from error
    thresholds = [math.exp(-distance) for distance in distances]
    config = {
        "thresholds": {"prefill": thresholds, "decode": thresholds},
        "br": BLOCK_TOKENS,
        "bc": BLOCK_TOKENS,
        "backend": "pytorch",
        "is_causal": True,
    }
    calls: list[_SkipCall] = []
    before, layers = model.config._attn_implementation, attention_layers(model)
    model.set_attn_implementation("eager")
    try:
        for layer in layers:
            method, seen = FlashSkipSoftmax(config), SimpleNamespace()
            method.set_calibration_mode(watching)
            layer.module.forward = _inside(layer, method, seen, calls)
        yield calls
    finally:
        for layer in layers:
            layer.module.__dict__.pop("forward", None)
        model.set_attn_implementation(before)


def _inside(layer: Any, method: Any, seen: Any, calls: list[_SkipCall]) -> Any:
    forward = layer.module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with method.get_sparse_context(seen):
            output = forward(*args, **kwargs)
        stats = seen._last_stats
        calls.append(_SkipCall(layer.heads * stats["sample_length"], stats["sparsity"]))
        return output

    return run
