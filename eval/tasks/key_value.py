"""Pairs of keys and values that fill the context; one key is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from .haystack import lines_that_fit
from .retrieval import Question, Retrieval, RetrievalSettings

INSTRUCTION = "A list of keys and their values."
SPARE_TOKENS = 8


class KeyValueSettings(RetrievalSettings):
    """As for all retrieval tasks."""

    kind = "key_value"


class KeyValue(Retrieval):
    """Every line of the context is a distractor of the same form; the pair asked for stands at an even depth."""

    kind = "key_value"
    version = "1"
    settings_class = KeyValueSettings

    def question(self, sample: int) -> Question:
        source = self.source(sample)
        seen: set[int] = set()

        def pairs() -> Iterator[str]:
            while True:
                key = source.randrange(1000, 10_000)
                if key not in seen:
                    seen.add(key)
                    yield f"key {key}: {source.randrange(1000, 10_000)}"

        fixed = len(self.tokens(f"{INSTRUCTION}\n\n\n\nThe value of key 1000 is: 1000 key 1000: 1000")) + SPARE_TOKENS
        lines = lines_that_fit(pairs(), self.settings.length - fixed, self.setting.tokenizer, "\n")
        key, value = lines[round(self.depth(sample) * (len(lines) - 1))].removeprefix("key ").split(": ")
        return Question("\n".join([INSTRUCTION, "", *lines, "", f"key {key}:"]), f" {value}")
