"""What a profile costs: wall time and peak memory against one forward plus backward pass over the same tokens.

`python -m eval.benchmarks.profile_cost smollm2-135m --length 4096`: each pass and each profile runs in a process of its
own, in turn, so that their peaks of memory do not mix. Two profiles are measured: the geometry (`profile --one-pass`),
which the limits are about, and the default one, which runs at most four windows a second time for the planner.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from geosparse import GeosparseError
from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import write_json

SCHEMA = "geosparse.geometry.cost/1"
MAX_TIME_RATIO = 2.0
MAX_EXTRA_BYTES = 1 << 30
WARM_UP_TOKENS = 256
KINDS = {"pass": "pass", "profile": "profile --one-pass", "planning": "profile"}


def pass_once(model: Any, window: Any) -> float:
    """Forward with SDPA, the model's own loss, backward to the embedded input; returns the loss."""
    import torch

    def ask(module: Any, inputs: Any, output: Any) -> Any:
        return output.detach().requires_grad_(True)

    hook = model.get_input_embeddings().register_forward_hook(ask)
    try:
        with torch.enable_grad():
            loss = model(window[None], labels=window[None], use_cache=False).loss
            loss.backward()
    finally:
        hook.remove()
    return float(loss.item())


def measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Run the pass or the profile once in this process: seconds on the wall and of the processors, peak RSS."""
    import torch

    import geosparse as gs

    torch.set_num_threads(options.threads)
    model, tokenizer = gs.load_model(options.model, dtype="float32")
    texts = gs.load_texts(options.text)
    model.set_attn_implementation("sdpa")
    window = gs.token_windows(tokenizer, texts, options.length, 1)[0]
    config = gs.ProfileConfig(length=options.length, windows=1, second_pass=kind == "planning", kinds=())
    model(window[None, :WARM_UP_TOKENS])
    wall, processor = time.perf_counter(), time.process_time()
    if kind == "pass":
        pass_once(model, window)
    else:
        gs.profile_model(model, tokenizer, texts, config)
    seconds, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "processor_seconds": processor, "peak_bytes": peak}


def in_process(kind: str, arguments: list[str]) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "eval.benchmarks.profile_cost", *arguments, "--only", kind]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise GeosparseError(f"The {kind} failed: {(process.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def compare(parts: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of the seconds, largest peaks, by kind; and the two ratios."""
    table: dict[str, Any] = {
        name: {
            "seconds": median(run["seconds"] for run in runs),
            "processor_seconds": median(run["processor_seconds"] for run in runs),
            "peak_bytes": max(run["peak_bytes"] for run in runs),
            "runs": runs,
        }
        for name, runs in parts.items()
    }
    ratio = table["profile"]["seconds"] / table["pass"]["seconds"]
    extra = table["profile"]["peak_bytes"] - table["pass"]["peak_bytes"]
    return table | {
        "time_ratio": ratio,
        "processor_ratio": table["profile"]["processor_seconds"] / table["pass"]["processor_seconds"],
        "extra_bytes": extra,
        "planning_ratio": table["planning"]["seconds"] / table["pass"]["seconds"],
        "within": {"time": ratio <= MAX_TIME_RATIO, "memory": extra <= MAX_EXTRA_BYTES},
    }


def describe(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{result['model']}, {result['length']} tokens, {result['device']}"]
    for kind, name in KINDS.items():
        part = result[kind]
        lines.append(
            f"{name:<18} {part['seconds']:8.1f} s  {part['processor_seconds']:8.1f} s of processors  "
            f"{part['peak_bytes'] / 2**30:6.2f} GiB"
        )
    lines.append(
        f"{'ratio, --one-pass':<18} {result['time_ratio']:8.2f}    {result['processor_ratio']:8.2f}                 "
        f"{result['extra_bytes'] / 2**30:+7.2f} GiB   (at most {MAX_TIME_RATIO:g} and +1 GiB)"
    )
    lines.append(f"{'ratio, default':<18} {result['planning_ratio']:8.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="python -m eval.benchmarks.profile_cost", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="as for `geosparse profile`")
    parser.add_argument("--text", default="pydoc:calibration", help="text of the window")
    parser.add_argument("--length", type=whole(8), default=4096, help="tokens (4096)")
    parser.add_argument("--threads", type=whole(1, 4096), default=2, help="threads of torch (2)")
    parser.add_argument("--repeats", type=whole(1), default=1, help="runs of each, in turn (1)")
    parser.add_argument("--out", type=Path, help="folder for cost.json, or for cost-LENGTH.json at another length")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)

    def command() -> None:
        options = parser.parse_args(given)
        if options.only is not None:
            print(json.dumps(measure(options.only, options)))
            return
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(options.repeats):
            for kind, measured in runs.items():
                measured.append(in_process(kind, given))
        result = compare(runs) | about(options)
        if options.out is not None:
            name = "cost.json" if options.length == 4096 else f"cost-{options.length}.json"
            write_json(options.out / name, result)
        print(json_text(result) if options.json else describe(result))

    return run_command("eval.benchmarks.profile_cost", command)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, where."""
    from geosparse.utils.provenance import versions

    return {
        "schema": SCHEMA,
        "model": options.model,
        "length": options.length,
        "text": options.text,
        "device": f"cpu, {options.threads} threads",
        "provenance": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
