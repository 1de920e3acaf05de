"""What is asked of one model type: sparse with every token kept it is dense, in every way that it can be called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import geosparse as gs
from geosparse.errors import GeosparseError

from .tiny_configs import PARTS, SPECIAL, TEXT, tiny_config

TOLERANCE = 1e-4
FULL_BUDGET = 10**6
NEW_TOKENS = 6
CHUNKS = (TEXT // 2, TEXT // 2 + 3, TEXT)
FAULTS = ("raw", "different")
"""Outcomes that must not be; the others are "equal", "refused" and "not run" (by dense transformers)."""


class Letters:
    """As much of a tokenizer as a profile needs: a token per letter."""

    bos_token_id = eos_token_id = None
    pad_token_id = 0
    name_or_path = "letters"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """The token ids of `text`."""
        return {"input_ids": [3 + ord(letter) % 250 for letter in text]}


def tiny(kind: str) -> Any:
    """A random model of the type in fp32, with weights so large that attention is far from uniform."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = tiny_config(kind)
    torch.manual_seed(0)
    if kind in PARTS:
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(getattr(config, PARTS[kind]))
    else:
        model = AutoModelForCausalLM.from_config(config)
    model = model.float().eval().requires_grad_(False)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for weight in model.parameters():
        if weight.dim() >= 2 and id(weight) not in tables and weight.std() > 0:
            weight.mul_(float(weight.shape[-1] ** -0.5 / weight.std()))
    return model


def text(batch: int, length: int = TEXT, seed: int = 0) -> torch.Tensor:
    """Random token ids without special ones."""
    return torch.randint(
        3, 250, (batch, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int64, device="cpu"
    )


def _forward(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(text(1), use_cache=False).logits
    return logits


def _padded(model: Any) -> torch.Tensor:
    ids, mask = _left_padded()
    logits: torch.Tensor = model(ids, attention_mask=mask, use_cache=False).logits
    return logits[mask.bool()]


def _left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = text(2)
    mask = torch.ones_like(ids)
    mask[0, : TEXT // 4] = 0
    return ids * mask, mask


def _generated(model: Any, **options: Any) -> torch.Tensor:
    ids, mask = _left_padded()
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=SPECIAL["pad_token_id"],
        **options,
    )
    return torch.stack(output.logits)


def _static(model: Any) -> torch.Tensor:
    return _generated(model, cache_implementation="static", disable_compile=True)


def _chunks(model: Any) -> torch.Tensor:
    ids, start, cache, parts = text(1), 0, None, []
    for stop in CHUNKS:
        output = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
        start, cache = stop, output.past_key_values
        parts.append(output.logits[:, -1])
    return torch.stack(parts)


CHECKS: dict[str, Callable[[Any], torch.Tensor]] = {
    "forward": _forward,
    "padded": _padded,
    "generate": _generated,
    "static": _static,
    "chunks": _chunks,
}


def examine(kind: str) -> dict[str, Any]:
    """The outcome for one model type, with the sentence that says why it is not "equal" and the errors measured."""
    try:
        model = tiny(kind)
        with torch.no_grad():
            finite = bool(torch.isfinite(_forward(model)).all())
    except Exception as error:  # noqa: BLE001 - of transformers, whatever it is: the reason why there is nothing to compare with
        return {"outcome": "not run", "sentence": f"dense transformers: {in_words(error)}"}
    if not finite:
        return {"outcome": "not run", "sentence": "dense transformers: the logits of the random model are not finite"}
    dense, left_out = {}, {}
    for name, check in CHECKS.items():
        try:
            with torch.no_grad():
                dense[name] = check(model)
        except Exception as error:  # noqa: BLE001 - likewise
            left_out[name] = f"dense transformers: {in_words(error)}"
    result: dict[str, Any] = {"class": type(model).__name__, "errors": {}}
    if left_out:
        result["left_out"] = left_out
    try:
        plan = gs.Plan.uniform(model, FULL_BUDGET)
        with gs.sparsified(model, plan):
            pass
    except GeosparseError as error:
        return result | {"outcome": "refused", "sentence": str(error)}
    except Exception as error:  # noqa: BLE001 - what this command is here to find
        return result | {"outcome": "raw", "sentence": f"sparsify: {in_words(error)}"}
    refused, raw = {}, {}

    def measure(name: str, step: Callable[[], float]) -> None:
        try:
            result["errors"][name] = step()
        except GeosparseError as error:
            refused[name] = str(error)
        except Exception as error:  # noqa: BLE001 - what this command is here to find
            raw[name] = in_words(error)

    for name in dense:
        measure(name, lambda name=name: _difference(model, plan, CHECKS[name], dense[name]))  # type: ignore[misc]
    measure("score", lambda: _score(model, plan))
    measure("profile", lambda: _profile(model))
    again = _forward(model)
    measure("restored", lambda: _relative(again, dense["forward"]))
    different = {name: error for name, error in result["errors"].items() if not error <= TOLERANCE}
    for outcome, problems in (("raw", raw), ("different", different), ("refused", refused)):
        if problems:
            sentences = (f"{name}: {what}" for name, what in problems.items())
            return result | {"outcome": outcome, "sentence": "; ".join(sentences)}
    return result | {"outcome": "equal"}


def warm_up() -> None:
    """Run one type as far as no gradient is needed: what it imports need not be imported again by each child process.

    A process that has computed a gradient has threads of autograd, which do not survive a fork.
    """
    import geosparse.plan.make_plan
    import geosparse.profile.profiler  # noqa: F401

    model = tiny("llama")
    with torch.no_grad():
        for check in CHECKS.values():
            check(model)
        with gs.sparsified(model, gs.Plan.uniform(model, FULL_BUDGET)):
            _generated(model)


def _difference(model: Any, plan: gs.Plan, check: Callable[[Any], torch.Tensor], dense: torch.Tensor) -> float:
    with gs.sparsified(model, plan), torch.no_grad():
        return _relative(check(model), dense)


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest number; infinite where shapes or infinities differ."""
    if actual.shape != expected.shape:
        return math.inf
    usual = torch.isfinite(expected)
    if not bool((torch.isfinite(actual) == usual).all()):
        return math.inf
    return float((actual - expected)[usual].abs().max() / expected[usual].abs().max())


def _score(model: Any, plan: gs.Plan) -> float:
    """The dense loss against the loss of the logits, and the sparse against the dense."""
    windows = text(2, seed=1)
    scored = gs.score(model, plan, windows)
    with torch.no_grad():
        logits = model(windows, use_cache=False).logits[:, :-1]
    loss = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten()))
    return float(max(abs(scored["dense"]["nll"] - loss), abs(scored["sparse"]["nll"] - loss)) / loss)


def _profile(model: Any) -> float:
    """0 where a profile is made of finite numbers and a plan can be made of it, infinite otherwise."""
    config = gs.ProfileConfig(TEXT, 2, queries=8, budgets=(4, 16), random_sets=1, geometry_queries=2, kinds=())
    profile = gs.profile_model(model, Letters(), ["some words of text " * 40], config)
    gs.make_plan(profile, 8)
    numbers = (value for value in vars(profile).values() if isinstance(value, torch.Tensor))
    return 0.0 if all(bool(torch.isfinite(each.double()).all()) for each in numbers) else math.inf


def in_words(error: Exception) -> str:
    """An exception in one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"[:300]
