"""Loss of text by position: what the model makes of long contexts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from geosparse.hf.layers import check_context
from geosparse.text import load_texts, text_sha256, token_windows

from ..harness.methods import Method
from ..harness.task import Metric, Outcome, Setting, Task
from .through_cache import token_losses

FIRST_EDGE = 256


@dataclass(frozen=True)
class PerplexitySettings:
    """`samples` windows of `length` tokens, evenly spaced over the text; read `chunk` tokens per call."""

    text: str
    length: int
    samples: int
    chunk: int

    kind = "perplexity"

    @property
    def id(self) -> str:
        """Text and length."""
        name = self.text.removeprefix("data:").rsplit("/", 1)[-1].replace(":", "-")
        return f"perplexity-{name}-{self.length}"


class Perplexity(Task):
    """Mean loss per window, and the same for the positions of each octave from 256 on.

    The window is read through the cache, `chunk` tokens per call, so that its logits need little memory; every token
    selects among all those before it.
    """

    kind = "perplexity"
    version = "1"
    settings_class = PerplexitySettings
    block = 4

    def __init__(self, settings: PerplexitySettings, setting: Setting) -> None:
        super().__init__(settings, setting)
        check_context(setting.model, settings.length, "give the task a smaller length")
        texts = load_texts(setting.text(settings.text))
        everything = token_windows(setting.tokenizer, texts, settings.length, None)
        self.windows = token_windows(setting.tokenizer, texts, settings.length, settings.samples)
        self.original, self.effective = len(everything), len(self.windows)
        self.data_sha256 = text_sha256(texts)
        self.metrics = {"nll": Metric("nll", False, main=True)}
        self.metrics |= {name: Metric("nll", False) for name in self._octaves()}

    def about(self) -> dict[str, object]:
        """With the number of windows, which decides where each is cut."""
        return super().about() | {"windows": self.settings.samples}

    def _octaves(self) -> dict[str, slice]:
        """Names of position ranges, and where their losses stand: that of the token at position p is number p - 1."""
        edges = [1, FIRST_EDGE]
        while edges[-1] < self.settings.length:
            edges.append(edges[-1] * 2)
        pairs = [(low, min(high, self.settings.length)) for low, high in pairwise(edges)]
        return {f"nll {low}-{high - 1}": slice(low - 1, high - 1) for low, high in pairs if high > low}

    def score(self, sample: int, method: Method) -> Outcome:
        losses, _ = token_losses(self.setting.model, self.windows[sample][None], None, self.settings.chunk)
        losses = losses.double()
        values = {"nll": float(losses.mean())}
        return Outcome(values | {name: float(losses[rows].mean()) for name, rows in self._octaves().items()})
