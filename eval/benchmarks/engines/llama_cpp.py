"""Decoding compared with llama.cpp: the same weights in F16, the same prompt, the same threads.

`python -m eval.benchmarks.engines.llama_cpp MODEL.gguf --text FILE --plan plan.json --out FOLDER`: a model from a
`.gguf` file is written once more with its matrices in F16 and decoded by llama.cpp, dense, before and after
`geosparse bench` with the plan. Needs `pip install xllamacpp`, which brings llama.cpp.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.hf.loading import resolve
from geosparse.measure.speed import bench

from ..prompt import windows
from ..shared_command import Add, Finding, Options, add_context, command

ROUNDS = 3


def write_f16(source: Path, target: Path) -> None:
    """The `.gguf` file `source` once more, with matrices in F16 and vectors in F32."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, element)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights.astype(np.float32 if weights.ndim < 2 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serving(gguf: Path, context: int, threads: int) -> Any:
    """llama.cpp with one model; F16 cache, its own choice of attention."""
    try:
        import xllamacpp
    except ImportError as error:
        raise gs.GeosparseError("llama.cpp is not installed: pip install xllamacpp.") from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx = context
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = 0
    return xllamacpp.Server(parameters)


def decoded(server: Any, prompt: list[int], new_tokens: int) -> dict[str, float]:
    """Milliseconds per token of ROUNDS continuations of one prompt, which is read in the first only."""
    request = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "cache_prompt": True, "ignore_eos": True}
    timings = [_complete(server, request)["timings"] for _ in range(ROUNDS)]
    return {
        "ms_per_token": statistics.median(timing["predicted_per_token_ms"] for timing in timings),
        "prefill_seconds": timings[0]["prompt_ms"] / 1e3,
        "prompt_tokens": timings[0]["prompt_n"],
    }


def _complete(server: Any, request: dict[str, Any]) -> dict[str, Any]:
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    if "timings" not in answer:
        raise gs.GeosparseError(f"llama.cpp answers without timings: {str(answer)[:200]}.")
    return dict(answer)


def study(options: Options, model: Any, tokenizer: Any) -> Iterator[Finding]:
    """One prompt: llama.cpp, ours in every dtype, llama.cpp again."""
    source = resolve(options.model)
    if not isinstance(source, Path) or source.suffix != ".gguf":
        raise gs.GeosparseError(f"llama.cpp reads .gguf files, and {options.model} is none: give the path of one.")
    prompt = windows(tokenizer, options.text, options.context, 1)
    plan = gs.Plan.load(options.plan)
    room = options.context + options.new_tokens + 8
    ours: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "f16.gguf"
        write_f16(source, gguf)
        server = serving(gguf, room, torch.get_num_threads())
        runs = [decoded(server, prompt[0].tolist(), options.new_tokens)]
        for dtype in options.dtypes:
            cast, _ = gs.load_model(options.model, dtype=dtype)
            ours[dtype] = bench(cast, plan, prompt[0], options.new_tokens)
        runs.append(decoded(server, prompt[0].tolist(), options.new_tokens))
    theirs = statistics.mean(run["ms_per_token"] for run in runs)
    yield Finding(
        f"llama-cpp-{options.context}.json",
        {"context": options.context, "threads": torch.get_num_threads(), "llama.cpp F16": runs, "geosparse": ours}
        | {"ratio": {dtype: theirs / result["sparse"]["ms_per_token"] for dtype, result in ours.items()}},
    )


def flags(add: Add) -> None:
    """Those of this study."""
    add_context(add, 8000, 32)
    add("--plan", type=Path, required=True, help="plan of the sparse side")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of our side (float32 bfloat16)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return command("eval.benchmarks.engines.llama_cpp", "llama_cpp", __doc__, flags, study, arguments)


if __name__ == "__main__":
    sys.exit(main())
