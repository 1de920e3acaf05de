"""One fact in a haystack of prose, asked for at the end."""

from __future__ import annotations

from .haystack import PLACES, lines_that_fit, sentences
from .retrieval import Question, Retrieval, RetrievalSettings

INSTRUCTION = "Somewhere in the following text a number is given for a place. Remember it."
SPARE_TOKENS = 8


class NeedleSettings(RetrievalSettings):
    """As for all retrieval tasks."""

    kind = "needle"


class Needle(Retrieval):
    """A number of five digits for a place, at a depth that runs evenly from the start to the end of the prose."""

    kind = "needle"
    version = "1"
    settings_class = NeedleSettings

    def question(self, sample: int) -> Question:
        source = self.source(sample)
        name, number = source.choice(PLACES), f"{source.randrange(10_000, 100_000)}"
        needle = f"The secret number of {name} is {number}."
        request = f"\n\nWhat is the secret number of {name}? The secret number of {name} is"
        answer = f" {number}"
        fixed = len(self.tokens(f"{INSTRUCTION}\n\n {needle}{request}{answer}")) + SPARE_TOKENS
        hay = lines_that_fit(sentences(source), self.settings.length - fixed, self.setting.tokenizer, " ")
        hay.insert(round(self.depth(sample) * len(hay)), needle)
        return Question(f"{INSTRUCTION}\n\n{' '.join(hay)}{request}", answer)
