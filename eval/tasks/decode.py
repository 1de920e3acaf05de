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

from geosparse.runtime.architecture import attention_layers, check_context, input_device
from geosparse.text import load_texts, text_sha256, token_windows

from ..methods import Method, Prompt
from .base import Metric, Outcome, Setting, Task
from .through_cache import cache_bytes, token_losses

WARMUP = 2


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
    """Loss of the scored tokens; ms per token (by a plan also without our products of weights, as other methods have
    it), and bytes of the cache after the scored tokens, beside it."""

    kind = "decode"
    version = "1"
    settings = DecodeSettings
    block = 1
    applies = False

    def __init__(self, asked: DecodeSettings, setting: Setting) -> None:
        super().__init__(asked, setting)
        check_context(setting.model, asked.length, "give the task a smaller length")
        texts = load_texts(setting.text(asked.text))
        self.original = len(token_windows(setting.tokenizer, texts, asked.length, None))
        self.windows = token_windows(setting.tokenizer, texts, asked.length, asked.samples)
        self.effective = len(self.windows)
        self.data_sha256 = text_sha256(texts)
        self.metrics = {"nll": Metric("nll", False, main=True)}
        self._read: tuple[int, Prompt] | None = None

    def about(self) -> dict[str, Any]:
        """With the number of documents, which decides where each is cut."""
        return super().about() | {"windows": self.asked.samples}

    def prompt(self, place: int) -> Prompt:
        """The first part of a document, read densely, once for all methods."""
        if self._read is None or self._read[0] != place:
            self._read = None
            model = self.setting.model
            ids = self.windows[place][None, : -self.asked.scored - 1].to(input_device(model))
            with torch.no_grad(), _calls(model, self.setting.shrinking) as calls:
                cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            self._read = place, Prompt(cache, calls, ids)
        return self._read[1]

    def _cache(self, place: int, method: Method) -> Any:
        """A cache of the prompt, for this method alone."""
        prompt = self.prompt(place)
        return method.shrunken_cache(self.setting.model, prompt) if method.shrinks else copy.deepcopy(prompt.cache)

    def score(self, place: int, method: Method) -> Outcome:
        model, asked = self.setting.model, self.asked
        rest = self.windows[place][None, -asked.scored - 1 :]
        start = asked.length - asked.scored - 1
        cache = self._cache(place, method)
        shrunk = copy.deepcopy(cache) if method.shrinks and asked.timed else None
        with method.decoding(model):
            losses, _ = token_losses(model, rest, cache, method.most_per_call or asked.chunk, start)
        timing = {"cache_bytes": float(cache_bytes(cache))}
        if asked.timed:
            del cache
            again = self._cache(place, method) if shrunk is None else shrunk
            timing["ms_per_token"] = self._step_time(rest, again, start, method.decoding(model, counted=False))
        if asked.timed and method.plan is not None:
            ours = method.decoding(model, counted=False, own_products=False)
            timing["ms_per_token_torch_products"] = self._step_time(rest, self._cache(place, method), start, ours)
        return Outcome({"nll": float(losses.double().mean())}, timing)

    def _step_time(self, rest: torch.Tensor, cache: Any, start: int, decoding: AbstractContextManager[None]) -> float:
        """Median milliseconds of a decode step inside `decoding`, after two that are not counted."""
        model, times = self.setting.model, []
        device = input_device(model)
        with decoding, torch.no_grad():
            for step in range(min(self.asked.timed + WARMUP, rest.shape[1])):
                token, where = rest[:, step : step + 1].to(device), torch.tensor([[start + step]], device=device)
                begin = _now(device)
                model(token, past_key_values=cache, use_cache=True, position_ids=where)
                times.append(_now(device) - begin)
        return 1e3 * median(times[WARMUP:])


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
