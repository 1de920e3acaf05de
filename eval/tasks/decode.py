"""The decode protocol: a document's first part is read densely, the rest is scored through the cache.

Some methods only act after the prompt. Here all of them start from the same prompt, read once with dense attention,
and are scored on the same tokens; methods that shrink the cache do so at its end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from geosparse.hf.layers import attention_layers, check_context, input_device
from geosparse.measure.speed import twin_of
from geosparse.text import load_texts, text_sha256, token_windows

from ..harness.methods import Method, Prompt
from ..harness.task import Metric, Outcome, Setting, Task
from .through_cache import cache_bytes, token_losses

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class DecodeSettings:
    """`samples` documents of `length` tokens, the last `scored` of them scored, `chunk` tokens per call; the first
    `timed` of those are decoded once more, one by one, against the clock."""

    text: str
    length: int
    scored: int
    chunk: int
    timed: int
    samples: int

    kind = "decode"

    @property
    def id(self) -> str:
        """Text, context and tokens scored."""
        name = self.text.removeprefix("data:").rsplit("/", 1)[-1].replace(":", "-")
        return f"decode-{name}-{self.length}"


class Decode(Task):
    """Loss of the scored tokens; beside it ms per token, how many times as fast as dense that is, decoded in turns with
    it (by a plan both also without our products of weights, as other methods have them), and bytes of the cache after
    the scored tokens."""

    kind = "decode"
    version = "1"
    settings_class = DecodeSettings
    block = 1
    applies = False

    def __init__(self, settings: DecodeSettings, setting: Setting) -> None:
        super().__init__(settings, setting)
        check_context(setting.model, settings.length, "give the task a smaller length")
        texts = load_texts(setting.text(settings.text))
        self.original = len(token_windows(setting.tokenizer, texts, settings.length, None))
        self.windows = token_windows(setting.tokenizer, texts, settings.length, settings.samples)
        self.effective = len(self.windows)
        self.data_sha256 = text_sha256(texts)
        self.metrics = {"nll": Metric("nll", False, main=True)}
        self._read: tuple[int, Prompt] | None = None
        self._dense = twin_of(setting.model) if settings.timed else None

    def about(self) -> dict[str, Any]:
        """With the number of documents, which decides where each is cut."""
        return super().about() | {"windows": self.settings.samples}

    def prompt(self, sample: int) -> Prompt:
        """The first part of a document, read densely, once for all methods."""
        if self._read is None or self._read[0] != sample:
            self._read = None
            model = self.setting.model
            ids = self.windows[sample][None, : -self.settings.scored - 1].to(input_device(model))
            with torch.no_grad(), _calls(model, self.setting.shrinking) as calls:
                cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            self._read = sample, Prompt(cache, calls, ids)
        return self._read[1]

    def _cache(self, sample: int, method: Method) -> Any:
        """A cache of the prompt, for this method alone."""
        prompt = self.prompt(sample)
        return method.shrunken_cache(self.setting.model, prompt) if method.shrinks else copy.deepcopy(prompt.cache)

    def score(self, sample: int, method: Method) -> Outcome:
        model, settings = self.setting.model, self.settings
        rest = self.windows[sample][None, -settings.scored - 1 :]
        start = settings.length - settings.scored - 1
        cache = self._cache(sample, method)
        shrunk = copy.deepcopy(cache) if method.shrinks and settings.timed else None
        with method.decoding(model):
            losses, _ = token_losses(model, rest, cache, method.most_per_call or settings.chunk, start)
        timing = {"cache_bytes": float(cache_bytes(cache))}
        if settings.timed:
            del cache
            again = self._cache(sample, method) if shrunk is None else shrunk
            timing |= self._speed(sample, rest, again, start, method.decoding(model, counted=False), "")
        if settings.timed and method.plan is not None:
            ours = method.decoding(model, counted=False, own_products=False)
            timing |= self._speed(sample, rest, self._cache(sample, method), start, ours, "_torch_products")
        return Outcome({"nll": float(losses.double().mean())}, timing)

    def _speed(
        self,
        sample: int,
        rest: torch.Tensor,
        cache: Any,
        start: int,
        decoding: AbstractContextManager[None],
        which: str,
    ) -> dict[str, float]:
        """Median milliseconds of a decode step inside `decoding`, after two that are not counted, and of how many times
        as long dense attention takes for the same token right after: a machine that others use has slow minutes."""
        caches = cache, copy.deepcopy(self.prompt(sample).cache)
        device = input_device(self.setting.model)
        times: list[tuple[float, float]] = []
        with decoding, torch.no_grad():
            for step in range(min(self.settings.timed + WARM_UP_STEPS, rest.shape[1])):
                token, where = (
                    rest[:, step : step + 1].to(device),
                    torch.tensor([[start + step]], device=device, dtype=torch.int64),
                )
                marks = [_now(device)]
                for model, each in zip((self.setting.model, self._dense), caches, strict=True):
                    model(token, past_key_values=each, use_cache=True, position_ids=where)
                    marks.append(_now(device))
                times.append((marks[1] - marks[0], marks[2] - marks[1]))
        counted = times[WARM_UP_STEPS:]
        return {
            f"ms_per_token{which}": 1e3 * median(ours for ours, _ in counted),
            f"times_dense{which}": median(dense / ours for ours, dense in counted),
        }


@contextmanager
def _calls(model: Any, wanted: bool) -> Iterator[dict[Any, dict[str, Any]]]:
    """What every attention module is called with inside the block, where it is wanted; it takes memory."""
    calls: dict[Any, dict[str, Any]] = {}

    def note(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        calls[module] = keywords

    modules = [layer.module for layer in attention_layers(model)] if wanted else []
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
