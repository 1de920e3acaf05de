"""Time of scoring a text with a plan over that of dense scoring.

`python -m eval.runtime.scoring smollm2-135m --text FILE --length 4096 --plan plan.json --out FOLDER`: both in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.artifact import dump_json, write_json
from geosparse.progress import track
from geosparse.scoring import sparse_nll, token_nll

from .prompt import about, windows

SCHEMA = "geosparse.runtime.scoring/1"


def measure(model: Any, plan: gs.Plan, tokens: torch.Tensor) -> dict[str, Any]:
    """Seconds of both for each of `tokens` `[W, L]`, their ratio (median), and what the plan costs in loss."""
    runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "dense": lambda window: token_nll(model, window),
        "sparse": lambda window: sparse_nll(model, plan, window, "sparse")[0],
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, list[float]] = {name: [] for name in runs}
    for window in track(list(tokens), "score", True):
        for name, run in runs.items():
            start = time.perf_counter()
            losses[name].append(float(run(window[None]).mean()))
            seconds[name].append(time.perf_counter() - start)
    pairs = zip(seconds["sparse"], seconds["dense"], strict=True)
    return {
        "seconds": seconds,
        "sparse_over_dense": statistics.median(sparse / dense for sparse, dense in pairs),
        "excess_nll": statistics.mean(losses["sparse"]) - statistics.mean(losses["dense"]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m eval.runtime.scoring", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `geosparse profile`")
    parser.add_argument("--text", required=True, help="what is scored")
    parser.add_argument("--length", type=int, default=4096, help="tokens per window (4096)")
    parser.add_argument("--windows", type=int, default=3, help="windows (3)")
    parser.add_argument("--plan", type=Path, help="plan (default: uniform 64, centroid)")
    parser.add_argument("--out", type=Path, help="folder for scoring-LENGTH.json")
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = gs.load_model(options.model, dtype="float32")
        tokens = windows(tokenizer, options.text, options.length, options.windows)
        plan = gs.Plan.load(options.plan) if options.plan else gs.Plan.uniform(model, 64, "centroid")
        result = about(SCHEMA, options.model, options.text) | {"length": options.length, "mean_keep": plan.mean_keep}
        result |= measure(model, plan, tokens)
        if options.out is not None:
            write_json(options.out / f"scoring-{options.length}.json", result)
    except gs.GeosparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(dump_json(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
