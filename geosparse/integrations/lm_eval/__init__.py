"""lm-evaluation-harness: the same requests dense and sparse, with the density of each score.

Only this package imports lm_eval, and only inside functions. Flags keep the meaning that lm-eval gives them, because
they are read by lm-eval's own parser. A density covers all that ran through the model: with `--batch_size` above 1 also
the padding after the shorter rows of a log-likelihood batch, and after answers that ended before the others'.

`python -m geosparse.integrations.lm_eval run --model geosparse --model_args pretrained=...,plan=... ...` is lm-eval's
own command line with the model type `geosparse`; importing this package registers it where lm-eval is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...artifacts.plan import Plan
from ...errors import GeosparseError
from ...hf.loading import load_model
from .arguments import parse_arguments
from .harness import evaluate_both
from .model import lm_class, register
from .results import SCHEMA, table

__all__ = ["SCHEMA", "compare", "lm_class", "parse_arguments", "register", "run", "table"]


def run(
    model_name: str,
    plan_path: Path | str | None,
    arguments: Sequence[str],
    *,
    dtype: str = "float32",
    device: str | None = None,
    dense: bool = True,
) -> dict[str, Any]:
    """Evaluate a model on lm-eval tasks, dense and, with a plan, sparse.

    Standard output stays free: what lm-eval prints goes to standard error, as do our warnings.

    Args:
        model_name: A folder, `.gguf` file, alias or hub id.
        plan_path: A plan for it; None for dense alone.
        arguments: lm-eval's own flags, e.g. `["--tasks", "lambada_openai", "--limit", "20"]`.
        dtype: As in `geosparse.load_model`.
        device: As in `geosparse.load_model`; by default what lm-eval's `--device` says.
        dense: Evaluate the dense model as well.

    Returns:
        A JSON object, schema `geosparse.lm-eval/1`; `table` makes text of it. Under `accelerate launch` the processes
        share the requests, and all but the first return an empty object.

    Raises:
        GeosparseError: lm-eval is missing, a flag or task is unknown, the plan is for another model, lm-eval stopped.
    """
    config = parse_arguments(arguments)
    plan = None if plan_path is None else Plan.load(plan_path)
    target = device or config.device

    def load() -> tuple[Any, Any]:
        return load_model(model_name, dtype=dtype, device=target, trust_remote_code=config.trust_remote_code)

    return evaluate_both(config, plan, load, dense)


def compare(
    model: Any, tokenizer: Any, plan: Plan | None, arguments: Sequence[str], *, dense: bool = True
) -> dict[str, Any]:
    """`run` for a model and tokenizer that are already loaded."""
    return evaluate_both(parse_arguments(arguments), plan, lambda: (model, tokenizer), dense)


def _register_where_installed() -> None:
    try:
        register()
    except GeosparseError:
        return


_register_where_installed()
