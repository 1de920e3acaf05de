"""Time of scoring a text with a plan over that of dense scoring.

`python -m eval.benchmarks.scoring_time smollm2-135m --text FILE --length 4096 --plan plan.json --out FOLDER`: both in
turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.measure.loss import sparse_nll, token_nll
from geosparse.utils.console import whole
from geosparse.utils.progress import track

from .prompt import windows
from .shared_command import Add, Finding, Options, command


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


def study(options: Options, model: Any, tokenizer: Any) -> Iterator[Finding]:
    """One length, one plan."""
    tokens = windows(tokenizer, options.text, options.length, options.windows)
    plan = gs.Plan.load(options.plan) if options.plan is not None else gs.Plan.uniform(model, 64, "centroid")
    given = {"length": options.length, "mean_keep": plan.mean_keep}
    yield Finding(f"scoring-{options.length}.json", given | measure(model, plan, tokens))


def flags(add: Add) -> None:
    """Those of this study."""
    add("--length", type=whole(2), default=4096, help="tokens per window (4096)")
    add("--windows", type=whole(1), default=3, help="windows (3)")
    add("--plan", type=Path, help="plan (default: uniform 64, centroid)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return command("eval.benchmarks.scoring_time", "scoring", __doc__, flags, study, arguments)


if __name__ == "__main__":
    sys.exit(main())
