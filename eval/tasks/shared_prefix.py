"""lm-eval's log-likelihoods of one document, its common beginning read once: a third to a half of the work."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

Request = tuple[Any, list[int], list[int]]


@functools.cache
def shared_prefix_class() -> Any:
    """A geosparse LM that reads what all requests of a call begin with once, and each rest behind a copy of it."""
    from geosparse.integrations.lm_eval import lm_class

    class SharedPrefixLM(lm_class()):  # type: ignore[misc]
        """Answers as its parent does; the density counts the common beginning once."""

        def _loglikelihood_tokens(
            self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            shared = _shared(requests)
            longest = max(len(context) + len(rest) for _, context, rest in requests)
            if shared < 1 or longest > self.max_length:
                answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
                return answers
            return self._behind(requests, shared)

        def _behind(self, requests: list[Request], shared: int) -> list[tuple[float, bool]]:
            """The answers, where all requests begin with the same `shared` tokens of context."""
            ids = torch.tensor([requests[0][1][:shared]], device=self.device, dtype=torch.int64)
            rests = [tuple([*context, *continuation][shared:-1]) for _, context, continuation in requests]
            with torch.no_grad():
                cache = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values
                read = _read(self.model, cache, list(dict.fromkeys(rests)), max(len(goal) for _, _, goal in requests))
            answers = []
            for rest, (_, _, continuation) in zip(rests, requests, strict=True):
                goal = torch.tensor(continuation, device=read[rest].device, dtype=torch.int64)
                logits = read[rest][-len(goal) :]
                likelihood = logits.gather(-1, goal[:, None]).sum()
                answers.append((float(likelihood), bool((logits.argmax(-1) == goal).all())))
            return answers

    return SharedPrefixLM


def _shared(requests: list[Request]) -> int:
    """Tokens that all requests begin with, the last token of the shortest context, which predicts, left out."""
    rows = [context + continuation for _, context, continuation in requests]
    most = min(len(context) for _, context, _ in requests) - 1
    first = rows[0]
    return next((at for at in range(most) if any(row[at] != first[at] for row in rows)), most)


def _read(model: Any, cache: Any, rests: list[tuple[int, ...]], most: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities `[tokens, vocabulary]` after the last `most` tokens of each rest, behind copies of `cache`.

    Rests of one length are rows of one batch, so that nothing is padded.
    """
    read: dict[tuple[int, ...], torch.Tensor] = {}
    for length in dict.fromkeys(map(len, rests)):
        rows = [rest for rest in rests if len(rest) == length]
        copied = copy.deepcopy(cache)
        if len(rows) > 1:
            copied.batch_repeat_interleave(len(rows))
        tokens = torch.tensor(rows, device=model.device, dtype=torch.int64)
        output = model(tokens, past_key_values=copied, use_cache=True, logits_to_keep=min(most, length))
        read |= dict(zip(rows, output.logits.float().log_softmax(-1), strict=True))
    return read
