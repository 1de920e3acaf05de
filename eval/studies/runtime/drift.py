"""Does an index that grows token by token stay the index of its keys, and memory flat?

`python -m eval.studies.runtime.drift smollm2-135m --text TEXT --context 6000 --new-tokens 2000 --selector lowbit --out
FOLDER`: greedy decoding behind a densely read prompt; at the end the index of every layer is held, bit for bit, against
one built from the final keys, the sum of values against a fresh sum, and the next logits against those of the new
index.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

import geosparse as gs
from geosparse.ops import KeyIndex
from geosparse.sparsify.cache.growing import GrowingLayer

from ...benchmarks.process_memory import resident_bytes
from ...benchmarks.prompt import windows
from ...benchmarks.shared_command import Add, Finding, Options, add_context, add_uniform, command, facts, uniform

MEMORY_INTERVAL = 100  # decode steps between two looks at the memory


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
    indices = [layer.slot.index for layer in layers]
    indexed = [(index, layer.keys) for index, layer in zip(indices, layers, strict=True) if index is not None]
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


def decode_and_examine(model: Any, prompt: torch.Tensor, plan: gs.Plan, new_tokens: int) -> dict[str, Any]:
    """Decode `new_tokens` behind `prompt` `[T]` and examine what the cache became."""
    memory, times = [], []
    with gs.sparsified(model, plan, prefill="dense") as receipt, torch.no_grad():
        output = model(prompt[None], use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        receipt.reset()
        for step in range(new_tokens):
            if step % MEMORY_INTERVAL == 0:
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


def study(options: Options, model: Any, tokenizer: Any) -> Iterator[Finding]:
    """One prompt, one plan."""
    prompt = windows(tokenizer, options.text, options.context, 1)[0]
    measured = decode_and_examine(model, prompt, uniform(model, options), options.new_tokens)
    yield Finding("drift.json", facts(options, "context", "new_tokens", "mean_keep", "selector", "tail") | measured)


def flags(add: Add) -> None:
    """Those of this study."""
    add_context(add, 6000, 2000)
    add_uniform(add, 64, "lowbit")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return command("eval.studies.runtime.drift", "drift", __doc__, flags, study, arguments, "pydoc:test")


if __name__ == "__main__":
    sys.exit(main())
