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
            ids = torch.tensor([requests[0][1][:shared]], device=self.device)
            with torch.no_grad():
                cache = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values
                read: dict[tuple[int, ...], torch.Tensor] = {}
                answers = []
                for _, context, continuation in requests:
                    rest = tuple([*context, *continuation][shared:-1])
                    if rest not in read:
                        keep = {"logits_to_keep": len(rest) - (len(context) - 1 - shared)}
                        tokens = torch.tensor([rest], device=self.device)
                        output = self.model(tokens, past_key_values=copy.deepcopy(cache), use_cache=True, **keep)
                        read[rest] = output.logits[0].float().log_softmax(-1)
                    goal = torch.tensor(continuation, device=self.device)
                    found = read[rest][-len(goal) :]
                    likelihood = found.gather(-1, goal[:, None]).sum()
                    answers.append((float(likelihood), bool((found.argmax(-1) == goal).all())))
            return answers

    return SharedPrefixLM


def _shared(requests: list[Request]) -> int:
    """Tokens that all requests begin with, the last token of the shortest context, which predicts, left out."""
    rows = [context + continuation for _, context, continuation in requests]
    most = min(len(context) for _, context, _ in requests) - 1
    first = rows[0]
    return next((at for at in range(most) if any(row[at] != first[at] for row in rows)), most)
