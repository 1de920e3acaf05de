"""Everything worth doing with a GPU for 25 minutes: `python -m eval.gpu [--minutes 25] [--out FOLDER]`.

In this order: correctness, kernels, whole models, prefill, what a profile costs. Each result is written as soon as it
is there; what the time does not reach is listed. A short table comes last.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from geosparse.errors import GeosparseError
from geosparse.utils.console import Parser, json_text, number, run_command, whole
from geosparse.utils.files import write_json
from geosparse.utils.provenance import command_line, device_name, versions

SCHEMA = "geosparse.speed.cuda/1"
CONTEXTS = (32768, 131072, 8192)
BATCHES = (1, 8, 32)
SHAPES = ("llama-3-8b", "llama-2-7b", "gemma-7b", "mistral-7b")
STAGES = ("correctness", "kernels", "models", "prefill", "profile")


def cases(options: argparse.Namespace, peak: float) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(stage, name, run), the most telling first."""
    from . import correctness, decode, model, prefill, profiling, timing

    density = options.density
    yield "correctness", "all", lambda: correctness.check(timing.gpu())
    for shape in options.shapes:
        for batch in options.batches:
            for context in options.contexts:
                name = f"{shape} {context} x {batch}"
                yield "kernels", name, partial(decode.measure, shape, context, batch, density, peak)
    for shape in options.shapes:
        for batch in options.batches:
            for context in options.contexts:
                yield (
                    "models",
                    f"{shape} {context} x {batch}",
                    partial(model.measure, shape, context, batch, density),
                )
    for context in options.contexts:
        yield (
            "prefill",
            f"{options.shapes[0]} {context}",
            partial(prefill.measure, options.shapes[0], context, density),
        )
    yield "profile", "llama-2-7b 1024", lambda: profiling.measure()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All cases that the time allows; a stage gets no more than its share, so that the last ones are reached too."""
    from geosparse.ops.triton.library import installed

    from . import timing

    if not torch.cuda.is_available():
        raise GeosparseError("No CUDA device was found: run this on a machine with a GPU and a CUDA build of torch.")
    if not installed():
        raise GeosparseError("Triton was not found: pip install geosparse[triton].")
    peak = timing.read_bandwidth(timing.gpu())
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "device": device_name("cuda"),
        "read_gb_per_second": peak / 1e9,
        "command": command_line(),
        "provenance": versions(),
        **{stage: [] for stage in STAGES},
        "not_reached": [],
        "failed": [],
    }
    start = time.monotonic()
    shares = {"correctness": 0.2, "kernels": 0.55, "models": 0.8, "prefill": 0.92, "profile": 1.0}
    with torch.no_grad():
        for stage, name, measure in cases(options, peak):
            if stage not in options.stages:
                continue
            if time.monotonic() - start > 60 * options.minutes * shares[stage]:
                result["not_reached"].append(f"{stage}: {name}")
                continue
            try:
                row = measure()
            except GeosparseError:
                raise
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                result["failed"].append(
                    {"stage": stage, "name": name, "error": f"{type(error).__name__}: {error}"[:2000]}
                )
                print(f"{stage}: {name} failed: {error}", file=sys.stderr, flush=True)
            else:
                result[stage].append(row)
                print(f"{stage}: {name} {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            timing.free_bytes()
            if options.out is not None:
                write_json(options.out / "gpu.json", result)
    return result


def table(result: dict[str, Any]) -> str:
    """The figures that matter, one line each."""
    lines = [f"{result['device']}; a sum reads {result['read_gb_per_second']:.0f} GB/s"]
    if result["correctness"]:
        worst = max(row["error"] / row["allowed"] for row in result["correctness"][0])
        lines.append(f"correctness: {len(result['correctness'][0])} cases, worst error {worst:.2f} of what is allowed")
    for case in result["kernels"]:
        head = f"{case['shape']:<11} {case['context']:>6} x {case['batch']:<2}"
        if "skipped" in case:
            lines.append(f"{head} skipped: {case['skipped']}")
            continue
        for variant, row in case["rows"].items():
            gain = f"{row['over_fastest_dense']:6.2f} x dense" if "over_fastest_dense" in row else ""
            lines.append(f"{head} {variant:<14} {row['us']['p50']:9.1f} us {row['gb_per_second']:7.0f} GB/s {gain}")
        stages = ", ".join(f"{stage} {us:.1f}" for stage, us in case["paged_stages"].items())
        lines.append(f"{head} paged, us: {stages}")
    for case in result["models"]:
        head = f"model {case['shape']:<11} {case['context']:>6} x {case['batch']:<2}"
        if "skipped" in case:
            lines.append(f"{head} skipped: {case['skipped']}")
            continue
        parts = [f"{name} {row['ms']['p50']:.2f} ms ({row['over_dense']:.2f} x)" for name, row in case["rows"].items()]
        lines.append(f"{head} {', '.join(parts)}")
    for case in result["prefill"]:
        parts = [
            f"{name} {row['us']['p50'] / 1e3:.1f} ms ({row['over_dense']:.2f} x)" for name, row in case["rows"].items()
        ]
        lines.append(f"prefill {case['shape']} {case['context']:>6}: {', '.join(parts)}")
    for case in result["profile"]:
        lines.append(f"profile of {case['shape']}: {case['profile_over_pass']:.2f} x a forward and backward pass")
    lines += [f"failed: {each['stage']} {each['name']}: {each['error'][:160]}" for each in result["failed"]]
    if result["not_reached"]:
        lines.append(f"not reached in the time: {len(result['not_reached'])} cases")
    return "\n".join(lines)


def parser() -> Parser:
    """The options."""
    made = Parser(prog="python -m eval.gpu", description=__doc__)
    made.add_argument("--minutes", type=number(above=0), default=25.0)
    made.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    made.add_argument("--contexts", nargs="+", type=whole(1), default=list(CONTEXTS))
    made.add_argument("--batches", nargs="+", type=whole(1), default=list(BATCHES))
    made.add_argument("--density", type=number(above=0, most=1), default=0.05)
    made.add_argument("--out", type=Path, help="write gpu.json here, again after every case")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a table, write JSON."""

    def command() -> int:
        options = parser().parse_args(arguments)
        result = run(options)
        print(json_text(result) if options.json else table(result))
        return 1 if result["failed"] else 0

    return run_command("eval.gpu", command)


if __name__ == "__main__":
    raise SystemExit(main())
