"""Speed: prefill and token-by-token decode, dense against sparse, in one run and behind a correctness gate.

Tokens are decoded in turns: dense from transformers' dynamic cache (the baseline), dense from a `SparseCache`, dense
with our products of weights too, and sparse with both.
"""

from __future__ import annotations

import copy
import operator
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError
from ..hf.adapters import inner_model
from ..hf.held import held
from ..hf.layers import attention_layers, check_context, input_device
from ..ops import SELECTORS, best_path, cpu
from ..ops.spec import per_head
from ..plan.cost_model import TokenBytes, dense_bytes, layer_bytes
from ..sparsify.linear import products
from ..sparsify.patch import sparsified
from ..utils.bounds import check_whole
from ..utils.progress import track
from ..utils.provenance import device_name
from .loss import density, served

WARMUP = 2


@dataclass
class SpeedRun:
    """One way to decode a prompt: what decodes, and what decoding gave.

    Attributes:
        model: The model, dense or sparsified.
        cache: The filled cache of the prompt.
        token: `[1, 1]`, the first new token.
        plan: What the model follows; None for dense attention.
        tokens: The ids decoded, greedily.
        seconds: Of each decode step.
    """

    model: Any
    cache: Any
    token: torch.Tensor
    plan: Plan | None = None
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Decode one more token and time it."""
        self.tokens.append(int(self.token))
        start = _now(self.token.device)
        output = self.model(self.token, past_key_values=self.cache, use_cache=True)
        self.seconds.append(_now(self.token.device) - start)
        self.token = output.logits[:, -1:].argmax(-1)

    @property
    def ms_per_token(self) -> float:
        """Median milliseconds of a step, without those of the warm-up."""
        return 1e3 * median(self.seconds[WARMUP:])

    def speed(self, model: Any, context: int) -> dict[str, float]:
        """Time of a step, modelled bytes that it reads at `context` tokens, and their rate.

        Args:
            model: The dense model, whose weights are read.
            context: Visible tokens.
        """
        read = _bytes_per_token(model, context, self.plan)
        return {
            "ms_per_token": self.ms_per_token,
            "tokens_per_second": 1e3 / self.ms_per_token,
            "bytes_per_token": read,
            "gb_per_second": read / self.ms_per_token / 1e6,
        }

    def same_tokens(self, other: SpeedRun) -> int:
        """How many of the tokens are those of `other`."""
        return sum(map(operator.eq, self.tokens, other.tokens))


def bench(
    model: Any, plan: Plan | None, prompt: torch.Tensor, new_tokens: int, show_progress: bool = False
) -> dict[str, Any]:
    """Time prefill and greedy decode of the same prompt, dense and sparse.

    Args:
        model: A causal language model, not sparsified.
        plan: A plan for it; None: dense attention only.
        prompt: `[T]` token ids.
        new_tokens: Decode steps to time, after two that are not counted.
        show_progress: Progress bars on a terminal.

    Returns:
        A JSON object: per variant seconds of prefill, median milliseconds per decoded token, tokens/s, modelled bytes
        read per token (weights plus what `plan.cost_model` says of the cache) and the GB/s they amount to; the ratios
        of decode speeds, dense from a `SparseCache` (`cache_ratio`), dense with our products too (`products_ratio`) and
        sparse (`ratio`) over the baseline, and how many of the tokens are the baseline's; the error of the correctness
        gate.

    Raises:
        GeosparseError: Sparse attention with every token kept does not reproduce the dense logits here.
    """
    new_tokens = check_whole("new_tokens", new_tokens, 1)
    model = inner_model(model)
    check_context(model, len(prompt) + new_tokens + WARMUP, "give a smaller --context or --new-tokens")
    device = input_device(model)
    ids = prompt[None].to(device)
    gate = _gate(model, ids)
    dense_prefill, cache, token = _prefill(model, ids)
    from ..sparsify.cache.sparse_cache import SparseCache

    in_place, beside = (SparseCache.from_cache(cache, model.config) for _ in range(2))
    ours_dense = twin_of(model)
    with products(ours_dense), _sparse_twin(model, plan) as (twin, receipt):
        dense = SpeedRun(model, cache, token)
        in_cache = SpeedRun(model, in_place, token)
        with_products = SpeedRun(ours_dense, beside, token)
        runs = {"dense": dense, "dense, SparseCache": in_cache, "dense, own products": with_products}
        prefill: dict[str, Any] = {}
        if plan is not None:
            prefill, ours, first = _prefill(twin, ids)
            receipt.reset()
            sparse = runs[f"sparse {plan.mean_keep:g}"] = SpeedRun(twin, ours, first, plan)
        _decode(list(runs.values()), new_tokens, ", ".join(runs), show_progress)
    context, decoded = ids.shape[1], len(dense.tokens)
    result = {
        "context": context,
        "new_tokens": new_tokens,
        "device": device_name(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "baseline": f"transformers, {model.config._attn_implementation} attention, dynamic cache",
        "dense": dense_prefill | dense.speed(model, context),
        "dense_sparse_cache": in_cache.speed(model, context)
        | {"same_tokens": in_cache.same_tokens(dense), "tokens": decoded},
        "dense_own_products": with_products.speed(model, context)
        | {"same_tokens": with_products.same_tokens(dense), "tokens": decoded},
        "cache_ratio": dense.ms_per_token / in_cache.ms_per_token,
        "products_ratio": dense.ms_per_token / with_products.ms_per_token,
        "gate": gate,
        "note": f"single queries through {_path(model)}",
    } | served(model, plan)
    if plan is None:
        return result
    planned = {"policy": plan.policy, "tail": plan.tail, "mean_keep": plan.mean_keep}
    return result | {
        "sparse": prefill | sparse.speed(model, context) | planned | density(receipt),
        "ratio": dense.ms_per_token / sparse.ms_per_token,
        "same_tokens": sparse.same_tokens(dense),
        "note": "; ".join([f"selected through {_path(model)}", *_read_by(plan), *receipt.notes]),
    }


@contextmanager
def _sparse_twin(model: Any, plan: Plan | None) -> Iterator[tuple[Any, Any]]:
    """A sparsified copy of `model` that shares its tensors, and its receipt; (None, None) without a plan."""
    if plan is None:
        yield None, None
        return
    twin = twin_of(model)
    with sparsified(twin, plan) as receipt:
        yield twin, receipt


def twin_of(model: Any) -> Any:
    """A copy of `model` that shares its tensors."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _read_by(plan: Plan) -> list[str]:
    """In words, what the heads of each selector read to find their tokens."""
    layers = range(plan.model.layers)
    counts = Counter(selector for layer in layers for selector in per_head(plan.selectors_of(layer), plan.model.heads))
    return [f"{selector} ({count} heads): {SELECTORS[selector].reads}" for selector, count in counts.items()]


def _path(model: Any) -> str:
    """What serves decode on this model's device, in words."""
    probe = torch.empty(1, 1, 1, 1, dtype=model.dtype, device=model.device)
    names = {"cpu": f"C++ kernels ({cpu.isa()})", "torch": "plain PyTorch", "triton": "Triton kernels"}
    return names[best_path(probe, probe, probe, None)]


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


def _prefill(model: Any, ids: torch.Tensor) -> tuple[dict[str, Any], Any, torch.Tensor]:
    """Seconds of one pass over `ids` `[1, T]`, the cache that it filled, and the first new token `[1, 1]`."""
    with torch.no_grad():
        start = _now(ids.device)
        output = model(ids, use_cache=True, logits_to_keep=1)
        seconds = _now(ids.device) - start
    return {"prefill_seconds": seconds}, output.past_key_values, output.logits[:, -1:].argmax(-1)


def _decode(runs: list[SpeedRun], new_tokens: int, title: str, show_progress: bool) -> None:
    """Decode one token of each run in turn, so that what the machine does meanwhile hits all."""
    with torch.no_grad():
        for _ in track(range(new_tokens + WARMUP), title, show_progress):
            for run in runs:
                run.step()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes_per_token(model: Any, context: int, plan: Plan | None) -> float:
    """Modelled bytes per decoded token: the weights, and what `plan.cost_model` says of the cache."""
    total: float = sum(part.nbytes for _, part in held(model) if isinstance(part, torch.Tensor))
    for index, layer in enumerate(attention_layers(model)):
        seen = min(context, layer.window or context)
        rows = TokenBytes(layer.key_dim, layer.value_dim, model.dtype.itemsize)
        if plan is None:
            total += dense_bytes(layer.kv_heads, [seen], rows)
        else:
            n_keep = plan.budgets.of(index).at(torch.tensor(seen, dtype=torch.int64, device="cpu"))
            total += layer_bytes(n_keep, plan.selectors_of(index), layer.kv_heads, seen, rows)
    return total
