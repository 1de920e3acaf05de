"""Peak memory of a long prompt and a few decode steps, sparse.

`python -m eval.runtime.memory gemma3-270m --context 32768 --mean-keep 128 --out FOLDER`: one process, one prompt.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.artifact import dump_json, write_json
from geosparse.ops import SELECTORS, TAILS
from geosparse.patch import PREFILLS

from .prompt import about, peak_bytes, resident_bytes, windows

SCHEMA = "geosparse.runtime.memory/1"


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


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m eval.runtime.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `geosparse profile`")
    parser.add_argument("--text", required=True, help="text of the prompt")
    parser.add_argument("--context", type=int, default=32768, help="tokens of the prompt (32768)")
    parser.add_argument("--new-tokens", type=int, default=16, help="decode steps (16)")
    parser.add_argument("--mean-keep", type=int, default=128, help="N of every head (128)")
    parser.add_argument("--selector", choices=SELECTORS, default="topn", help="how tokens are found (topn)")
    parser.add_argument("--tail", choices=TAILS, default="centroid", help="what stands for the rest (centroid)")
    parser.add_argument("--prefill", choices=PREFILLS, default="exact", help="how the prompt is read (exact)")
    parser.add_argument("--out", type=Path, help="folder for memory-CONTEXT.json")
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = gs.load_model(options.model, dtype="float32")
        prompt = windows(tokenizer, options.text, options.context, 1)[0]
        plan = gs.Plan.uniform(model, options.mean_keep, options.tail, selector=options.selector)
        result = about(SCHEMA, options.model, options.text)
        result |= {"context": options.context, "new_tokens": options.new_tokens, "mean_keep": options.mean_keep}
        result |= {"selector": options.selector, "tail": options.tail, "prefill": options.prefill}
        result |= measure(model, plan, prompt, options.new_tokens, options.prefill)
        if options.out is not None:
            write_json(options.out / f"memory-{options.context}.json", result)
        print(dump_json(result))
    except gs.GeosparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
