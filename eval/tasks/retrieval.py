"""What the retrieval tasks share: a prompt that fills the context, one answer in it, and how it is scored."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from geosparse.errors import GeosparseError
from geosparse.hf.layers import check_context, input_device

from ..harness.methods import Method
from ..harness.task import Metric, Outcome, Setting, Task


@dataclass(frozen=True)
class RetrievalSettings:
    """`samples` prompts of at most `length` tokens, answer included, from `seed`."""

    length: int
    samples: int
    seed: int

    kind = "retrieval"

    @property
    def id(self) -> str:
        """Task and length."""
        return f"{self.kind}-{self.length}"


class Question(NamedTuple):
    """A prompt and the text that should follow it."""

    prompt: str
    answer: str


class Retrieval(Task):
    """Whether greedy decoding would give the answer, and the answer's loss, from one pass over prompt and answer.

    Greedy decoding gives exactly the answer when, with the answer as its input, the model ranks each of its tokens
    first; every token of prompt and answer selects as it would in a decode step.
    """

    block = 4

    def __init__(self, settings: RetrievalSettings, setting: Setting) -> None:
        super().__init__(settings, setting)
        check_context(setting.model, settings.length, "give the task a smaller length")
        self.questions = [self.question(sample) for sample in range(settings.samples)]
        self.original = self.effective = settings.samples
        self.data_sha256 = hashlib.sha256(repr(self.questions).encode()).hexdigest()
        self.metrics = {"exact": Metric("accuracy", True, chance=0.0, main=True), "answer_nll": Metric("nll", False)}

    def question(self, sample: int) -> Question:
        """Question number `sample`."""
        raise NotImplementedError

    def source(self, sample: int) -> random.Random:
        """The random numbers of one question: they depend on nothing but task, length, seed and place."""
        return random.Random(f"{self.kind} {self.version} {self.settings.length} {self.settings.seed} {sample}")

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text without special ones."""
        tokens: list[int] = self.setting.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def depth(self, sample: int) -> float:
        """Where in the context the answer stands, 0 to 1: evenly spread over the samples."""
        depth: float = (sample + 0.5) / self.settings.samples
        return depth

    def encoded(self, question: Question) -> tuple[torch.Tensor, int]:
        """Token ids `[1, T]` of prompt and answer, and how many of them are the answer."""
        prompt: list[int] = self.setting.tokenizer(question.prompt)["input_ids"]
        answer = self.tokens(question.answer)
        if len(prompt) + len(answer) > self.settings.length:
            raise GeosparseError(f"{self.id}: a prompt has {len(prompt)} tokens, too many; report this tokenizer.")
        return torch.tensor([prompt + answer], dtype=torch.int64, device="cpu"), len(answer)

    def about(self) -> dict[str, Any]:
        """With the number of samples, which decides the depths."""
        return super().about() | {"depths": self.settings.samples}

    def score(self, sample: int, method: Method) -> Outcome:
        ids, count = self.encoded(self.questions[sample])
        model = self.setting.model
        with torch.no_grad():
            logits = model(ids.to(input_device(model)), use_cache=False, logits_to_keep=count + 1).logits[0, :-1]
        goal = ids[0, -count:].to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits.float(), goal)
        return Outcome({"exact": float((logits.argmax(-1) == goal).all()), "answer_nll": float(loss)})
