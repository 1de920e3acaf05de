"""Speed: prefill and token-by-token decode, dense against sparse, in one run and behind a correctness gate."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from .architecture import attention_layers, check_context
from .errors import GeosparseError
from .patch import sparsified
from .plan import Plan
from .progress import track
from .provenance import device_name
from .scoring import density

WARMUP = 2


def bench(model: Any, plan: Plan, prompt: torch.Tensor, new_tokens: int, show_progress: bool = False) -> dict[str, Any]:
    """Time prefill and greedy decode of the same prompt, dense and sparse.

    Args:
        model: A causal language model, not sparsified.
        plan: A plan for it.
        prompt: `[T]` token ids.
        new_tokens: Decode steps to time, after two that are not counted.
        show_progress: Progress bars on a terminal.

    Returns:
        A JSON object: per variant seconds of prefill, median milliseconds per decoded token, tokens/s, modelled bytes
        read per token (weights plus the keys and values that the path really reads) and the GB/s they amount to;
        the ratio of decode speeds, sparse over dense; the error of the correctness gate.

    Raises:
        GeosparseError: Sparse attention with every token kept does not reproduce the dense logits here.
    """
    if new_tokens < 1:
        raise GeosparseError(f"Time at least 1 new token, found {new_tokens}.")
    check_context(model, len(prompt) + new_tokens + WARMUP, "give a smaller --context or --new-tokens")
    device = model.get_input_embeddings().weight.device
    ids = prompt[None].to(device)
    gate = _gate(model, ids)
    dense = _run(model, ids, new_tokens, "dense", show_progress)
    with sparsified(model, plan) as receipt:
        sparse = _run(model, ids, new_tokens, f"sparse {plan.mean_keep:g}", show_progress)
    bytes_read = _bytes_per_token(model, ids.shape[1])
    for variant in (dense, sparse):
        variant["bytes_per_token"] = bytes_read
        variant["gb_per_second"] = bytes_read / variant["ms_per_token"] / 1e6
    same = sum(a == b for a, b in zip(dense.pop("tokens"), sparse.pop("tokens"), strict=True))
    return {
        "context": ids.shape[1],
        "new_tokens": new_tokens,
        "device": device_name(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "baseline": f"transformers, {model.config._attn_implementation} attention, dynamic cache",
        "dense": dense,
        "sparse": sparse | {"policy": plan.policy, "tail": plan.tail, "mean_keep": plan.mean_keep} | density(receipt),
        "ratio": dense["ms_per_token"] / sparse["ms_per_token"],
        "same_tokens": same,
        "gate": gate,
        "note": "reference path in plain PyTorch: every decode step scores every key, so it shows semantics, not speed",
    }


def _gate(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """Logits of the last token through a cache, dense against sparse with an unlimited budget."""
    cut = ids[:, -min(ids.shape[1], 256) :]
    with torch.no_grad():
        dense = _last_logits(model, cut)
        with sparsified(model, Plan.uniform(model, cut.shape[1])):
            ours = _last_logits(model, cut)
    error = (dense - ours).abs().max().item()
    # Two orders of summation over a stack of layers; fp32 shows about 1e-5, a wrong token orders of magnitude more.
    allowed = 1e-4 if model.dtype == torch.float32 else 0.05 * dense.abs().max().item()
    if not error <= allowed:
        raise GeosparseError(f"The correctness gate failed: logits differ by {error:.2g}, more than {allowed:.2g}.")
    return {"max_abs_logit_difference": error, "allowed": allowed}


def _last_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    logits: torch.Tensor = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1].float()
    return logits


def _run(model: Any, ids: torch.Tensor, new_tokens: int, what: str, show_progress: bool) -> dict[str, Any]:
    """Prefill `ids` `[1, T]`, then decode greedily; times of each."""
    tokens, times = [], []
    with torch.no_grad():
        start = _now(ids.device)
        output = model(ids, use_cache=True, logits_to_keep=1)
        prefill = _now(ids.device) - start
        for _ in track(range(new_tokens + WARMUP), what, show_progress):
            token = output.logits[:, -1:].argmax(-1)
            tokens.append(token.item())
            start = _now(ids.device)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            times.append(_now(ids.device) - start)
    step = median(times[WARMUP:])
    return {
        "prefill_seconds": prefill,
        "ms_per_token": 1e3 * step,
        "tokens_per_second": 1 / step,
        "tokens": tokens,
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes_per_token(model: Any, context: int) -> int:
    """Weights once, and every key and value that a layer's queries may see: what both paths read per decoded token."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cached = sum(
        layer.kv_heads * (layer.key_dim + layer.value_dim) * min(context, layer.window or context)
        for layer in attention_layers(model)
    )
    return int(weights + cached * model.dtype.itemsize)
