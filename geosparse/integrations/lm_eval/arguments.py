"""lm-eval's own flags: read by lm-eval's parser, checked before anything is loaded."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from ...errors import GeosparseError, did_you_mean
from ...hf.loading import reason
from ...utils.bounds import check_number, check_whole
from ...utils.files import MAX_COUNT, check_writable
from .console import as_sentence, logging_at

_NO_UPLOAD = "nothing is uploaded; --output_path keeps lm-eval's files"
_REFUSED = {
    "check_integrity": "it needs a checkout of lm-eval",
    "predict_only": "without metrics there is nothing to compare; --log_samples keeps the answers",
    "wandb_args": _NO_UPLOAD,
    "wandb_config_args": _NO_UPLOAD,
    "trackio_args": _NO_UPLOAD,
    "hf_hub_log_args": _NO_UPLOAD,
}

# What lm-eval's model type still does with a model that geosparse has loaded.
_MODEL_ARGS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_length",
    "mixed_precision_dtype",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)

# What lm-eval's `simple_evaluate` takes under the name of the flag.
PASSED = (
    "tasks",
    "num_fewshot",
    "limit",
    "samples",
    "batch_size",
    "max_batch_size",
    "apply_chat_template",
    "system_instruction",
    "fewshot_as_multiturn",
    "gen_kwargs",
    "write_out",
    "confirm_run_unsafe_code",
)


MAX_SEED = 2**32 - 1
"""What numpy takes."""


def require_lm_eval() -> None:
    """Raise GeosparseError unless a fitting lm-eval is installed."""
    try:
        import lm_eval._cli.run
        import lm_eval.config.evaluate_config  # noqa: F401
    except ImportError as error:
        raise GeosparseError(
            f"lm-eval 0.4.13 or newer is needed ({reason(error)}): pip install geosparse[lm-eval]."
        ) from error


def parse_arguments(arguments: Sequence[str]) -> Any:
    """lm-eval's `EvaluatorConfig` for its own flags.

    Raises:
        GeosparseError: A flag is unknown, malformed or has no meaning here, or `--tasks` is missing.
    """
    require_lm_eval()
    from lm_eval._cli.run import Run
    from lm_eval.config.evaluate_config import EvaluatorConfig

    parser = _HarnessParser(prog="geosparse lm-eval")
    commands = parser.add_subparsers(dest="command")
    Run.create(commands)
    with redirect_stdout(sys.stderr), logging_at(logging.ERROR), as_sentence("lm-eval cannot read its flags"):
        options, unknown = parser.parse_known_args(["run", *arguments])
        _refuse_unknown(unknown, commands.choices["run"])
        if options.model is not None:
            raise GeosparseError("--model has no meaning here: the model is the first argument of geosparse lm-eval.")
        for name in ("batch_size", "samples"):
            if getattr(options, name, None) == "":
                raise GeosparseError(f"--{name} is empty: give a value, or leave it out.")
        config = EvaluatorConfig.from_cli(options)
    if config.device == EvaluatorConfig().device and options.device is None:
        config.device = None  # lm-eval's default is a GPU, there or not
    _check_run(config)
    _check_model_args(config)
    return config


class _HarnessParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise GeosparseError(f"lm-eval does not take these flags: {message}.")


def _refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> None:
    if unknown:
        flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        flag = unknown[0].split("=")[0]
        raise GeosparseError(
            f"Unexpected {flag!r}: neither geosparse nor lm-eval has such a flag; {did_you_mean(flag, flags)}"
        )


def _check_run(config: Any) -> None:
    for name, why in _REFUSED.items():
        if getattr(config, name, None):
            raise GeosparseError(f"--{name} is not available in geosparse lm-eval: {why}.")
    if not config.tasks:
        raise GeosparseError("No task was given: name at least one, e.g. --tasks lambada_openai.")
    _check_numbers(config)
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise GeosparseError(f"--include_path {config.include_path} is not a folder.")
    if config.output_path:
        for label in ("dense", "sparse"):
            check_writable(output_path(config, label) / "results.json")


def _check_numbers(config: Any) -> None:
    """lm-eval itself takes NaN samples for all of them, and finds other mistakes after the model was loaded."""
    if config.limit is not None and not 0 < config.limit <= MAX_COUNT:
        raise GeosparseError(
            f"--limit is a number of samples, or a part of them, above 0, up to {MAX_COUNT}, found {config.limit:g}."
        )
    if config.num_fewshot is not None:
        check_whole("--num_fewshot", config.num_fewshot, 0)
    if config.max_batch_size is not None:
        check_whole("--max_batch_size", config.max_batch_size, 1)
    automatic, _, factor = str(config.batch_size).partition(":")
    if automatic != "auto":
        check_whole("--batch_size", _int_or_text(config.batch_size), 1)
    elif factor:
        check_number("--batch_size auto", _float_or_text(factor), least=1)
    if config.samples is not None and not isinstance(config.samples, dict):
        raise GeosparseError(
            f"--samples is a JSON object, or a file of one, from tasks to lists of samples, found {config.samples!r}."
        )
    seeds = config.seed if isinstance(config.seed, list | tuple) else [config.seed]
    for seed in seeds:
        if seed is not None:
            check_whole("--seed", seed, 0, MAX_SEED)


def _int_or_text(text: Any) -> Any:
    try:
        return int(text)
    except ValueError:
        return text


def _float_or_text(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _check_model_args(config: Any) -> None:
    config.model_args.pop("trust_remote_code", None)  # put there by lm-eval for --trust_remote_code
    for name in config.model_args:
        if name not in _MODEL_ARGS:
            raise GeosparseError(
                f"--model_args {name} is not available in geosparse lm-eval, which loads the model itself; "
                f"{did_you_mean(name, _MODEL_ARGS)}"
            )


def output_path(config: Any, label: str) -> Path:
    """Where lm-eval's files of one run go: folders `dense` and `sparse` under, or beside, `--output_path`."""
    path = Path(config.output_path)
    return path.parent / label / path.name if path.suffix == ".json" else path / label


def _absent(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | tuple | dict) and not value)


def settings(config: Any) -> dict[str, Any]:
    """What a result depends on, as JSON; to be asked for before lm-eval puts resolved tasks into the config."""
    names = (*PASSED, "model_args", "metadata", "seed")
    # What was not given is None, or empty; 0 examples and the seed 0 are values.
    given = {name: value for name in names if not _absent(value := getattr(config, name))}
    plain: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return plain
