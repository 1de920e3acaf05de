"""Does an index that grows token by token stay the index of its keys, and memory flat?

`python -m eval.runtime.drift smollm2-135m --text TEXT --context 6000 --new-tokens 2000 --selector lowbit --out FOLDER`:
greedy decoding behind a densely read prompt; at the end the index of every layer is held, bit for bit, against one
built from the final keys, the sum of values against a fresh sum, and the next logits against those of the new index.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.artifact import dump_json, write_json
from geosparse.cache import GrowingLayer
from geosparse.ops import SELECTORS, TAILS, KeyIndex

from .prompt import about, resident_bytes, windows

SCHEMA = "geosparse.runtime.drift/1"
EVERY = 100


def index_difference(ours: KeyIndex, key: torch.Tensor) -> int:
    """Numbers of the complete pages in which `ours` differs from an index built from `key` in one go."""
    fresh = KeyIndex(ours.first, ours.bits).extend(key)
    if fresh.pages != ours.pages:
        return sum(part.numel() for part in (fresh.low, fresh.high, fresh.codes))
    different = 0
    for row, pages in enumerate(fresh.pages):
        for one, other in ((ours.low, fresh.low), (ours.high, fresh.high), (ours.codes, fresh.codes)):
            different += int((one[row, :, :pages] != other[row, :, :pages]).sum())
    return different


def examine(cache: Any) -> dict[str, Any]:
    """Index and value sums of every growing layer against new ones, and bytes held per byte of keys and values."""
    layers = [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
    found = [layer.slot.index for layer in layers]
    indexed = [(index, layer.keys) for index, layer in zip(found, layers, strict=True) if index is not None]
    sums = [
        float((layer._value_sum - layer.values.double().sum(-2)).abs().max() / layer.values.abs().max())
        for layer in layers
    ]
    needed = sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in (layer.keys, layer.values))
    held = sum(
        buffer.numel() * buffer.element_size()
        for layer in layers
        for buffer in (layer._key_buffer, layer._value_buffer)
        if buffer is not None
    )
    return {
        "layers": len(layers),
        "indexed_layers": len(indexed),
        "pages": max((max(index.pages) for index, _ in indexed), default=0),
        "index_numbers_different": sum(index_difference(index, keys) for index, keys in indexed),
        "value_sum_error": max(sums),
        "cache_over_keys_and_values": held / needed,
        "index_over_keys_and_values": sum(index.bytes() for index, _ in indexed) / needed,
    }


def decode(model: Any, prompt: torch.Tensor, plan: gs.Plan, new_tokens: int) -> dict[str, Any]:
    """Decode `new_tokens` behind `prompt` `[T]` and examine what the cache became."""
    memory, times = [], []
    with gs.sparsified(model, plan, prefill="dense") as receipt, torch.no_grad():
        output = model(prompt[None], use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        receipt.reset()
        for step in range(new_tokens):
            if step % EVERY == 0:
                memory.append(resident_bytes())
            token = output.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            output = model(token, past_key_values=cache, use_cache=True)
            times.append(time.perf_counter() - start)
        memory.append(resident_bytes())
        result = examine(cache)
        token = output.logits[:, -1:].argmax(-1)
        twin = copy.deepcopy(cache)
        for layer in twin.layers:
            if isinstance(layer, GrowingLayer):
                layer.slot.index = None
        grown, rebuilt = (model(token, past_key_values=each, use_cache=True).logits for each in (cache, twin))
    times.sort()
    return result | {
        "logit_difference": float((grown - rebuilt).abs().max()),
        "resident_bytes": memory,
        "median_ms_per_token": 1e3 * times[len(times) // 2],
        "mean_kept": receipt.mean_kept,
        "notes": receipt.notes,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m eval.runtime.drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `geosparse profile`")
    parser.add_argument("--text", default="pydoc:test", help="text of the prompt")
    parser.add_argument("--context", type=int, default=6000, help="tokens of the prompt (6000)")
    parser.add_argument("--new-tokens", type=int, default=2000, help="decode steps (2000)")
    parser.add_argument("--mean-keep", type=int, default=64, help="N of every head (64)")
    parser.add_argument("--selector", choices=SELECTORS, default="lowbit", help="how tokens are found (lowbit)")
    parser.add_argument("--tail", choices=TAILS, default="centroid", help="what stands for the rest (centroid)")
    parser.add_argument("--out", type=Path, help="folder for drift.json")
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = gs.load_model(options.model, dtype="float32")
        prompt = windows(tokenizer, options.text, options.context, 1)[0]
        plan = gs.Plan.uniform(model, options.mean_keep, options.tail, selector=options.selector)
        result = about(SCHEMA, options.model, options.text)
        result |= {"context": options.context, "new_tokens": options.new_tokens, "mean_keep": options.mean_keep}
        result |= {"selector": options.selector, "tail": options.tail}
        result |= decode(model, prompt, plan, options.new_tokens)
        if options.out is not None:
            write_json(options.out / "drift.json", result)
        print(dump_json(result))
    except gs.GeosparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
