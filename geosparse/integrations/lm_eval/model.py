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

from ...artifacts.plan import Plan
from ...hf.loading import load_model
from ...profile.checkpoints import LONGEST_WAIT, process_rank
from ...profile.familiar import unfamiliar
from ...sparsify.patch import restore_, sparsify_
from ...sparsify.receipt import Receipt
from .arguments import require_lm_eval
from .console import logging_at

NAME = "geosparse"
NEARLY_DENSE = 0.95


def register() -> None:
    """Make lm-eval's `--model geosparse` known, with `--model_args pretrained=NAME,plan=FILE,dtype=float32`.

    `pretrained` is what `geosparse.load_model` takes. Tasks that load a tokenizer themselves (RULER) take it from
    `--metadata '{"tokenizer": FOLDER}'`. The density, of each task and of all, stands in the results under `config`;
    where a task's contexts are hardly longer than the budgets, a warning says so. Done when
    `geosparse.integrations.lm_eval` is imported, where lm-eval is installed.
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
            plan: What makes it sparse; None while it is dense.
            begin: Makes the model sparse, once the first requests have been compared with what the plan's profile saw;
                None from then on.
            work: Task name -> tokens kept, tokens visible, and queries, of all processes together.
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
            loaded_here = isinstance(pretrained, str)
            if loaded_here:
                target = _usable(device)
                loaded = load_model(pretrained, dtype=dtype, device=target, trust_remote_code=trust_remote_code)
                pretrained, tokenizer = loaded[0], tokenizer or loaded[1]
            with logging_at(logging.ERROR):  # the warnings about a model object are about accelerate
                super().__init__(pretrained=pretrained, tokenizer=tokenizer, **options)
            if loaded_here:
                share_out(self)
            self.work: dict[str, Work] = {}
            self.plan: Plan | None = None
            self.receipt: Receipt | None = None
            self.begin: Callable[[], Receipt] | None = None
            if plan is not None:
                self.plan = Plan.load(plan)
                self.receipt = sparsify_(self.model, self.plan)
                self.begin = functools.partial(sparsify_, self.model, self.plan)

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
            if self.plan is None:
                return info
            for task in self.work:
                if (warning := too_short(task, share(self.work[task]))) is not None:
                    print(f"geosparse: warning: {warning}", file=sys.stderr)
            by_task = {task: share(work) for task, work in self.work.items()}
            return info | overall(self.work) | {"density_by_task": by_task}

    return GeosparseLM


Work = tuple[int, int, int]
NONE: Work = (0, 0, 0)


def share(work: Work) -> float | None:
    """Kept over visible tokens; None where nothing was computed."""
    return work[0] / work[1] if work[1] else None


def overall(work: dict[str, Work]) -> dict[str, float | None]:
    """All tasks together: kept over visible tokens, and tokens kept per query and head."""
    kept, visible, queries = (sum(each[column] for each in work.values()) for column in range(3))
    return {"density": kept / visible if visible else None, "mean_kept": kept / queries if queries else None}


def too_short(task: str, density: float | None) -> str | None:
    """A warning where the contexts of a task are hardly longer than the budgets."""
    if density is None or density < NEARLY_DENSE:
        return None
    return (
        f"{task}: the density is {density:.2f}, the budgets cover nearly all of these contexts, so the "
        "run shows nothing about the plan; take longer contexts or a smaller plan."
    )


def share_out(lm: Any) -> None:
    """Let the processes of `accelerate launch` or `torchrun` answer a part of the requests each; no-op in a single one.

    lm-eval itself does so only for models that it has loaded.
    """
    if process_rank()[1] == 1:
        return
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    waits = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    lm.accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waits])
    lm._rank, lm._world_size = lm.accelerator.process_index, lm.accelerator.num_processes
    if lm.accelerator.device.type == "cuda" and lm._model.device != lm.accelerator.device:
        lm._model.to(lm.accelerator.device)
        lm._device = lm.accelerator.device


def _usable(device: str | None) -> str | None:
    """As HFLM does: lm-eval always asks for a GPU, which falls back to the CPU where there is none."""
    return None if device is not None and device.startswith("cuda") and not torch.cuda.is_available() else device


def _by_task(lm: Any, answer: Callable[..., list[Any]], requests: list[Any], disable_tqdm: bool) -> list[Any]:
    """Answer one task after the other, so that what the receipt counts is one task's; bars on a terminal only."""
    disable_tqdm = disable_tqdm or not sys.stderr.isatty()
    _compare(lm, requests)
    positions: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        positions.setdefault(str(request.task_name), []).append(position)
    answers: list[Any] = [None] * len(requests)
    done: dict[str, Work] = {}
    for task, chosen in positions.items():
        before = _counted(lm.receipt)
        for position, each in zip(chosen, answer([requests[i] for i in chosen], disable_tqdm), strict=True):
            answers[position] = each
        after = _counted(lm.receipt)
        done[task] = (after[0] - before[0], after[1] - before[1], after[2] - before[2])
    for part in _of_all_processes(lm, done):
        for task, work in part.items():
            old = lm.work.get(task, NONE)
            lm.work[task] = (old[0] + work[0], old[1] + work[1], old[2] + work[2])
    return answers


def _compare(lm: Any, requests: list[Any]) -> None:
    """Say, once, where the first requests are unlike the texts of the plan's profile, and make the model sparse."""
    if lm.begin is None:
        return
    begin, lm.begin = lm.begin, None
    if lm.receipt is not None:
        # Nothing has been counted yet, so that another receipt loses nothing.
        restore_(lm.model)
    try:
        warning = None if lm.plan.seen is None or lm.rank else unfamiliar(lm.model, lm.plan, _start_of(lm, requests))
    finally:
        lm.receipt = begin()
    if warning is not None:
        print(f"geosparse: warning: {warning}", file=sys.stderr)


def _start_of(lm: Any, requests: list[Any]) -> torch.Tensor:
    """As many tokens of the requests, joined, as a window of the plan's profile has."""
    parts = (part for request in requests for part in request.arguments if isinstance(part, str))
    text, length = "", lm.plan.seen.length
    for part in dict.fromkeys(parts):
        text += part
        # A token has four characters or so; more text costs little, too little would say nothing.
        if len(text) > 16 * length:
            break
    tokens = lm.tok_encode(text, add_special_tokens=False)[:length]
    return torch.tensor(tokens, dtype=torch.int64, device="cpu")


def _of_all_processes(lm: Any, local: dict[str, Work]) -> list[dict[str, Work]]:
    if lm.world_size == 1:
        return [local]
    from torch import distributed

    gathered: list[Any] = [None] * lm.world_size
    distributed.all_gather_object(gathered, local)
    return gathered


def _counted(receipt: Receipt | None) -> Work:
    if receipt is None:
        return NONE
    return int(receipt.kept.sum()), int(receipt.visible.sum()), int(receipt.queries.sum())
