"""Many requests, many patches, many steps: `python -m eval.trust.load MODEL --out FILE`.

Threads that generate from one sparsified model at once give the tokens of a serial run; two models with different plans
do not mix; patching and restoring leaves nothing behind; memory stays flat over thousands of decode steps.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import check_writable, write_json
from geosparse.utils.provenance import device_name, versions

from ..benchmarks.process_memory import resident_bytes
from ..harness.threads import torch_threads

SCHEMA = "geosparse.eval.load/1"


def varied_plan(model: Any, seed: int = 0) -> gs.Plan:
    """N from 1 to 24, exact and low-bit selection, all tails, drawn at random over heads."""
    from dataclasses import replace

    plan = gs.Plan.uniform(model, 8, tail="centroid")
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, plan.n_keep.shape, generator=generator, dtype=torch.int64, device="cpu")

    return replace(plan, n_keep=draw(1, 25), tail="best", head_tails=draw(0, 3), head_selectors=draw(0, 2))


def prompts_of(vocabulary: int, count: int, seed: int = 0) -> list[torch.Tensor]:
    """Random prompts `[1, T]`, T from 5 to 60."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 61, (count,), generator=generator, dtype=torch.int64, device="cpu").tolist()
    return [
        torch.randint(3, vocabulary, (1, length), generator=generator, dtype=torch.int64, device="cpu")
        for length in lengths
    ]


def continued(model: Any, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    """The tokens that `model.generate` adds greedily."""
    with torch.no_grad():
        out = model.generate(prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    tokens: list[int] = out[0, prompt.shape[1] :].tolist()
    return tokens


def threads_equal_serial(
    models: Sequence[Any], plans: Sequence[gs.Plan], prompts: Sequence[torch.Tensor], threads: int, new_tokens: int
) -> dict[str, Any]:
    """Every prompt on every model, one after the other and then from `threads` threads at once."""
    receipts = [gs.sparsify_(model, plan) for model, plan in zip(models, plans, strict=True)]
    try:
        work = [(model, prompt) for prompt in prompts for model in models]
        serial = [continued(model, prompt, new_tokens) for model, prompt in work]
        counts = [receipt.kept.clone() for receipt in receipts]
        for receipt in receipts:
            receipt.reset()
        with ThreadPoolExecutor(threads) as pool:
            parallel = list(pool.map(lambda item: continued(item[0], item[1], new_tokens), work))
        for receipt in receipts:
            receipt.verify()
    finally:
        for model in models:
            gs.restore_(model)
    different = sum(a != b for a, b in zip(serial, parallel, strict=True))
    same_counts = all(torch.equal(r.kept, count) for r, count in zip(receipts, counts, strict=True))
    return {"requests": len(work), "threads": threads, "different": different, "same_counts": same_counts}


def patch_rounds(model: Any, plan: gs.Plan, rounds: int, prompt: torch.Tensor) -> dict[str, Any]:
    """Patch, run, restore, `rounds` times: what changed in the model and in memory since the second round."""
    with torch.no_grad():
        before, names = model(prompt).logits, _residue(model)
        tensors = resident = 0
        for turn in range(rounds):
            with gs.sparsified(model, plan):
                model(prompt)
            if turn == 1:
                tensors, resident = _tensors(), resident_bytes()
        grown = {"tensors": _tensors() - tensors, "bytes": resident_bytes() - resident}
        same = torch.equal(model(prompt).logits, before)
    return {"rounds": rounds, "grown": grown, "same_logits": same, "residue": sorted(_residue(model) ^ names)}


def _residue(model: Any) -> set[str]:
    """Everything that hangs on the model and its modules beside what a fresh one has."""
    marks = {f"config {model.config._attn_implementation}"}
    for name, module in model.named_modules():
        marks |= {f"{name}.{key}" for key in vars(module)}
        marks |= {f"{name} {kind} {len(hooks)}" for kind, hooks in vars(module).items() if kind.endswith("_hooks")}
    return marks


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def decode_steps(model: Any, plan: gs.Plan, steps: int) -> dict[str, Any]:
    """Decode `steps` tokens one by one: resident memory less the cache's own bytes, a quarter in and at the end."""
    marks: dict[int, int] = {}
    token = torch.tensor([[3]], dtype=torch.int64, device="cpu")
    start = time.perf_counter()
    with gs.sparsified(model, plan) as receipt, torch.no_grad():
        output = model(token, use_cache=True)
        for step in range(1, steps + 1):
            if step in (steps // 4, steps):
                gc.collect()
                marks[step] = resident_bytes() - _cache_bytes(output.past_key_values)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
    first, last = marks.values()
    seconds = round(time.perf_counter() - start, 1)
    return {"steps": steps, "grown_bytes": last - first, "mean_kept": receipt.mean_kept, "seconds": seconds}


def _cache_bytes(cache: Any) -> int:
    """Bytes of the buffers behind keys and values, room to spare included."""
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    return sum(storages.values())


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write."""
    return run_command("eval.trust.load", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m eval.trust.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `geosparse profile`")
    parser.add_argument("--prompts", type=whole(1), default=200, help="prompts for the threads (200)")
    parser.add_argument("--threads", type=whole(1), default=4, help="threads (4)")
    parser.add_argument("--new-tokens", type=whole(1), default=8, help="tokens per prompt (8)")
    parser.add_argument("--rounds", type=whole(1), default=100, help="of patching and restoring (100)")
    parser.add_argument("--steps", type=whole(1), default=10_000, help="decode steps (10000)")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    if options.out is not None:
        check_writable(options.out)
    with torch_threads(1):
        (first, _), (second, _) = (gs.load_model(options.model) for _ in range(2))
        prompts = prompts_of(first.config.vocab_size, options.prompts)
        plans = [varied_plan(first, 0), varied_plan(second, 1)]
        one = threads_equal_serial([first], plans[:1], prompts, options.threads, options.new_tokens)
        two = threads_equal_serial([first, second], plans, prompts[:20], options.threads, options.new_tokens)
        result = {
            "schema": SCHEMA,
            "model": options.model,
            "one_model": one,
            "two_models": two,
            "patching": patch_rounds(first, plans[0], options.rounds, prompts[0]),
            "decoding": decode_steps(first, plans[0], options.steps),
            "device": device_name("cpu"),
            "provenance": versions(),
        }
    if options.out is not None:
        write_json(options.out, result)
    print(json_text(result), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
