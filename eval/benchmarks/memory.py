"""Peak memory of a long prompt and a few decode steps, sparse.

`python -m eval.benchmarks.memory gemma3-270m --context 32768 --mean-keep 128 --out FOLDER`: one process, one prompt.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

import geosparse as gs
from geosparse.sparsify.patch import PREFILLS

from .process_memory import peak_bytes, resident_bytes
from .prompt import windows
from .shared_command import Add, Finding, Options, add_context, add_uniform, command, facts, uniform


def measure(model: Any, plan: gs.Plan, prompt: torch.Tensor, new_tokens: int, prefill: str) -> dict[str, Any]:
    """Prefill `prompt` `[T]` and decode greedily: bytes and seconds of each part."""
    loaded = resident_bytes()
    with gs.sparsified(model, plan, prefill) as receipt, torch.no_grad():
        start = time.perf_counter()
        output = model(prompt[None], use_cache=True, logits_to_keep=1)
        filled, peak = time.perf_counter(), peak_bytes()
        for _ in range(new_tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
        end = time.perf_counter()
    return {
        "loaded_bytes": loaded,
        "prefill_peak_bytes": peak,
        "peak_bytes": peak_bytes(),
        "end_bytes": resident_bytes(),
        "prefill_seconds": filled - start,
        "decode_ms_per_token": 1e3 * (end - filled) / new_tokens,
        "density": receipt.density,
        "notes": receipt.notes,
    }


def study(options: Options, model: Any, tokenizer: Any) -> Iterator[Finding]:
    """One prompt, one plan."""
    prompt = windows(tokenizer, options.text, options.context, 1)[0]
    measured = measure(model, uniform(model, options), prompt, options.new_tokens, options.prefill)
    given = facts(options, "context", "new_tokens", "mean_keep", "selector", "tail", "prefill")
    yield Finding(f"memory-{options.context}.json", given | measured)


def flags(add: Add) -> None:
    """Those of this study."""
    add_context(add, 32768, 16)
    add_uniform(add, 128, "topn")
    add("--prefill", choices=PREFILLS, default="exact", help="how the prompt is read (exact)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return command("eval.benchmarks.memory", "memory", __doc__, flags, study, arguments)


if __name__ == "__main__":
    sys.exit(main())
