"""What profiling a 7B shape costs on the GPU, against one forward and backward pass over the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import geosparse as gs

from ..benchmarks.profile_cost import pass_once
from . import timing
from .shapes import SHAPES


class ByteTokenizer:
    """A token per byte: what a model of random weights needs of a tokenizer."""

    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """The bytes of `text`."""
        return {"input_ids": list(text.encode())}


def measure(name: str = "llama-2-7b", length: int = 1024, layers: int | None = None) -> dict[str, Any]:
    """Seconds and peak memory of a pass and of a profile of one window; random weights, built on the device."""
    import transformers

    shape = SHAPES[name]
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.dim,
        max_position_embeddings=max(4096, length),
    )
    device = timing.gpu()
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    text = gs.load_texts("pydoc:calibration")
    tokenizer = ByteTokenizer()
    window = gs.token_windows(tokenizer, text, length, 1)[0].to(device)
    config = gs.ProfileConfig(length=length, windows=1, second_pass=False, kinds=())
    runs: dict[str, Callable[[], Any]] = {
        "pass": lambda: pass_once(model, window),
        "profile": lambda: gs.profile_model(
            model, tokenizer, text, gs.ProfileConfig(length=length, windows=1, second_pass=False, kinds=())
        ),
    }
    facts: dict[str, Any] = {"shape": name, "layers": layers or shape.layers, "length": length}
    pass_once(model, window)
    for what, run in runs.items():
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        facts[what] = {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated()}
    facts["profile_over_pass"] = facts["profile"]["seconds"] / facts["pass"]["seconds"]
    return facts
