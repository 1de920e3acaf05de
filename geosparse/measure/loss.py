"""Quality: the loss of a model, dense and sparse, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError
from ..hf.adapters import inner_model
from ..hf.interface import installed
from ..hf.layers import check_context, input_device
from ..hf.logits import last_states, targets_of
from ..hf.modes import evaluating
from ..hf.nonfinite import ADVICE, first_fault
from ..ops.serving import serving
from ..sparsify.patch import sparsified
from ..sparsify.receipt import Receipt
from ..utils.files import finite_or_none
from ..utils.intervals import mean_interval
from ..utils.progress import track


def token_nll(model: Any, windows: torch.Tensor, what: str = "score", show_progress: bool = False) -> torch.Tensor:
    """The negative log-likelihood of every token but the first of each window, one window at a time.

    Args:
        model: A causal language model, dense or sparsified.
        windows: `[W, L]` token ids.
        what: Label of the progress bar.
        show_progress: A progress bar on a terminal.

    Returns:
        `[W, L - 1]` fp32, nats, on the CPU.

    Raises:
        GeosparseError: The loss is not finite.
    """
    model = inner_model(model)
    _check_tokens(windows)
    check_context(model, windows.shape[1], "give a smaller --length")
    device = input_device(model)
    losses = []
    with torch.no_grad(), evaluating(model):
        for window in track(windows, what, show_progress):
            states = last_states(model, window.to(device))
            parts = (_losses(states.logits(rows), targets_of(window, rows)) for rows in states.predicting())
            losses.append(torch.cat(list(parts)))
    nll = torch.stack(losses)
    broken = (~torch.isfinite(nll)).any(-1).nonzero().flatten().tolist()
    if broken:
        # A sparse model is told apart by the dense one's faults, which come first (`score`).
        where = "" if installed(model) else f", first at {first_fault(model, windows[broken[0]][None])}"
        raise GeosparseError(
            f"The loss is not finite ({what}): the model's weights or its dtype, {model.dtype}, overflow on this text"
            f"{where}; {ADVICE}."
        )
    return nll


def _check_tokens(windows: torch.Tensor) -> None:
    """Refuse what are no windows of token ids, or windows in which nothing is predicted."""
    if not isinstance(windows, torch.Tensor) or windows.dim() != 2 or windows.dtype not in (torch.int64, torch.int32):
        described = (
            f"{windows.dtype} {list(windows.shape)}" if isinstance(windows, torch.Tensor) else type(windows).__name__
        )
        raise GeosparseError(f"Windows are whole token ids [windows, length], found {described}: see token_windows.")
    if windows.shape[0] < 1 or windows.shape[1] < 2:
        raise GeosparseError(f"Give 1 window or more of 2 tokens or more, found {list(windows.shape)}.")


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`[R]` losses of `logits` `[R, V]`, on the CPU."""
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none").cpu()


def summary(nll: torch.Tensor) -> dict[str, float | None]:
    """Mean NLL (nats per token) and perplexity of `nll` `[W, L - 1]`."""
    mean = nll.double().mean().item()
    return {"nll": mean, "perplexity": finite_or_none(math.exp(mean) if mean < 700 else math.inf)}


def excess(dense: torch.Tensor, sparse: torch.Tensor) -> dict[str, Any]:
    """The paired difference sparse minus dense of `[W, L - 1]` NLLs, its 95 % interval over windows (Student's t)."""
    per_window = (sparse.double() - dense.double()).mean(1).tolist()
    interval = mean_interval(per_window)
    return {"excess_nll": math.fsum(per_window) / len(per_window), "excess_nll_interval": interval and list(interval)}


def sparse_nll(
    model: Any, plan: Plan, windows: torch.Tensor, what: str = "sparse", show_progress: bool = False
) -> tuple[torch.Tensor, Receipt]:
    """`token_nll` of the model sparsified by `plan`, with the receipt of exactly these windows."""
    with sparsified(model, plan) as receipt:
        nll = token_nll(model, windows, what, show_progress)
    return nll, receipt


def score(model: Any, plan: Plan | None, windows: torch.Tensor, show_progress: bool = False) -> dict[str, Any]:
    """Dense and, with a plan, sparse loss on the same windows.

    Args:
        model: A causal language model.
        plan: A plan for it, or None for dense alone.
        windows: `[W, L]` token ids.
        show_progress: Progress bars on a terminal.

    Returns:
        A JSON object: `windows`, `length`, `tokens`, `dense`, and `sparse` with the paired difference and density.
    """
    dense = token_nll(model, windows, "dense", show_progress)
    result: dict[str, Any] = {
        "windows": windows.shape[0],
        "length": windows.shape[1],
        "tokens": dense.numel(),
        "dense": summary(dense),
    } | served(model, plan)
    if plan is not None:
        nll, receipt = sparse_nll(model, plan, windows, "sparse", show_progress)
        result["sparse"] = summary(nll) | excess(dense, nll) | density(receipt)
    return result


def density(receipt: Receipt) -> dict[str, float | None]:
    """What a receipt says of the work: kept over visible tokens, and tokens kept per query and head."""
    return {"density": finite_or_none(receipt.density), "mean_kept": finite_or_none(receipt.mean_kept)}


def served(model: Any, plan: Plan | None) -> dict[str, str]:
    """What serves the attention of `model` under a plan, or without one, and why; for results."""
    if plan is None:
        return {"path": f"transformers ({model.config._attn_implementation})", "path_reason": "there is no plan"}
    weight = model.get_input_embeddings().weight
    path, why = serving(weight.device, weight.dtype)
    return {"path": path, "path_reason": why}


def policy_label(plan: Plan) -> str:
    """A plan in a few words, for tables and progress bars."""
    return f"{plan.policy}/{plan.tail} {plan.mean_keep:g}"


def check_windows(windows: torch.Tensor, requested: int | None) -> Sequence[str]:
    """A note where the text gave fewer windows than were asked for."""
    if requested is None or windows.shape[0] >= requested:
        return ()
    return (f"the text holds only {windows.shape[0]} windows of {windows.shape[1]} tokens, not {requested}",)
