"""`geosparse lm-eval`: the flags that are not ours are the harness's."""

from __future__ import annotations

import os
from pathlib import Path

from ...utils.files import check_writable, write_json
from .shared import Add, Options, add_model, mention_missing_kernels, show

WHAT = "lm-evaluation-harness, dense and sparse; flags such as --tasks go to it"
EXAMPLE = "smollm2-135m --plan plan.json --tasks niah_single_1 --metadata '{\"max_seq_lengths\":[1024]}' --limit 5"


def arguments(add: Add) -> None:
    """The flags."""
    add_model(add)
    add("--plan", type=Path, help="plan to apply; without it only the dense model is evaluated")
    add("--no-dense", action="store_true", help="evaluate only the sparse model")
    add("--out", type=Path, help="write the result as JSON")


def run(options: Options) -> None:
    """Run the harness; `options.rest` holds its own flags."""
    from ...integrations.lm_eval import run as evaluate
    from ...integrations.lm_eval import table

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as lm-eval does: its bootstrap forks
    if options.out is not None:
        check_writable(options.out)
    mention_missing_kernels("cpu" if options.device is None else options.device)
    result = evaluate(
        options.model,
        options.plan,
        options.rest,
        dtype=options.dtype,
        device=options.device,
        dense=not options.no_dense,
    )
    if not result:  # not the first of several processes
        return
    if options.out is not None:
        write_json(options.out, result)
    show(options, result, table(result))
