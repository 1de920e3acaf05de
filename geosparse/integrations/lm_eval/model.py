"""The model as lm-eval sees it: an HFLM that loads through geosparse, sparsifies by a plan and counts per task."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ...models import load_model
from ...patch import sparsify_
from ...plan import Plan
from ...receipt import Receipt
from ...scoring import density
from .arguments import require_lm_eval
from .console import logging_at

NAME = "geosparse"


def register() -> None:
    """Make lm-eval's `--model geosparse` known, with `--model_args pretrained=NAME,plan=FILE,dtype=float32`.

    `pretrained` is what `geosparse.load_model` takes. Tasks that load a tokenizer themselves (RULER) take it from
    `--metadata '{"tokenizer": FOLDER}'`. The density stands in the results under `config`.
    """
    lm = lm_class()
    from lm_eval.api.registry import register_model

    register_model(NAME)(lm)


@functools.cache
def lm_class() -> Any:
    """The lm-eval model type; made when asked for, because its parent is lm-eval's."""
    require_lm_eval()
    from lm_eval.models.huggingface import HFLM

    class GeosparseLM(HFLM):  # type: ignore[misc]
        """lm-eval's HFLM around a model that is, or can become, sparse.

        Attributes:
            receipt: Where a sparse model counts; None while it is dense.
            work: Task name -> (tokens kept, tokens visible).
        """

        def __init__(
            self,
            pretrained: Any,
            plan: str | Path | None = None,
            tokenizer: Any = None,
            dtype: Any = "float32",
            device: str | None = None,
            trust_remote_code: bool = False,
            **options: Any,
        ) -> None:
            if isinstance(pretrained, str):
                place = _usable(device)
                found = load_model(pretrained, dtype=dtype, device=place, trust_remote_code=trust_remote_code)
                pretrained, tokenizer = found[0], tokenizer or found[1]
            with logging_at(logging.ERROR):  # the warnings about a model object are about accelerate
                super().__init__(pretrained=pretrained, tokenizer=tokenizer, **options)
            self.work: dict[str, tuple[int, int]] = {}
            self.receipt: Receipt | None = None if plan is None else sparsify_(self.model, Plan.load(plan))

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return _by_task(self, super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return _by_task(self, super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return _by_task(self, super().generate_until, requests, disable_tqdm)

        def _detect_batch_size(self, *arguments: Any, **options: Any) -> Any:
            """Not counted: these are trial calls on made-up tokens."""
            with nullcontext() if self.receipt is None else self.receipt.paused():
                return super()._detect_batch_size(*arguments, **options)

        def get_model_info(self) -> dict[str, Any]:
            """lm-eval's record of the model, with the density so far."""
            info: dict[str, Any] = super().get_model_info()
            return info if self.receipt is None else info | density(self.receipt)

    return GeosparseLM


def _usable(device: str | None) -> str | None:
    """As HFLM does: lm-eval always asks for a GPU, which falls back to the CPU where there is none."""
    return None if device is not None and device.startswith("cuda") and not torch.cuda.is_available() else device


def _by_task(lm: Any, answer: Callable[..., list[Any]], requests: list[Any], disable_tqdm: bool) -> list[Any]:
    """Answer one task after the other, so that what the receipt counts is one task's; bars on a terminal only."""
    disable_tqdm = disable_tqdm or not sys.stderr.isatty()
    places: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(str(request.task_name), []).append(place)
    answers: list[Any] = [None] * len(requests)
    for task, mine in places.items():
        before = _counted(lm.receipt)
        for place, each in zip(mine, answer([requests[i] for i in mine], disable_tqdm), strict=True):
            answers[place] = each
        after, old = _counted(lm.receipt), lm.work.get(task, (0, 0))
        lm.work[task] = (old[0] + after[0] - before[0], old[1] + after[1] - before[1])
    return answers


def _counted(receipt: Receipt | None) -> tuple[int, int]:
    return (0, 0) if receipt is None else (int(receipt.kept.sum()), int(receipt.visible.sum()))
